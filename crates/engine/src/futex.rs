//! Wait on a word and wake its waiters. Plain system calls: a signal handler may use them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
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

/// Rings when the keeper should look: a page failed, a deadline was set that comes before its [`ALARM`].
pub static ATTENTION: Bell = Bell::new();

/// When the keeper wakes by itself. Faults that wait for each other set a deadline each time, nearly always a later one:
/// waking it for them took a hundredth of a scan's time.
pub static ALARM: Alarm = Alarm(AtomicU64::new(u64::MAX));

/// A time on the monotonic clock, nanoseconds; all ones: not set, or its owner is awake.
pub struct Alarm(AtomicU64);

impl Alarm {
    /// Its owner looks around: whoever has something new must ring.
    pub fn clear(&self) {
        self.0.store(u64::MAX, Ordering::SeqCst);
    }

    /// Its owner goes to sleep for so long, at most.
    pub fn set(&self, limit: Option<Duration>) {
        let at = limit.map_or(u64::MAX, |limit| now_ns().saturating_add(nanoseconds(limit)));
        self.0.store(at, Ordering::SeqCst);
    }

    /// Is that too late for something due in so long?
    #[must_use]
    pub fn is_later_than(&self, due: Duration) -> bool {
        self.0.load(Ordering::SeqCst) > now_ns().saturating_add(nanoseconds(due))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX - 1)
}

/// Nanoseconds of the monotonic clock; a plain call, safe in handlers.
#[must_use]
pub fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills our timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
