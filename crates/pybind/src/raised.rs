//! A source raised: what becomes of it.
//!
//! *Locks*: none. *GIL*: held by every caller but the helper.

use crate::enter::enter;
use crate::{errors, kept, readers, surface};
use engine::latch;
use engine::source::{Cause, SourceError};
use pyo3::exceptions::{PyKeyboardInterrupt, PySystemExit};
use pyo3::prelude::*;

/// Who reads: the thread that touched, or one of the library's for somebody else.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum By {
    Toucher,
    Library,
}

/// Keep an exception of a source. What asks the process to end goes on at the touch as itself, not as a PageError.
pub fn keep(py: Python<'_>, error: PyErr, by: By) -> Cause {
    let transient = is_transient(py, &error);
    let ends = error.is_instance_of::<PyKeyboardInterrupt>(py) || error.is_instance_of::<PySystemExit>(py);
    let value = error.into_value(py).into_any();
    let itself = if ends && by == By::Toucher { errors::itself(py, &value) } else { None };
    Cause::Raised(kept::put(value, itself, transient))
}

/// Might the same read succeed a moment later? An exception may say so itself, by an attribute `transient`.
fn is_transient(py: Python<'_>, error: &PyErr) -> bool {
    use pyo3::exceptions::{PyConnectionError, PyInterruptedError, PyTimeoutError};
    if let Ok(said) = error.value(py).getattr("transient").and_then(|said| said.is_truthy()) {
        return said;
    }
    let errno = error.value(py).getattr("errno").and_then(|errno| errno.extract::<i32>());
    error.is_instance_of::<PyConnectionError>(py)
        || error.is_instance_of::<PyTimeoutError>(py)
        || error.is_instance_of::<PyInterruptedError>(py)
        || errno.is_ok_and(|errno| Cause::Os(errno).is_transient())
}

/// The helper's look: what nobody has picked up goes, in a reader.
pub fn look() {
    if kept::has_old() {
        enter(|py| {
            let old = kept::take_old(py);
            readers::leave(move |_| drop(old));
        });
    }
}

/// The source has returned. Other lazy memory that it touched may have failed without the exception having surfaced in it:
/// then what it made of the error pattern is not shown.
pub fn surfaced<T>(py: Python<'_>, offset: u64, answer: PyResult<T>) -> PyResult<Result<T, SourceError>> {
    let Some(failure) = latch::pending() else { return answer.map(Ok) };
    if failure.error.cause == Cause::Interrupted {
        return Ok(Err(SourceError::new(offset, Cause::Interrupted))); // KeyboardInterrupt is on its way
    }
    let error = surface::take_pending(py);
    if let Err(other) = answer {
        error.set_context(py, Some(other));
    }
    Err(error)
}
