//! The language above and its lock (law 1). The engine never takes that lock; a thread that may hold it gives it up before it
//! waits, where it runs code of that language in the middle of a touch.
//!
//! *Locks*: none of ours. *Threads*: application threads, in signal handlers too. *Blocks on*: [`without_lock`] for the lock.

use crate::interrupt;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::{Duration, Instant};

/// What the language tells of its lock.
pub struct Hooks {
    /// Does the calling thread hold it?
    pub holds_lock: fn() -> bool,
    /// Call `work` with the lock given up; the calling thread holds it.
    pub without_lock: fn(work: &mut dyn FnMut()),
    /// Can the calling thread, which does not hold it, have it within this time, or does its holder wait for the caller? In
    /// signal handlers too.
    pub can_be_had: fn(limit: Duration) -> bool,
}

static HOOKS: AtomicPtr<Hooks> = AtomicPtr::new(std::ptr::null_mut());

/// The language tells, once.
pub fn set_hooks(hooks: &'static Hooks) {
    HOOKS.store(std::ptr::from_ref(hooks).cast_mut(), Ordering::Release);
}

fn hooks() -> Option<&'static Hooks> {
    // SAFETY: the pointer is null or came from a static reference.
    unsafe { HOOKS.load(Ordering::Acquire).as_ref() }
}

/// Does the calling thread hold the language's lock?
#[must_use]
pub fn holds_lock() -> bool {
    hooks().is_some_and(|hooks| (hooks.holds_lock)())
}

/// Has the calling thread the lock, or can it have it within `limit`?
#[must_use]
pub fn may_have_lock(limit: Duration) -> bool {
    hooks().is_some_and(|hooks| (hooks.holds_lock)() || (hooks.can_be_had)(limit))
}

/// Call `work`, which may wait, without the language's lock.
pub fn without_lock<T>(work: impl FnOnce() -> T) -> T {
    let Some(hooks) = hooks().filter(|hooks| (hooks.holds_lock)()) else { return work() };
    let (mut work, mut answer) = (Some(work), None);
    (hooks.without_lock)(&mut || answer = work.take().map(|work| work()));
    answer.expect("the language calls the work exactly once")
}

/// How soon a pause ends after Ctrl-C.
const SLICE: Duration = Duration::from_millis(50);

/// Sleep, but not on through Ctrl-C, and let others run meanwhile.
pub fn pause(time: Duration) {
    let (began, interrupts) = (Instant::now(), interrupt::count());
    without_lock(|| {
        while began.elapsed() < time && interrupt::count() == interrupts {
            std::thread::sleep(SLICE.min(time.saturating_sub(began.elapsed())));
        }
    });
}
