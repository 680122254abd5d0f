//! Entering Python from the engine, and what becomes of a thread that is inside when the interpreter ends.
//!
//! Before 3.14 CPython ends every other thread that wants the GIL while it is finalized, by `pthread_exit`: the stack is unwound,
//! through frames of ours too, which would run destructors without the GIL and stop the process. Such a thread sleeps for good
//! instead, as it does in 3.14, and the process exits as it would have without it.
//!
//! *Locks*: none. *Threads*: any, in a touch too.

use crate::gil::is_finalizing;
use pyo3::ffi;
use pyo3::prelude::*;
use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};

/// Make the calling thread, which is none of Python's, known to it for good. The interpreter ends threads that it knows when they
/// want the GIL too late; one that came with a new thread state at that moment would find what is freed already.
pub fn stay_known() {
    if is_finalizing() {
        return;
    }
    // SAFETY: the interpreter runs. The state is not given back: the thread keeps it, without the GIL.
    unsafe {
        ffi::PyGILState_Ensure();
        ffi::PyEval_SaveThread();
    }
}

/// Call `work` with the GIL, which is waited for; `None` where there is no interpreter any more.
pub fn enter<T>(work: impl FnOnce(Python<'_>) -> T) -> Option<T> {
    Python::try_attach(|py| sheltered(|| work(py)))
}

/// Call `work` with the GIL in the thread that finalizes the interpreter, where `enter` takes it for gone.
pub fn with_gil_at_the_end(work: impl FnOnce()) {
    // SAFETY: that thread has a thread state until the process exits, and no Python runs after the interpreter is gone.
    unsafe {
        let state = ffi::PyGILState_Ensure();
        work();
        ffi::PyGILState_Release(state);
    }
}

/// Call `work`, which calls Python code: should the interpreter end this thread in there, the thread stays where it is.
pub fn sheltered<T>(work: impl FnOnce() -> T) -> T {
    let _shelter = Shelter::raise();
    work()
}

/// What the C library calls when a thread that is ended leaves a frame: `struct _pthread_cleanup_buffer` of glibc, `struct
/// __ptcb` of musl (which has no third field).
#[repr(C)]
struct Cleanup {
    routine: extern "C" fn(*mut c_void),
    argument: *mut c_void,
    rest: [*mut c_void; 2],
}

unsafe extern "C" {
    fn _pthread_cleanup_push(buffer: *mut Cleanup, routine: extern "C" fn(*mut c_void), argument: *mut c_void);
    fn _pthread_cleanup_pop(buffer: *mut Cleanup, execute: c_int);
}

/// On the heap on purpose: the C library tells by its address which frame it belongs to, and what lies in no frame belongs to the
/// one that is left first. So no destructor of anybody's has run before the thread is put to sleep.
struct Shelter(Box<UnsafeCell<Cleanup>>);

impl Shelter {
    fn raise() -> Self {
        let null = std::ptr::null_mut();
        let shelter = Self(Box::new(UnsafeCell::new(Cleanup { routine: stay, argument: null, rest: [null; 2] })));
        // SAFETY: the buffer stays where it is until `drop` takes it off, in the same thread and in the reverse order: shelters
        // are made by `sheltered` alone, whose frames are nested.
        unsafe { _pthread_cleanup_push(shelter.0.get(), stay, null) };
        shelter
    }
}

impl Drop for Shelter {
    fn drop(&mut self) {
        // SAFETY: pushed by `raise`, and nothing of what was pushed later is left.
        unsafe { _pthread_cleanup_pop(self.0.get(), 0) };
    }
}

/// Never returns once the interpreter ends; a thread that the application ends itself goes on.
extern "C" fn stay(_: *mut c_void) {
    while is_finalizing() {
        // SAFETY: waits for a signal, and has no preconditions.
        unsafe { libc::pause() };
    }
}
