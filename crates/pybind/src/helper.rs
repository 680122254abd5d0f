//! The thread that takes the GIL for those who must not wait for it: in the middle of a touch, whose thread does not hold it, an
//! exception is raised by this one. It keeps an eye on what is overdue as well.
//!
//! *Locks*: none in who asks. *GIL*: taken by the helper alone. *Blocks on*: who asks waits for an answer, up to a limit.

use crate::enter::{self, enter};
use crate::{gil, kept, overdue, pending, raised};
use engine::error::Error;
use engine::source::Cause;
use engine::threads::Root;
use pyo3::ffi;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const FREE: u32 = 0;
const CLAIMED: u32 = 1;
const ASKED: u32 = 2;
const DONE: u32 = 3;
const ABANDONED: u32 = 4;

struct Request {
    state: AtomicU32,
    thread: AtomicU64,
    /// Whose failure it is: nothing is raised for one that is over.
    latched: AtomicI32,
    /// What to raise there.
    class: AtomicPtr<ffi::PyObject>,
    /// The ticket of what a source raised, which may go on as itself, plus one; 0: none.
    ticket: AtomicU64,
}

static REQUESTS: [Request; 64] = [const {
    Request {
        state: AtomicU32::new(FREE),
        thread: AtomicU64::new(0),
        latched: AtomicI32::new(0),
        class: AtomicPtr::new(std::ptr::null_mut()),
        ticket: AtomicU64::new(0),
    }
}; 64];
/// The process whose helper runs; a forked child has none until it starts its own.
static HELPER_OF: AtomicI32 = AtomicI32::new(0);

/// Can the GIL be had within `limit`, or does its holder wait for the thread that asks? Any thread, in a signal handler.
pub fn gil_can_be_had(limit: Duration) -> bool {
    ask(0, std::ptr::null_mut(), limit)
}

/// How often the helper was asked to take the GIL once, and up to which time it has.
static WANTED: AtomicU64 = AtomicU64::new(0);
static HAD: AtomicU64 = AtomicU64::new(0);

/// Have the helper take the GIL once; answers a ticket at once. Any thread.
pub fn ask_for_gil() -> u64 {
    let ticket = WANTED.fetch_add(1, Ordering::AcqRel) + 1;
    gil::HELPER.ring();
    ticket
}

/// Has it had the GIL since?
pub fn gil_was_had(ticket: u64) -> bool {
    HAD.load(Ordering::Acquire) >= ticket
}

/// True if somebody asked.
fn take_gil_once() -> bool {
    let wanted = WANTED.load(Ordering::Acquire);
    let asked = HAD.load(Ordering::Acquire) < wanted;
    if asked {
        enter(|_| ());
        HAD.store(wanted, Ordering::Release);
    }
    asked
}

/// Have the helper take the GIL and raise `class` in `thread`; without a class it only takes the GIL. True: done.
pub fn ask(thread: u64, class: *mut ffi::PyObject, limit: Duration) -> bool {
    let free =
        |request: &&Request| request.state.compare_exchange(FREE, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    let Some(request) = REQUESTS.iter().find(free) else { return false };
    request.thread.store(thread, Ordering::Relaxed);
    request.latched.store(engine::threads::thread_id(), Ordering::Relaxed);
    request.class.store(class, Ordering::Relaxed);
    request.ticket.store(ticket_of_this_thread(), Ordering::Relaxed);
    request.state.store(ASKED, Ordering::Release);
    gil::HELPER.ring();
    let start = Instant::now();
    while request.state.load(Ordering::Acquire) == ASKED && start.elapsed() < limit && !gil::is_finalizing() {
        engine::futex::wait(&request.state, ASKED, Some(limit));
    }
    let done = request.state.compare_exchange(ASKED, ABANDONED, Ordering::AcqRel, Ordering::Acquire).is_err();
    if done {
        request.state.store(FREE, Ordering::Release);
    }
    done
}

fn ticket_of_this_thread() -> u64 {
    match engine::latch::pending().map(|failure| failure.error.cause) {
        Some(Cause::Raised(raised)) => u64::from(raised.ticket) + 1,
        _ => 0,
    }
}

/// Start the helper of this process, if it does not run. Needs no GIL.
pub fn ensure() -> Result<(), Error> {
    // SAFETY: no preconditions.
    let process = unsafe { libc::getpid() };
    if HELPER_OF.swap(process, Ordering::AcqRel) == process {
        return Ok(());
    }
    for request in &REQUESTS {
        request.state.store(FREE, Ordering::Release);
    }
    let started = Root::get().and_then(|root| root.spawn("userfault-raise", help));
    if started.is_err() {
        HELPER_OF.store(0, Ordering::Release);
    }
    started
}

fn help() {
    enter::stay_known();
    while !gil::is_finalizing() {
        let rung = gil::HELPER.rung();
        // Those who wait for an answer come first.
        if REQUESTS.iter().all(|request| !answer(request)) && !take_gil_once() {
            gil::HELPER.wait(rung, overdue::tick().into_iter().chain(kept::tick()).min());
            overdue::look();
            raised::look();
        }
    }
}

/// True if there was something to do.
fn answer(request: &Request) -> bool {
    let state = request.state.load(Ordering::Acquire);
    if state != ASKED && state != ABANDONED {
        return false;
    }
    let thread = request.thread.load(Ordering::Relaxed);
    let class = request.class.load(Ordering::Relaxed);
    let latched = request.latched.load(Ordering::Relaxed);
    let ticket = request.ticket.load(Ordering::Relaxed).checked_sub(1).and_then(|ticket| u32::try_from(ticket).ok());
    enter(|py| {
        if class.is_null() || !engine::latch::is_latched(latched) {
            return;
        }
        let itself = ticket.and_then(|ticket| kept::itself_under(py, ticket));
        // SAFETY: the GIL is held; exception classes are never freed.
        unsafe { pending::set_in(thread, class, itself.as_ref()) };
    });
    if request.state.compare_exchange(ASKED, DONE, Ordering::AcqRel, Ordering::Acquire).is_err() {
        request.state.store(FREE, Ordering::Release);
    }
    engine::futex::wake_all(&request.state);
    true
}
