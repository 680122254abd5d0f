//! Faults that ended because nobody answered in time, for people. A touch is told by an exception that says so; a system
//! call says no more than EFAULT, so the language above is asked to say it beside it.
//!
//! *Locks*: `Mman::late`, for a few instructions. *Threads*: the pump notes, the language above takes.

use crate::mman::Mman;
use crate::mman::waiting::Waiting;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a thread was doing when its time was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// A load or store: an exception tells it.
    UserCode,
    /// A system call: EFAULT.
    SystemCall,
    /// The same, and nobody could have the language's lock meanwhile: a server that is written in it cannot have run.
    SystemCallWithLock,
}

/// One fault that ended so.
#[derive(Clone, Copy, Debug)]
pub struct TimedOut {
    /// Exact address.
    pub address: usize,
    /// The kernel's number of the thread.
    pub thread: i32,
    /// How long it waited...
    pub waited: Duration,
    /// ...and how long it was allowed to.
    pub timeout: Duration,
    /// What it was doing.
    pub place: Where,
}

impl TimedOut {
    /// That `waiting` is late `now`.
    #[must_use]
    pub fn of(waiting: &Waiting, now: Instant, timeout: Duration, place: Where) -> Self {
        let waited = now.duration_since(waiting.since);
        Self { address: waiting.address, thread: waiting.thread, waited, timeout, place }
    }
}

/// Ask for the language's lock, once, in another thread; answers a ticket at once.
pub type AskForLock = fn() -> u64;
/// Has it been had since?
pub type WasHad = fn(ticket: u64) -> bool;
/// Something was noted: take it when it is safe to. Must not wait.
pub type Tell = fn();
static ASK: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());
static WAS_HAD: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());
static TELL: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());

/// The language above tells how it is asked.
pub fn set_hooks(ask: AskForLock, was_had: WasHad, tell: Tell) {
    WAS_HAD.store(was_had as *mut (), Ordering::Release);
    ASK.store(ask as *mut (), Ordering::Release);
    TELL.store(tell as *mut (), Ordering::Release);
}

/// Ask for the lock; without a language above there is none.
pub(super) fn ask_for_lock() -> u64 {
    let ask = ASK.load(Ordering::Acquire);
    // SAFETY: null, or an `AskForLock` that `set_hooks` stored.
    if ask.is_null() { 0 } else { unsafe { std::mem::transmute::<*mut (), AskForLock>(ask)() } }
}

/// Whoever runs code of the language above for this long without a pause has given up the lock many times, if asked.
const IS_KEPT: Duration = Duration::from_millis(200);

/// Has the lock been asked for, long ago, because of this fault, and could nobody have it since?
pub(super) fn is_lock_kept(waiting: &Waiting, now: Instant) -> bool {
    let was_had = WAS_HAD.load(Ordering::Acquire);
    let Some((asked, ticket)) = waiting.asked.filter(|_| !was_had.is_null()) else { return false };
    // SAFETY: a `WasHad` that `set_hooks` stored.
    now.duration_since(asked) >= IS_KEPT && !unsafe { std::mem::transmute::<*mut (), WasHad>(was_had)(ticket) }
}

/// More than this is not kept for somebody who never takes it.
const KEPT: usize = 64;

impl Mman {
    fn late(&self) -> MutexGuard<'_, Vec<TimedOut>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keep one of a system call.
    pub(super) fn note_late(&self, one: TimedOut) {
        let mut late = self.late();
        if one.place != Where::UserCode && late.len() < KEPT {
            late.push(one);
        }
    }

    /// Have them taken, if there are any.
    pub(super) fn tell_late(&self) {
        let tell = TELL.load(Ordering::Acquire);
        if !self.late().is_empty() && !tell.is_null() {
            // SAFETY: a `Tell` that `set_hooks` stored.
            unsafe { std::mem::transmute::<*mut (), Tell>(tell)() };
        }
    }

    /// System calls that ended in EFAULT and nobody was told of.
    #[must_use]
    pub fn take_late(&self) -> Vec<TimedOut> {
        std::mem::take(&mut *self.late())
    }
}
