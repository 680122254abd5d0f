//! Questions about the GIL that the stable ABI does not answer, and giving it up in the middle of a touch.
//!
//! *Locks*: none. *Threads*: any, in signal handlers too.

use engine::futex::Bell;
use pyo3::ffi;
use std::ffi::CStr;
use std::sync::atomic::{AtomicUsize, Ordering};

/// `_PyThreadState_UncheckedGet`, or its newer name: not in the stable ABI, so looked up at import.
static CURRENT_STATE: AtomicUsize = AtomicUsize::new(0);
/// `PyInterpreterState_Head` and `PyInterpreterState_Next`.
static INTERPRETERS: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

/// Wakes the helper, which takes the GIL for those who must not wait for it.
pub static HELPER: Bell = Bell::new();

/// `_Py_IsFinalizing`, or its newer name.
static IS_FINALIZING: AtomicUsize = AtomicUsize::new(0);

/// At import.
pub fn find_symbols() {
    find(&CURRENT_STATE, &[c"PyThreadState_GetUnchecked", c"_PyThreadState_UncheckedGet"]);
    find(&INTERPRETERS[0], &[c"PyInterpreterState_Head"]);
    find(&INTERPRETERS[1], &[c"PyInterpreterState_Next"]);
    find(&IS_FINALIZING, &[c"Py_IsFinalizing", c"_Py_IsFinalizing"]);
}

/// The first of these names that the running interpreter has; 0: none.
fn find(place: &AtomicUsize, names: &[&CStr]) {
    // SAFETY: looks up a symbol of the running interpreter.
    let address = |name: &&CStr| unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) } as usize;
    place.store(names.iter().map(address).find(|found| *found != 0).unwrap_or(0), Ordering::Release);
}

/// Is the interpreter being finalized, or gone? From this moment on threads that want the GIL are ended, and only the main thread
/// runs Python. Not yet while atexit hooks run: they, and daemon threads beside them, touch as ever.
pub fn is_finalizing() -> bool {
    let lookup = IS_FINALIZING.load(Ordering::Acquire);
    // SAFETY: the symbol has this signature in every CPython from 3.11 on; both only read, and may be called without the GIL.
    unsafe {
        lookup != 0 && std::mem::transmute::<usize, extern "C" fn() -> std::ffi::c_int>(lookup)() != 0
            || ffi::Py_IsInitialized() == 0
    }
}

/// Is there no sub-interpreter, in which a thread may hold the GIL without `holds_gil` seeing it?
pub fn is_only_interpreter() -> bool {
    let [head, next] = INTERPRETERS.each_ref().map(|place| place.load(Ordering::Acquire));
    if head == 0 || next == 0 {
        return false;
    }
    type Interpreter = *mut std::ffi::c_void;
    // SAFETY: the symbols have these signatures in every CPython from 3.11 on; both only read, and the list has a head as long
    // as Python runs.
    unsafe {
        let head = std::mem::transmute::<usize, extern "C" fn() -> Interpreter>(head)();
        !head.is_null() && std::mem::transmute::<usize, extern "C" fn(Interpreter) -> Interpreter>(next)(head).is_null()
    }
}

/// Python's `threading.get_ident()` of the calling thread.
pub fn ident() -> u64 {
    // SAFETY: no preconditions.
    unsafe { libc::pthread_self() as u64 }
}

/// Does this thread hold the GIL? `PyGILState_Check` is no answer: once a sub-interpreter existed it always says yes.
pub fn holds_gil() -> bool {
    let lookup = CURRENT_STATE.load(Ordering::Acquire);
    if lookup == 0 {
        return false;
    }
    // SAFETY: the symbol has this signature in every CPython from 3.11 on; both calls only read.
    unsafe {
        let current = std::mem::transmute::<usize, extern "C" fn() -> *mut ffi::PyThreadState>(lookup)();
        !current.is_null() && current == ffi::PyGILState_GetThisThreadState()
    }
}

/// Call `work` with the GIL given up; the calling thread holds it.
pub fn without_gil(work: &mut dyn FnMut()) {
    // SAFETY: the engine asks for it only in a thread that holds the GIL; the same thread takes it back.
    unsafe {
        let state = ffi::PyEval_SaveThread();
        work();
        ffi::PyEval_RestoreThread(state);
    }
}

/// Has this thread ever run Python?
pub fn known_to_python() -> bool {
    // SAFETY: reads a thread-specific value.
    unsafe { !ffi::PyGILState_GetThisThreadState().is_null() }
}

/// Take back an exception that was set for this thread and has not surfaced, and open its latch. The GIL is held.
pub fn drop_pending() {
    take_back();
    let _ = engine::latch::take();
}

/// Have this thread not raise what was set for it. The GIL is held.
pub fn take_back() {
    // SAFETY: the GIL is held by the caller; NULL clears.
    unsafe { ffi::PyThreadState_SetAsyncExc(ident() as _, std::ptr::null_mut()) };
}
