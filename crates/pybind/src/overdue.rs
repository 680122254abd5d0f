//! A Python source that runs in the touching thread for too long is interrupted as Ctrl-C would: TimeoutError is raised in it, as
//! soon as it comes to an instruction of Python. What hangs in one call of C is not reached, as by Ctrl-C in any thread but
//! the main one.
//!
//! *Locks*: `CALLS`, for a few instructions, by callers with the GIL and by the helper with and without it.
//! *GIL*: whoever ends a call, and whoever interrupts it, holds the GIL: an exception never hits what comes after the call.

use crate::enter::enter;
use crate::gil;
use pyo3::exceptions::PyTimeoutError;
use pyo3::ffi;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

struct Call {
    number: u64,
    thread: u64,
    due: Instant,
    interrupted: bool,
}

struct Calls {
    next: u64,
    open: Vec<Call>,
}

static CALLS: Mutex<Calls> = Mutex::new(Calls { next: 0, open: Vec::new() });
/// Does the helper look every now and then? Then a call need not wake it.
static LOOKING: AtomicBool = AtomicBool::new(false);
/// How late an interrupt may be.
const TICK: Duration = Duration::from_millis(100);
/// A limit beyond this is none.
const LONGEST: Duration = Duration::from_secs(1 << 24);

fn calls() -> MutexGuard<'static, Calls> {
    CALLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A call of a source by the thread that touched, until it is dropped, with the GIL held.
pub struct Watched(Option<u64>);

/// Begin.
pub fn watch(limit: Duration) -> Watched {
    if limit > LONGEST {
        return Watched(None);
    }
    let mut calls = calls();
    let number = calls.next;
    calls.next += 1;
    calls.open.push(Call { number, thread: gil::ident(), due: Instant::now() + limit, interrupted: false });
    drop(calls);
    if !LOOKING.swap(true, Ordering::SeqCst) {
        gil::HELPER.ring();
    }
    Watched(Some(number))
}

impl Watched {
    /// The call is over; true: it was interrupted, or was about to be.
    pub fn end(mut self) -> bool {
        self.take()
    }

    fn take(&mut self) -> bool {
        let Some(number) = self.0.take() else { return false };
        let mut calls = calls();
        let index = calls.open.iter().position(|call| call.number == number);
        let interrupted = index.is_some_and(|index| calls.open.swap_remove(index).interrupted);
        drop(calls);
        if interrupted {
            // SAFETY: the GIL is held; NULL takes back what has not surfaced.
            unsafe { ffi::PyThreadState_SetAsyncExc(gil::ident() as _, std::ptr::null_mut()) };
        }
        interrupted
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.take();
    }
}

/// How long the helper may sleep; `None`: until it is woken.
pub fn tick() -> Option<Duration> {
    LOOKING.load(Ordering::SeqCst).then_some(TICK)
}

/// The helper's look at what is due.
pub fn look() {
    let now = Instant::now();
    let is_due = |call: &Call| call.due <= now && !call.interrupted;
    let open = calls();
    let due = open.open.iter().any(is_due);
    if open.open.is_empty() {
        LOOKING.store(false, Ordering::SeqCst); // under the lock: a call that begins now sets it again, and rings
    }
    drop(open);
    if due {
        enter(|py| {
            let class = py.get_type::<PyTimeoutError>();
            for call in calls().open.iter_mut().filter(|call| is_due(call)) {
                call.interrupted = true;
                // SAFETY: the GIL is held, so the call goes on; the class is never freed.
                unsafe { ffi::PyThreadState_SetAsyncExc(call.thread as _, class.as_ptr()) };
            }
        });
    }
}
