//! What sources raised, kept until the exception of the touch picks it up.
//!
//! *Locks*: `KEPT`, for a few instructions in which no Python runs. *GIL*: held by every caller but the helper.

use crate::{errors, gil, readers};
use engine::cause::Raised;
use engine::failure;
use engine::source::{Cause, SourceError};
use pyo3::exceptions::{PyKeyboardInterrupt, PySystemExit};
use pyo3::ffi;
use pyo3::prelude::*;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

struct Kept {
    ticket: u32,
    error: Py<PyAny>,
    /// What to raise at the touch instead of a PageError.
    itself: Option<Py<PyAny>>,
    /// Who raised it.
    thread: u64,
    since: Instant,
}

struct Shelf {
    next: u32,
    kept: VecDeque<Kept>,
}

static KEPT: Mutex<Shelf> = Mutex::new(Shelf { next: 0, kept: VecDeque::new() });
/// So many, and so long: an exception keeps alive the frames that it passed, and with them arrays and regions.
const MOST: usize = 64;
const LIFE: Duration = Duration::from_secs(2);

fn shelf() -> MutexGuard<'static, Shelf> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

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
    let mut shelf = shelf();
    let ticket = shelf.next;
    shelf.next = shelf.next.wrapping_add(1);
    let oldest = if shelf.kept.len() >= MOST { shelf.kept.pop_front() } else { None };
    shelf.kept.push_back(Kept { ticket, error: value, itself, thread: gil::ident(), since: Instant::now() });
    drop(shelf);
    drop(oldest); // last: what its destructors do must not find the lock taken
    gil::HELPER.ring(); // it looks after what nobody picks up
    Cause::Raised(Raised { ticket, transient })
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

/// What was kept under a ticket, unless it is too long ago. Whoever raised it is the only one to ask; what a thread of the
/// library raised may be the answer to several touches, and stays for a while.
pub fn kept(py: Python<'_>, raised: Raised) -> Option<Py<PyAny>> {
    let mut shelf = shelf();
    let index = shelf.kept.iter().position(|kept| kept.ticket == raised.ticket)?;
    if shelf.kept[index].thread != gil::ident() {
        return Some(shelf.kept[index].error.clone_ref(py));
    }
    let taken = shelf.kept.remove(index);
    drop(shelf);
    taken.map(|taken| taken.error)
}

/// What to raise for a failure instead of its usual class.
pub fn itself_of(py: Python<'_>, cause: Cause) -> Option<Py<PyAny>> {
    let Cause::Raised(raised) = cause else { return None };
    let shelf = shelf();
    let kept = shelf.kept.iter().find(|kept| kept.ticket == raised.ticket)?;
    kept.itself.as_ref().map(|class| class.clone_ref(py))
}

/// The helper's: when to look again.
pub fn tick() -> Option<Duration> {
    if KEPT.try_lock().is_ok_and(|shelf| shelf.kept.is_empty()) { None } else { Some(LIFE / 4) }
}

/// The helper's look: what nobody has picked up goes. Its destructors may be anybody's code, so a reader runs them.
pub fn look() {
    let is_old = |kept: &Kept| kept.since.elapsed() > LIFE;
    if !KEPT.try_lock().is_ok_and(|shelf| shelf.kept.front().is_some_and(is_old)) {
        return;
    }
    Python::try_attach(|_| {
        let mut shelf = shelf();
        let count = shelf.kept.iter().take_while(|kept| is_old(kept)).count();
        let old: Vec<Kept> = shelf.kept.drain(..count).collect();
        drop(shelf);
        readers::leave(move |_| drop(old));
    });
}

/// The source has returned. Other lazy memory that it touched may have failed without the exception having surfaced in it:
/// then what it made of the error pattern is not shown.
pub fn surfaced<T>(py: Python<'_>, offset: u64, answer: PyResult<T>) -> PyResult<Result<T, SourceError>> {
    let Some(failure) = failure::pending() else { return answer.map(Ok) };
    if failure.error.cause == Cause::Interrupted {
        return Ok(Err(SourceError::new(offset, Cause::Interrupted))); // KeyboardInterrupt is on its way
    }
    let error = take_pending(py);
    if let Err(other) = answer {
        error.set_context(py, Some(other));
    }
    Err(error)
}

/// The exception that was set for this thread and has not surfaced, and will not.
pub fn take_pending(py: Python<'_>) -> PyErr {
    take_back(py); // first: it would surface in what makes the exception
    let error = errors::noted(py);
    let _ = failure::take();
    error
}

/// Have this thread not raise what was set for it.
pub fn take_back(_py: Python<'_>) {
    // SAFETY: the GIL is held; NULL clears.
    unsafe { ffi::PyThreadState_SetAsyncExc(gil::ident() as _, std::ptr::null_mut()) };
}
