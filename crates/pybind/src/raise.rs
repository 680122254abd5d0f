//! A failed page becomes an exception in the thread that touched it (law 4; recipe: docs/facts.md, A failed page as an exception).
//!
//! `raise` runs inside the SIGBUS handler. A thread that holds the GIL raises in itself, there and then: it is in the
//! middle of a load or store and so inside no lock of the interpreter. Another thread asks the helper thread, which takes
//! the GIL, and waits for it at most 200 ms.
//!
//! *Locks*: none in the handler. *GIL*: not taken by the handler.

use crate::errors::{self, remote_error, said_of};
use crate::gil::{holds_gil, ident, known_to_python};
use crate::{enter, gil, helper, kept, pending};
use engine::cause::Kind;
use engine::engine::Engine;
use engine::latch::Why;
use engine::source::Cause;
use pyo3::ffi;
use pyo3::prelude::*;
use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a thread without the GIL waits for the helper.
const HELPER_LIMIT: Duration = Duration::from_millis(200);

/// What resolvers raised, by thread. Locked only with the GIL held.
static RESOLVER_ERRORS: Mutex<Vec<(u64, Py<PyAny>)>> = Mutex::new(Vec::new());
/// Called once at import, with the ident of the main thread (whoever imports).
#[pyfunction]
fn set_exceptions(py: Python<'_>, main_thread: u64) -> PyResult<()> {
    gil::find_symbols();
    pending::find_classes(py, main_thread)?;
    engine::expose::set_raise(raise);
    engine::language::set_hooks(&GIL);
    Ok(())
}

/// What the engine may ask about the GIL.
static GIL: engine::language::Hooks =
    engine::language::Hooks { holds_lock: holds_gil, without_lock: give_way, can_be_had };

/// In a touch that waits: let others run Python meanwhile.
fn give_way(work: &mut dyn FnMut()) {
    let had_failed = engine::latch::is_this_latched();
    gil::without_gil(work);
    if !had_failed {
        raise_pending();
    }
}

fn can_be_had(limit: std::time::Duration) -> bool {
    known_to_python() && gil::is_only_interpreter() || helper::gil_can_be_had(limit)
}

/// In the SIGBUS handler: see the module.
fn raise(why: Why) -> bool {
    match why {
        Why::Failed(kind) | Why::FailedAgain(kind) if holds_gil() => {
            // SAFETY: this thread holds the GIL.
            unsafe { pending::set(kind, why) };
        }
        Why::Failed(kind) if gil::is_finalizing() && pending::is_main() => {
            // SAFETY: this thread finalizes the interpreter, and nobody else has the GIL any more; the helper neither.
            enter::with_gil_at_the_end(|| unsafe { pending::set(kind, why) });
        }
        Why::Failed(kind) => {
            let thread = if known_to_python() { ident() } else { pending::main_thread() };
            helper::ask(thread, pending::surfacing_of(kind), HELPER_LIMIT);
        }
        // SAFETY: may be called from any thread and without the GIL; the function is a plain one. The main thread runs it
        // right after it has raised KeyboardInterrupt. A full queue means a latch that ends by its age.
        Why::Interrupted => drop(unsafe { ffi::Py_AddPendingCall(Some(interrupt_has_raised), std::ptr::null_mut()) }),
        Why::FailedAgain(_) | Why::Nothing => {}
    }
    known_to_python()
}

/// Raise what has failed in this thread, which has taken the GIL back since. The helper may not have had the GIL in time; or has,
/// and CPython 3.11 and 3.12, which keep one note for all threads, took it down for another. The GIL is held, and stays so until
/// the interpreter looks.
fn raise_pending() {
    if let Some(failure) = engine::latch::pending().filter(|failure| failure.error.cause != Cause::Interrupted) {
        // SAFETY: this thread holds the GIL.
        unsafe { pending::set(failure.kind, Why::Failed(failure.kind)) };
    }
}

/// The interrupted call is over: the thread's touches wait for their pages again.
extern "C" fn interrupt_has_raised(_: *mut std::ffi::c_void) -> std::ffi::c_int {
    // SAFETY: pending calls run with the GIL held.
    let py = unsafe { Python::assume_attached() };
    if let Some(failure) = engine::latch::take() {
        py.detach(|| rearm(failure.region));
    }
    0
}

type Taken = (String, i64, Option<i32>, Cow<'static, str>, usize, Option<Py<PyAny>>, Option<Py<PyAny>>);

/// The details of the calling thread's failure, and its latch is open again: (source, offset, errno, text, address, class,
/// what a Python source raised).
///
/// The exception has surfaced, so the pages that showed the pattern become holes at once: a second touch raises again
/// instead of reading it. (Where no exception object is ever made, the keeper does it a little later.)
#[pyfunction]
fn take_failure(py: Python<'_>) -> Option<Taken> {
    let failure = engine::latch::take().or_else(engine::failure::orphan)?;
    if engine::latch::another_is_latched() {
        // CPython 3.11 and 3.12 keep one note for all threads that some exception waits, and the thread whose exception was
        // raised took it down: put it up again for the others.
        // SAFETY: the GIL is held; NULL only takes back what this thread would raise once more for the same failure.
        unsafe { ffi::PyThreadState_SetAsyncExc(ident() as _, std::ptr::null_mut()) };
    }
    let name = py.detach(|| rearm(failure.region)).unwrap_or_else(|| "a closed Region".into());
    let errno = match failure.error.cause {
        Cause::Os(errno) => Some(errno),
        _ => None,
    };
    let offset = i64::try_from(failure.error.offset).unwrap_or(-1);
    let class = pending::class_of(failure.kind);
    // SAFETY: the GIL is held; the exception classes are never freed.
    let class = (!class.is_null()).then(|| unsafe { Bound::from_borrowed_ptr(py, class) }.unbind());
    let class = kept::itself_of(py, failure.error.cause).or(class);
    let raised = match failure.error.cause {
        Cause::Raised(raised) => kept::take(py, raised),
        Cause::Remote(remote) => Some(remote_error(py, remote)),
        _ => None,
    };
    Some((name, offset, errno, said_of(failure.error.cause), failure.address, class, raised))
}

/// The `__new__` of what a thread is told to raise: the exception, finished. The latch is opened before any Python runs: a signal
/// handler, a finalizer or a trace function in the middle of it may touch other lazy memory, which has not failed.
#[pyfunction]
#[pyo3(signature = (_class, *arguments))]
fn surface(
    py: Python<'_>,
    _class: &Bound<'_, PyAny>,
    arguments: &Bound<'_, pyo3::types::PyTuple>,
) -> PyResult<Py<PyAny>> {
    // Made already: CPython 3.11 makes it once for a trace function, and again, of what was made, for the `except`.
    if let Some(made) = arguments.iter().next() {
        return Ok(made.unbind());
    }
    let noted = take_failure(py);
    let is_user_fault =
        |taken: &Taken| taken.5.as_ref().is_some_and(|class| class.as_ptr() == pending::class_of(Kind::UserFault));
    let raised = if noted.as_ref().is_some_and(is_user_fault) { take_resolver_error(py) } else { None };
    errors::module(py)?.call_method1("failure_of", (noted, raised)).map(Bound::unbind)
}

/// Re-arm every region (one call may have failed in several); the name of the source of the one with this number.
fn rearm(number: u64) -> Option<String> {
    let engine = Engine::current()?;
    let mut name = None;
    let mut failed = Vec::new();
    engine.table.for_each(|region| {
        if region.id == number {
            name = Some(region.source_name.clone());
        }
        if region.shows_pattern() {
            failed.push(region);
        }
    });
    if !failed.is_empty() {
        engine.root.run(move || failed.iter().for_each(|region| engine::keeper::rearm_all(region)));
    }
    name.or_else(|| engine.name_of_closed(number))
}

/// The exception that a resolver raised in this thread, and nothing is kept of it.
#[pyfunction]
fn take_resolver_error(py: Python<'_>) -> Option<Py<PyAny>> {
    let _ = py; // says that the GIL is held
    let mut raised = RESOLVER_ERRORS.lock().unwrap_or_else(PoisonError::into_inner);
    let index = raised.iter().position(|(thread, _)| *thread == ident())?;
    Some(raised.swap_remove(index).1)
}

/// Keep what a resolver raised in the calling thread until its `UserFault` picks it up.
pub fn keep_resolver_error(py: Python<'_>, error: PyErr) {
    let older = take_resolver_error(py); // dropped last: what its destructors do must not find the lock taken
    let value = error.into_value(py).into_any();
    RESOLVER_ERRORS.lock().unwrap_or_else(PoisonError::into_inner).push((ident(), value));
    drop(older);
}

/// Turn every page of every region that shows the error pattern back into a hole.
#[pyfunction]
fn rearm_failed(py: Python<'_>) {
    py.detach(|| rearm(0));
}

/// A moment: pass it to [`failed_since`].
#[pyfunction]
fn failure_epoch() -> u64 {
    engine::expose::EXPOSURES.now().into()
}

/// May a page of any region have shown the error pattern since then?
#[pyfunction]
fn failed_since(epoch: u64) -> bool {
    engine::expose::EXPOSURES.any_since(epoch.into())
}

/// Take back an exception that was set for this thread and has not surfaced, and open its latch.
#[pyfunction]
fn drop_pending_error() {
    gil::drop_pending();
}

/// Our SIGBUS handler back in front; SIGINT ends waits if `interrupt_raises`.
#[pyfunction]
fn refresh_handlers(interrupt_raises: bool) {
    engine::signal::ensure_front();
    engine::interrupt::set_raises(interrupt_raises);
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(set_exceptions, module)?)?;
    module.add_function(wrap_pyfunction!(take_failure, module)?)?;
    module.add_function(wrap_pyfunction!(surface, module)?)?;
    module.add_function(wrap_pyfunction!(take_resolver_error, module)?)?;
    module.add_function(wrap_pyfunction!(failure_epoch, module)?)?;
    module.add_function(wrap_pyfunction!(failed_since, module)?)?;
    module.add_function(wrap_pyfunction!(rearm_failed, module)?)?;
    module.add_function(wrap_pyfunction!(drop_pending_error, module)?)?;
    module.add_function(wrap_pyfunction!(refresh_handlers, module)?)
}
