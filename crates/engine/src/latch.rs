//! Threads with a `PageError` on its way: until it has surfaced, every further failing touch of theirs is answered at once.
//!
//! *Locks*: none: everything here runs in signal handlers. *Threads*: any; a latch is opened by its own thread, or by age.

use crate::cause::Kind;
use crate::failure::{EMPTY, Failure};
use crate::futex::now_ns;
use crate::nest;
use crate::reserve;
use crate::shared;
use crate::source::Cause;
use crate::threads::thread_id;
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// What the language above shall do in the calling thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Raise.
    Failed(Kind),
    /// It was asked a moment ago: repeat what is free.
    FailedAgain(Kind),
    /// Ctrl-C raises by itself: call [`take`] once it has, so that the thread's touches wait again.
    Interrupted,
    /// Ctrl-C is still on its way.
    Nothing,
}

/// Threads with an error that was raised and has not surfaced yet.
const LATCHES: usize = shared::LATCHES;
/// A latch that was not touched for this long is over: its exception was swallowed, or its thread is gone.
pub const LATCH_LIFE: Duration = Duration::from_secs(1);
/// How soon the language above is asked again for a thread that does not hold its lock.
const ASK_AGAIN: Duration = Duration::from_millis(200);

struct Latch {
    thread: AtomicI32,
    touched_ns: AtomicU64,
    asked_ns: AtomicU64,
    failure: UnsafeCell<Failure>,
}

// SAFETY: `failure` is written and read by the latch's own thread only (`thread` says whose it is).
unsafe impl Sync for Latch {}

static TABLE: [Latch; LATCHES] = [const {
    Latch {
        thread: AtomicI32::new(0),
        touched_ns: AtomicU64::new(0),
        asked_ns: AtomicU64::new(0),
        failure: UnsafeCell::new(EMPTY),
    }
}; LATCHES];
/// How many latches are set: nobody searches while it is 0.
static LATCHED: AtomicU32 = AtomicU32::new(0);

/// The table is written while a page fails: see [`crate::failure::make_room`].
pub fn make_room() {
    reserve::make_own(&TABLE);
}

fn latch_of(thread: i32) -> Option<&'static Latch> {
    if LATCHED.load(Ordering::Acquire) == 0 {
        return None;
    }
    TABLE.iter().find(|latch| latch.thread.load(Ordering::Acquire) == thread)
}

/// Does this thread have an error on its way? Then further failing touches of it are answered at once.
#[must_use]
pub fn is_latched(thread: i32) -> bool {
    latch_of(thread).is_some_and(|latch| {
        let age = now_ns().saturating_sub(latch.touched_ns.load(Ordering::Acquire));
        // Where a source touched, whoever called it looks once it has returned.
        if age > LATCH_LIFE.as_nanos() as u64 && !nest::is_running(thread) {
            release(latch, thread);
            return false;
        }
        true
    })
}

/// The same of the calling thread; without a system call while no thread is latched.
#[must_use]
pub fn is_this_latched() -> bool {
    LATCHED.load(Ordering::Acquire) > 0 && is_latched(thread_id())
}

fn release(latch: &Latch, thread: i32) {
    if latch.thread.compare_exchange(thread, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
        LATCHED.fetch_sub(1, Ordering::AcqRel);
        tell_pagers(latch, 0, 0);
    }
}

/// Pagers answer touches of latched threads at once, too.
fn tell_pagers(latch: &Latch, thread: i32, now: u64) {
    if let Some(place) = TABLE.iter().position(|known| std::ptr::eq(known, latch)) {
        shared::for_each_header(|header| header.latch(place, thread, now));
    }
}

/// Latch the calling thread; how the language above is to raise.
pub(crate) fn set(failure: Failure) -> Why {
    let thread = thread_id();
    let now = now_ns();
    if let Some(latch) = latch_of(thread) {
        latch.touched_ns.store(now, Ordering::Release);
        tell_pagers(latch, thread, now);
        let ask = now.saturating_sub(latch.asked_ns.load(Ordering::Relaxed)) > ASK_AGAIN.as_nanos() as u64;
        if ask {
            latch.asked_ns.store(now, Ordering::Relaxed);
        }
        // SAFETY: the latch is this thread's, so nobody else writes it.
        let first = unsafe { latch.failure.get().read_volatile() };
        return match first.error.cause {
            Cause::Interrupted => Why::Nothing,
            _ if ask => Why::Failed(first.kind),
            _ => Why::FailedAgain(first.kind),
        };
    }
    let free =
        TABLE.iter().find(|latch| latch.thread.compare_exchange(0, -1, Ordering::AcqRel, Ordering::Relaxed).is_ok());
    if let Some(latch) = free {
        // SAFETY: -1 marks the latch as ours alone until the thread id is stored.
        unsafe { latch.failure.get().write_volatile(failure) };
        latch.touched_ns.store(now, Ordering::Relaxed);
        latch.asked_ns.store(now, Ordering::Relaxed);
        latch.thread.store(thread, Ordering::Release);
        tell_pagers(latch, thread, now);
        LATCHED.fetch_add(1, Ordering::AcqRel);
    }
    if failure.error.cause == Cause::Interrupted { Why::Interrupted } else { Why::Failed(failure.kind) }
}

/// The language above was asked for the calling thread just now.
pub(crate) fn note_asked() {
    if let Some(latch) = latch_of(thread_id()) {
        latch.asked_ns.store(now_ns(), Ordering::Relaxed);
    }
}

/// The calling thread's error has surfaced (or is not wanted any more): what it was, and the latch is open again.
pub fn take() -> Option<Failure> {
    let thread = thread_id();
    let latch = latch_of(thread)?;
    // SAFETY: the latch is this thread's, so nobody else writes it.
    let failure = unsafe { latch.failure.get().read_volatile() };
    release(latch, thread);
    Some(failure)
}

/// What the calling thread's error is, if one is on its way.
#[must_use]
pub fn pending() -> Option<Failure> {
    // SAFETY: the latch is this thread's, so nobody else writes it.
    latch_of(thread_id()).map(|latch| unsafe { latch.failure.get().read_volatile() })
}

/// Has another thread an exception on its way?
#[must_use]
pub fn another_is_latched() -> bool {
    let (mine, now) = (thread_id(), now_ns());
    let young =
        |latch: &Latch| now.saturating_sub(latch.touched_ns.load(Ordering::Acquire)) < LATCH_LIFE.as_nanos() as u64;
    let other = |latch: &Latch| !matches!(latch.thread.load(Ordering::Acquire), 0 | -1) && young(latch);
    LATCHED.load(Ordering::Acquire) > 0
        && TABLE.iter().any(|latch| other(latch) && latch.thread.load(Ordering::Acquire) != mine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::SourceError;

    #[test]
    fn a_latch_is_of_one_thread_and_opens_once() {
        let failure =
            Failure { kind: Kind::Page, region: 78, address: 4096, error: SourceError::new(5, Cause::Corrupt) };
        assert_eq!(set(failure), Why::Failed(Kind::Page));
        assert_eq!(set(failure), Why::FailedAgain(Kind::Page), "asked a moment ago");
        assert!(is_latched(thread_id()));
        let other = std::thread::spawn(|| (is_latched(thread_id()), take().is_none())).join().unwrap();
        assert_eq!(other, (false, true));
        assert_eq!(take().unwrap().error.offset, 5);
        assert!(take().is_none());
    }
}
