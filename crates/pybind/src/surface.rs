//! What a failed touch noted becomes the exception object: when the class that its thread was told to raise surfaces, or where
//! that has not happened and will not.
//!
//! The latch is opened first, and the pages that showed the error pattern become holes: a touch raises again instead of reading it.
//!
//! *Locks*: `RESOLVER_ERRORS`. *GIL*: held. *Threads*: the one that touched.

use crate::errors::{self, remote_error, said_of};
use crate::gil::ident;
use crate::{gil, kept, pending};
use engine::cause::Kind;
use engine::engine::Engine;
use engine::source::Cause;
use pyo3::ffi;
use pyo3::prelude::*;
use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

/// What resolvers raised, by thread. Locked only with the GIL held.
static RESOLVER_ERRORS: Mutex<Vec<(u64, Py<PyAny>)>> = Mutex::new(Vec::new());

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
    noted_failure(py)
}

/// The exception of what was noted for the calling thread, and its latch is open again.
#[pyfunction]
fn noted_failure(py: Python<'_>) -> PyResult<Py<PyAny>> {
    let noted = take_failure(py);
    let is_user_fault =
        |taken: &Taken| taken.5.as_ref().is_some_and(|class| class.as_ptr() == pending::class_of(Kind::UserFault));
    let raised = if noted.as_ref().is_some_and(is_user_fault) { take_resolver_error(py) } else { None };
    errors::module(py)?.call_method1("failure_of", (noted, raised)).map(Bound::unbind)
}

/// The exception that was set for the calling thread and has not surfaced, and will not.
pub fn take_pending(py: Python<'_>) -> PyErr {
    gil::take_back(); // first: it would surface in what makes the exception
    let error = noted_failure(py).map_or_else(|problem| problem, |error| PyErr::from_value(error.into_bound(py)));
    let _ = engine::latch::take();
    error
}

/// Re-arm every region (one call may have failed in several); the name of the source of the one with this number.
pub fn rearm(number: u64) -> Option<String> {
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
fn take_resolver_error(_holds_the_gil: Python<'_>) -> Option<Py<PyAny>> {
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

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(take_failure, module)?)?;
    module.add_function(wrap_pyfunction!(surface, module)?)?;
    module.add_function(wrap_pyfunction!(noted_failure, module)?)?;
    module.add_function(wrap_pyfunction!(rearm_failed, module)?)
}
