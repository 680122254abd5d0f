//! Python that runs where no exception can be raised, in `close` of a source say, while the main thread waits in a call of ours:
//! Ctrl-C and what handlers of signals raise is raised when that call returns.
//!
//! *Locks*: `WAITING`, for a few instructions in which no Python runs. *GIL*: held by every caller.

use crate::pending;
use pyo3::exceptions::PyException;
use pyo3::ffi;
use pyo3::prelude::*;
use std::ffi::{c_int, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is to be raised in the main thread.
static WAITING: Mutex<Vec<PyErr>> = Mutex::new(Vec::new());

fn waiting() -> MutexGuard<'static, Vec<PyErr>> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Call `work`. What asks the process to end is raised later, in the main thread; another error is told, as one in a finalizer.
/// Signals that came before do not keep `work` from running: what their handlers raise is raised later too.
pub fn call<'py, T>(py: Python<'py>, place: Option<&Bound<'py, PyAny>>, work: impl FnOnce() -> PyResult<T>) {
    // SAFETY: the GIL is held; in another than the main thread it does nothing.
    let before = if unsafe { ffi::Py_MakePendingCalls() } == 0 { None } else { Some(PyErr::fetch(py)) };
    if let Err(error) = work() {
        if pending::is_main() && !error.is_instance_of::<PyException>(py) {
            raise_soon(py, error);
        } else {
            error.write_unraisable(py, place);
        }
    }
    if let Some(error) = before {
        raise_soon(py, error);
    }
}

/// Raise `error` in the main thread, as soon as it runs Python.
fn raise_soon(py: Python<'_>, error: PyErr) {
    waiting().push(error);
    // SAFETY: may be called from any thread; the function is a plain one.
    let asked = unsafe { ffi::Py_AddPendingCall(Some(raise_now), std::ptr::null_mut()) } == 0;
    let refused = if asked { None } else { waiting().pop() }; // popped with the lock, told without it
    if let Some(error) = refused {
        error.write_unraisable(py, None);
    }
}

/// A pending call: the main thread makes it.
extern "C" fn raise_now(_: *mut c_void) -> c_int {
    // SAFETY: pending calls run with the GIL held.
    let py = unsafe { Python::assume_attached() };
    let Some(error) = waiting().pop() else { return 0 };
    error.restore(py);
    -1
}
