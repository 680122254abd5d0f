//! Faults that ended because nobody answered in time, for people. A touch is told by an exception that says so; a system
//! call says no more than EFAULT, so the language above is asked to say it beside it.
//!
//! *Locks*: `Mman::late`, for a few instructions. *Threads*: the pump notes, the language above takes.

use crate::mman::Mman;
use crate::mman::descriptor::Waiting;
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
    /// The same, and nobody could have the language's lock: a server that is written in it cannot have run.
    SystemCallWithLock,
}

/// One fault that ended so.
#[derive(Clone, Copy, Debug)]
pub struct TimedOut {
    /// Exact address.
    pub address: usize,
    /// The kernel's number of the thread.
    pub thread: i32,
    /// How long it waited.
    pub waited: Duration,
    /// What it was doing.
    pub place: Where,
}

impl TimedOut {
    /// That `waiting` is late `now`.
    #[must_use]
    pub fn of(waiting: &Waiting, now: Instant, place: Where) -> Self {
        let waited = now.duration_since(waiting.since);
        Self { address: waiting.address, thread: waiting.thread, waited, place }
    }
}

/// Can the language's lock be had, or does somebody keep it?
pub type IsLockFree = fn() -> bool;
/// Something was noted: take it when it is safe to. Must not wait.
pub type Tell = fn();
static IS_LOCK_FREE: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());
static TELL: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());

/// The language above tells how it is asked.
pub fn set_hooks(is_lock_free: IsLockFree, tell: Tell) {
    IS_LOCK_FREE.store(is_lock_free as *mut (), Ordering::Release);
    TELL.store(tell as *mut (), Ordering::Release);
}

/// Ask for the lock; without a language above there is none.
pub(super) fn is_lock_free() -> bool {
    let ask = IS_LOCK_FREE.load(Ordering::Acquire);
    // SAFETY: null, or an `IsLockFree` that `set_hooks` stored.
    ask.is_null() || unsafe { std::mem::transmute::<*mut (), IsLockFree>(ask)() }
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
