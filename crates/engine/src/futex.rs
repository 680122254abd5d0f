//! Wait on a word and wake its waiters. Plain system calls: a signal handler may use them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Sleep while `*word == expected`, at most `limit`. Returns on a wake, a changed word, a signal or the limit alike: the
/// caller looks at its condition again.
pub fn wait(word: &AtomicU32, expected: u32, limit: Option<Duration>) {
    let time = limit.map(|limit| libc::timespec {
        tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(limit.subsec_nanos() as i32),
    });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word outlives the call; the kernel reads the time only during it.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, expected, time);
    }
}

/// Wake every waiter of `word`.
pub fn wake_all(word: &AtomicU32) {
    // SAFETY: the word outlives the call.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, i32::MAX);
    }
}

/// Wake one waiter of `word`.
pub fn wake_one(word: &AtomicU32) {
    // SAFETY: the word outlives the call.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 1);
    }
}

/// A bell: rung from anywhere, signal handlers too; heard by whoever looked at it before.
#[derive(Default)]
pub struct Bell(AtomicU32);

impl Bell {
    /// A bell that never rang.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// How often it rang: pass it to [`Bell::wait`] after looking for work.
    #[must_use]
    pub fn rung(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    /// Ring: wakes one waiter.
    pub fn ring(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        wake_one(&self.0);
    }

    /// Ring: wakes every waiter.
    pub fn ring_all(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        wake_all(&self.0);
    }

    /// Sleep until it rings, if it has not since `rung` was read; at most `limit`.
    pub fn wait(&self, rung: u32, limit: Option<Duration>) {
        wait(&self.0, rung, limit);
    }
}

/// Rings when the keeper should look: a page failed, a deadline was set.
pub static ATTENTION: Bell = Bell::new();
