//! The calls of 2014 for Python: `userfault.mman` gives them their names.
//!
//! *GIL*: released in everything that waits; kept by small `remap_anon_pages`, which may run in the middle of a touch.

use crate::enter::enter;
use crate::errors::{engine_error, os_error};
use crate::kernel::place::{Place, transfer_length};
use crate::sources::NativeSource;
use crate::{gil, helper, surface};
use engine::flagged::view::{Act, Token, take_released};
use engine::flagged::{self, Called};
use engine::mman::calls::{Failed, whole_pages};
use engine::mman::ledger::Policy;
use engine::mman::remap::remap_anon_pages as remap;
use engine::mman::{self, Mman, why};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// How long a thread that Python does not know waits for the GIL before its touch is given up.
const GIL_LIMIT: Duration = Duration::from_secs(10);
/// Moves of more than this release the GIL.
const LONG_MOVE: usize = 2 << 20;

/// The room of this process, started if need be.
pub fn room(py: Python<'_>) -> PyResult<&'static Mman> {
    py.detach(|| {
        helper::ensure()?;
        mman::get()
    })
    .map_err(|error| engine_error(py, error))
}

/// A failure with what was asked for in front.
pub fn named(what: &str, range: &Range<usize>, failed: &Failed) -> PyErr {
    let what = format!("{what} of {} bytes at {:#x}", range.len(), range.start);
    os_error(failed.errno, &because(what, &failed.why))
}

/// What was refused, and why, if that was found.
pub fn because(what: String, why: &str) -> String {
    if why.is_empty() { what } else { format!("{what}: {why}") }
}

/// Give up the references of resolvers that nothing can call any more.
fn release_tokens() {
    for token in take_released() {
        // SAFETY: the GIL is held by the caller of a pyfunction; `on_sigbus` leaked exactly this reference.
        unsafe { ffi::Py_DECREF(token as *mut ffi::PyObject) };
    }
}

fn run(
    py: Python<'_>,
    what: &str,
    range: Range<usize>,
    work: impl FnOnce(&'static Mman, Range<usize>) -> Result<(), Failed> + Send,
) -> PyResult<()> {
    let mman = room(py)?;
    let given = range.clone();
    let result = py.detach(|| work(mman, given));
    release_tokens();
    result.map_err(|failed| named(what, &range, &failed))
}

fn pages(what: &str, place: &Place) -> PyResult<Range<usize>> {
    let (start, length) = place.range()?;
    whole_pages(start, length).map_err(|failed| named(what, &(start..start.saturating_add(length)), &failed))
}

/// Set or clear the flag of `place`; `follow`: forked children have it too.
#[pyfunction]
fn mman_flag(py: Python<'_>, place: Place, on: bool, follow: bool) -> PyResult<()> {
    let what = if on { "madvise(MADV_USERFAULT)" } else { "madvise(MADV_NOUSERFAULT)" };
    let range = pages(what, &place)?;
    if follow {
        let mman = room(py)?;
        py.detach(|| mman.check_follow()).map_err(|error| engine_error(py, error))?;
    }
    run(py, what, range, move |mman, range| mman.set_flag(range, on, follow))
}

/// Another advice, by its number in the kernel.
#[pyfunction]
fn mman_advise(py: Python<'_>, place: Place, advice: i32, name: &str) -> PyResult<()> {
    let what = format!("madvise({name})");
    let range = pages(&what, &place)?;
    run(py, &what, range, move |mman, range| mman.advise(range, advice))
}

/// mprotect, and the flag of policy "mprotect".
#[pyfunction]
fn mman_protect(py: Python<'_>, place: Place, protection: i32, userfault: bool) -> PyResult<()> {
    let range = pages("mprotect", &place)?;
    run(py, "mprotect", range, move |mman, range| mman.protect(range, protection, userfault))
}

const POLICIES: [(&str, Policy); 3] =
    [("madvise", Policy::Madvise), ("mprotect", Policy::Mprotect), ("register-only", Policy::RegisterOnly)];

/// Choose the policy.
#[pyfunction]
fn mman_set_policy(py: Python<'_>, policy: &str) -> PyResult<()> {
    let Some((_, chosen)) = POLICIES.iter().find(|(name, _)| *name == policy) else {
        let text = format!("policy {policy:?}: must be \"madvise\", \"mprotect\" or \"register-only\"");
        return Err(PyValueError::new_err(text));
    };
    let mman = room(py)?;
    py.detach(|| mman.set_policy(*chosen)).map_err(|failed| PyRuntimeError::new_err(failed.why))
}

/// The policy in force.
#[pyfunction]
fn mman_policy() -> &'static str {
    let chosen = mman::current().map(Mman::policy).unwrap_or_default();
    POLICIES.iter().find(|(_, policy)| *policy == chosen).map_or("", |(name, _)| name)
}

/// What a SIGBUS in `place` leads to: a callable, a source, "default" or "raise".
#[pyfunction]
#[pyo3(signature = (place, kind, resolver=None, source=None))]
fn mman_on_sigbus(
    py: Python<'_>,
    place: Place,
    kind: &str,
    resolver: Option<Py<PyAny>>,
    source: Option<PyRef<'_, NativeSource>>,
) -> PyResult<()> {
    let range = pages("on_sigbus", &place)?;
    let act = match (resolver, kind) {
        (Some(resolver), _) => Act::Call(Arc::new(Token(resolver.into_ptr() as usize))),
        (None, "default") => Act::Default,
        (None, "source") => Act::Source,
        (None, _) => Act::Raise,
    };
    let source = source.map(|source| source.0.clone());
    run(py, "on_sigbus", range, move |mman, range| mman.on_sigbus(range, act, source))
}

/// Move pages from `src` into the hole at `dst`. Nobody is woken; the pages leave holes behind them.
///
/// Args:
///     dst: Address or buffer; need be neither flagged nor registered.
///     src: Address or buffer, usually staging memory.
///     length: Bytes, whole pages; None: as long as the shorter of the two buffers.
///     flags: 0 or `RAP_ALLOW_SRC_HOLES`.
///
/// Returns:
///     Bytes moved: `length`, or fewer when an error came after some; the call for the rest then says which.
///
/// Raises:
///     OSError: EINVAL: flags, alignment, nothing or more than one mapping at either end, shared memory, memory that is not
///         writable, different protection or mlock. EEXIST: there is a page already. ENOENT: there is none at the source.
///         EBUSY: the page is shared with a forked child, or pinned. EFAULT: something else than a page.
///
/// Blocks: for the moment of a change of owner. Source: patch 12 of the series.
#[pyfunction]
#[pyo3(signature = (dst, src, length=None, flags=0))]
fn remap_anon_pages(py: Python<'_>, dst: Place, src: Place, length: Option<usize>, flags: u64) -> PyResult<usize> {
    let shorter = dst.length.into_iter().chain(src.length).min();
    let length = transfer_length(&dst, &src, length.or(shorter))?;
    let mman = match mman::current() {
        Some(mman) => mman,
        None => room(py)?,
    };
    let (to, from) = (dst.address, src.address);
    let moved = if length > LONG_MOVE {
        py.detach(|| remap(mman, to, from, length, flags))
    } else {
        remap(mman, to, from, length, flags)
    };
    moved.map_err(|errno| {
        let what = format!("remap_anon_pages of {length} bytes from {from:#x} to {to:#x}");
        os_error(errno, &because(what, &why::of_move(errno, to, from, length, flags)))
    })
}

type RangeLine = (usize, usize, bool, Option<u64>, Option<&'static str>, &'static str);

/// Everything that is flagged or registered: start, bytes, flagged, owner, what forked children get, resolver.
#[pyfunction]
fn mman_ranges(py: Python<'_>) -> Vec<RangeLine> {
    let Some(mman) = mman::current() else { return vec![] };
    let lines = py.detach(|| mman.ranges());
    release_tokens();
    let line = |info: engine::mman::calls::RangeInfo| {
        let fork = if info.follow { Some("follow") } else { info.denied.then_some("deny") };
        (info.range.start, info.range.len(), info.flagged, info.owner, fork, info.resolver)
    };
    lines.into_iter().map(line).collect()
}

/// Switches of owner that had to poison holes: each may have cost a system call one EFAULT.
#[pyfunction]
fn mman_poisoned_switches() -> u64 {
    engine::mman::switch::poisoned_switches()
}

/// In the SIGBUS handler: call a resolver in this thread.
fn call_resolver(token: usize, address: usize) -> Called {
    if !gil::known_to_python() && !helper::gil_can_be_had(GIL_LIMIT) {
        return Called::TooLate;
    }
    let called = enter(|py| {
        // SAFETY: the GIL is held; the exception that the interrupted code may be about to handle is put back below. The
        // token is a reference that `mman_on_sigbus` leaked and that lives as long as the resolver we were called for.
        unsafe {
            let (mut kind, mut value, mut trace) = (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
            ffi::PyErr_Fetch(&raw mut kind, &raw mut value, &raw mut trace);
            let resolver = Borrowed::from_ptr(py, token as *mut ffi::PyObject);
            let called = match resolver.call1((address,)) {
                Ok(_) => Called::Returned,
                Err(error) => {
                    surface::keep_resolver_error(py, error);
                    Called::Raised
                }
            };
            ffi::PyErr_Restore(kind, value, trace);
            called
        }
    });
    called.unwrap_or(Called::TooLate)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    flagged::set_call(call_resolver);
    module.add_function(wrap_pyfunction!(mman_flag, module)?)?;
    module.add_function(wrap_pyfunction!(mman_advise, module)?)?;
    module.add_function(wrap_pyfunction!(mman_protect, module)?)?;
    module.add_function(wrap_pyfunction!(mman_set_policy, module)?)?;
    module.add_function(wrap_pyfunction!(mman_policy, module)?)?;
    module.add_function(wrap_pyfunction!(mman_on_sigbus, module)?)?;
    module.add_function(wrap_pyfunction!(remap_anon_pages, module)?)?;
    module.add_function(wrap_pyfunction!(mman_ranges, module)?)?;
    module.add_function(wrap_pyfunction!(mman_poisoned_switches, module)?)
}
