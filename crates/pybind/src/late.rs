//! Faults inside system calls that ended because nobody answered in time: Python is told at its next safe point, in the main
//! thread, and says so (`userfault.mman.late`).
//!
//! *Locks*: none. *GIL*: held by what runs as a pending call; the pump, which asks, has none.

use crate::helper;
use engine::mman;
use engine::mman::late::{self, TimedOut, Where};
use pyo3::prelude::*;
use std::sync::atomic::{AtomicPtr, Ordering};

/// What Python calls, kept alive for good.
static TELLER: AtomicPtr<pyo3::ffi::PyObject> = AtomicPtr::new(std::ptr::null_mut());

/// Address, thread, seconds, what the thread was doing, the descriptor's timeout in seconds.
pub type LateLine = (usize, i32, f64, &'static str, f64);

/// One for Python.
pub fn late_line(late: &TimedOut) -> LateLine {
    let place = match late.place {
        Where::UserCode => "user code",
        Where::SystemCall => "a system call",
        Where::SystemCallWithLock => "a system call that kept the GIL",
    };
    (late.address, late.thread, late.waited.as_secs_f64(), place, late.timeout.as_secs_f64())
}

/// Have `teller()` called, in the main thread, whenever there is something to take.
#[pyfunction]
fn mman_tell_late(teller: Py<PyAny>) {
    TELLER.store(teller.into_ptr(), Ordering::Release); // once, at import
}

/// The system calls that ended so and were not taken yet.
#[pyfunction]
fn mman_take_late() -> Vec<LateLine> {
    mman::current().map(|mman| mman.take_late().iter().map(late_line).collect()).unwrap_or_default()
}

/// On the pump's thread.
fn ask_python() {
    // SAFETY: may be called from any thread and without the GIL; the function is a plain one. Where the queue is full, what
    // was noted is taken with the next.
    let _ = unsafe { pyo3::ffi::Py_AddPendingCall(Some(tell), std::ptr::null_mut()) };
}

/// In the main thread, between two instructions of Python.
extern "C" fn tell(_: *mut std::ffi::c_void) -> std::ffi::c_int {
    // SAFETY: pending calls run with the GIL held.
    let py = unsafe { Python::assume_attached() };
    let teller = TELLER.load(Ordering::Acquire);
    if !teller.is_null() {
        // SAFETY: the GIL is held; the reference was leaked by `mman_tell_late`.
        let told = unsafe { Borrowed::from_ptr(py, teller) }.call0();
        // Whatever runs just now has nothing to do with it.
        told.map(drop).unwrap_or_else(|error| error.write_unraisable(py, None));
    }
    0
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    late::set_hooks(helper::ask_for_gil, helper::gil_was_had, ask_python);
    module.add_function(wrap_pyfunction!(mman_tell_late, module)?)?;
    module.add_function(wrap_pyfunction!(mman_take_late, module)?)
}
