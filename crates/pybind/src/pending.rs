//! The exception that a thread is about to raise: set from here, raised by the interpreter when it looks (law 4; recipe:
//! docs/facts.md, A failed page as an exception).
//!
//! *Locks*: none. *GIL*: held by whoever sets one. *Threads*: any, in signal handlers too.

use crate::errors;
use crate::gil::ident;
use crate::kept;
use engine::cause::Kind;
use engine::latch::Why;
use pyo3::ffi;
use pyo3::prelude::*;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// The exception of each [`Kind`], kept alive for good.
static CLASSES: [AtomicPtr<ffi::PyObject>; 3] = [const { AtomicPtr::new(std::ptr::null_mut()) }; 3];
/// What a thread is told to raise for it: a class whose instances are made by [`crate::surface`]. Kept alive too.
static SURFACING: [AtomicPtr<ffi::PyObject>; 3] = [const { AtomicPtr::new(std::ptr::null_mut()) }; 3];
/// The main thread, which raises for threads that Python does not know.
static MAIN_THREAD: AtomicU64 = AtomicU64::new(0);

/// At import, with the ident of the main thread (whoever imports).
pub fn find_classes(py: Python<'_>, main_thread: u64) -> PyResult<()> {
    MAIN_THREAD.store(main_thread, Ordering::Release);
    for (kind, name) in [(Kind::Page, "PageError"), (Kind::Purged, "PagePurged"), (Kind::UserFault, "UserFault")] {
        let class = errors::module(py)?.getattr(name)?;
        let surfacing = errors::module(py)?.call_method1("surfacing", (&class,))?;
        SURFACING[kind as usize].store(surfacing.unbind().into_ptr(), Ordering::Release);
        CLASSES[kind as usize].store(class.unbind().into_ptr(), Ordering::Release);
    }
    Ok(())
}

/// The ident of the main thread.
pub fn main_thread() -> u64 {
    MAIN_THREAD.load(Ordering::Acquire)
}

/// Is this the main thread, which alone runs handlers of signals?
pub fn is_main() -> bool {
    ident() == main_thread()
}

/// The exception that `kind` becomes.
pub fn class_of(kind: Kind) -> *mut ffi::PyObject {
    CLASSES[kind as usize].load(Ordering::Acquire)
}

/// What a thread is told to raise, to be given that exception.
pub fn surfacing_of(kind: Kind) -> *mut ffi::PyObject {
    SURFACING[kind as usize].load(Ordering::Acquire)
}

/// Have the calling thread raise what its latch tells, or `kind` where there was no latch left.
///
/// # Safety
/// The calling thread holds the GIL.
pub unsafe fn set(kind: Kind, why: Why) {
    // SAFETY: as the caller promises.
    let py = unsafe { Python::assume_attached() };
    let itself = engine::latch::pending().and_then(|failure| kept::itself_of(py, failure.error.cause));
    if itself.is_some() && is_main() && why == Why::FailedAgain(kind) {
        return; // its pending call comes: one is enough
    }
    // SAFETY: as the caller promises.
    unsafe { set_in(ident(), surfacing_of(kind), itself.as_ref()) };
}

/// Raise in `thread` the exception `class`, or `itself`, what a source raised to end the process.
///
/// # Safety
/// The GIL is held, and the classes live during the call.
pub unsafe fn set_in(thread: u64, class: *mut ffi::PyObject, itself: Option<&Py<PyAny>>) {
    // CPython 3.11 makes an exit of status 0 of a SystemExit that is only a class; a pending call raises the object, but in the
    // main thread only.
    if itself.is_some() && thread == main_thread() {
        // SAFETY: may be called from any thread.
        let is_asked = unsafe { ffi::Py_AddPendingCall(Some(raise_itself), std::ptr::null_mut()) } == 0;
        if is_asked {
            return;
        }
    }
    // SAFETY: the GIL is held; the class lives during the call, which takes a reference of its own. A thread that ended meanwhile
    // is not found: fine.
    unsafe { ffi::PyThreadState_SetAsyncExc(thread as _, itself.map_or(class, Py::as_ptr)) };
}

/// Raise what a source raised to end the process, unless it has surfaced elsewhere.
extern "C" fn raise_itself(_: *mut std::ffi::c_void) -> std::ffi::c_int {
    // SAFETY: pending calls run with the GIL held.
    let py = unsafe { Python::assume_attached() };
    let Some(failure) = engine::latch::pending() else { return 0 };
    let Some(class) = kept::itself_of(py, failure.error.cause) else { return 0 };
    match class.call0(py) {
        Ok(value) => PyErr::from_value(value.into_bound(py)).restore(py),
        Err(problem) => problem.restore(py),
    }
    -1
}
