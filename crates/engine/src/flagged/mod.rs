//! Memory of the caller's that can fault (the 2014 interface), as a signal handler sees it. The calls are in `mman`.
//!
//! ```text
//! gate   changes of who gets the faults, and those who must not meet one half-way
//! view   address -> who gets its faults, without a lock
//! fork   what a forked child gets of it
//! ```

pub mod fork;
pub mod gate;
pub mod view;

use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// What the language above is asked to do in the touching thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Called {
    /// The resolver came back.
    Returned,
    /// It raised; the exception is kept for the `UserFault` of this thread.
    Raised,
    /// The language's lock could not be had in time.
    TooLate,
}

/// Calls the resolver behind a token for an address, in the calling thread, inside its SIGBUS handler.
pub type Call = fn(token: usize, address: usize) -> Called;
static CALL: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());

/// The language above tells how resolvers are called.
pub fn set_call(call: Call) {
    CALL.store(call as *mut (), Ordering::Release);
}

/// Call a resolver; without a language above nobody can be called.
#[must_use]
pub fn call(token: usize, address: usize) -> Called {
    let call = CALL.load(Ordering::Acquire);
    if call.is_null() {
        return Called::TooLate;
    }
    // SAFETY: `set_call` stored a `Call`, and it was seen non-null.
    let call = unsafe { std::mem::transmute::<*mut (), Call>(call) };
    call(token, address)
}

/// Faults at addresses that nobody knows, until the second of the same thread at the same address: the first may be older
/// than a change that has answered it.
const SLOTS: usize = 256;
struct Slot {
    thread: AtomicU32,
    address: AtomicUsize,
    times: AtomicU32,
}
static LAST: [Slot; SLOTS] =
    [const { Slot { thread: AtomicU32::new(0), address: AtomicUsize::new(0), times: AtomicU32::new(0) } }; SLOTS];

/// Has this thread faulted at this very address just before?
#[must_use]
pub fn is_repeated(thread: i32, address: usize) -> bool {
    repeats(thread, address) > 0
}

/// How often in a row has this thread faulted at this very address just before?
#[must_use]
pub fn repeats(thread: i32, address: usize) -> u32 {
    let slot = &LAST[thread as usize % SLOTS];
    let thread = thread.cast_unsigned();
    let same = slot.thread.swap(thread, Ordering::Relaxed) == thread;
    if slot.address.swap(address, Ordering::Relaxed) == address && same {
        return slot.times.fetch_add(1, Ordering::Relaxed).saturating_add(1);
    }
    slot.times.store(0, Ordering::Relaxed);
    0
}

/// Is the memory at a page of a region still that which was flagged? Memory of the caller's may be unmapped at any time, and
/// something else stand there.
pub type StillThere = fn(region: u64, address: usize) -> bool;
static STILL_THERE: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());

/// Tell who knows.
pub fn set_still_there(still_there: StillThere) {
    STILL_THERE.store(still_there as *mut (), Ordering::Release);
}

/// Ask; engine threads that are not inside the gate.
#[must_use]
pub fn is_still_there(region: u64, address: usize) -> bool {
    let known = STILL_THERE.load(Ordering::Acquire);
    if known.is_null() {
        return false;
    }
    // SAFETY: `set_still_there` stored a `StillThere`, and it was seen non-null.
    let still_there = unsafe { std::mem::transmute::<*mut (), StillThere>(known) };
    still_there(region, address)
}

/// A mapping may have grown into addresses that the view does not know yet: the keeper looks, on its own thread.
static WANTED: AtomicU64 = AtomicU64::new(0);
static LOOKED: AtomicU64 = AtomicU64::new(0);
static LOOK: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());

/// Tell what looks for growth. Called by the keeper only.
pub fn set_look(look: fn()) {
    LOOK.store(look as *mut (), Ordering::Release);
}

/// Have the keeper look, and wait for it at most a second.
pub fn ask_for_a_look() {
    let ticket = WANTED.fetch_add(1, Ordering::SeqCst) + 1;
    crate::futex::ATTENTION.ring();
    for _ in 0..1000 {
        if LOOKED.load(Ordering::SeqCst) >= ticket {
            return;
        }
        // SAFETY: sleeps for a millisecond; safe in a handler.
        unsafe { libc::usleep(1000) };
    }
}

/// The keeper's part.
pub fn look_if_asked() {
    let wanted = WANTED.load(Ordering::SeqCst);
    let look = LOOK.load(Ordering::Acquire);
    if LOOKED.load(Ordering::SeqCst) < wanted && !look.is_null() {
        // SAFETY: `set_look` stored a `fn()`, and it was seen non-null.
        unsafe { std::mem::transmute::<*mut (), fn()>(look)() };
        LOOKED.store(wanted, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_repeated_when_the_same_thread_comes_back_at_once() {
        assert!(!is_repeated(700_001, 4096));
        assert!(is_repeated(700_001, 4096));
        assert!(!is_repeated(700_001, 8192));
        assert!(!is_repeated(700_001, 4096));
    }
}
