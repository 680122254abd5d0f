//! What loom takes the place of: the atomics of the modules whose every order of events is tried (tests/loom_*.rs), and the
//! futex they sleep on. In a build with `--cfg loom` they are loom's; in any other build they are what they are.
//!
//! *Locks*: none. *Threads*: any, handlers too. *Blocks on*: [`wait`].

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

#[cfg(not(loom))]
pub use crate::futex::{wait, wake_all};
#[cfg(loom)]
pub use model::{wait, wake_all};

macro_rules! zeroed {
    ($(#[$doc:meta])* $name:ident, $atomic:ident, $plain:ty) => {
        $(#[$doc])*
        #[cfg(not(loom))]
        #[must_use]
        pub fn $name(count: usize) -> Box<[$atomic]> {
            // A zeroed Vec comes from calloc, which maps fresh pages lazily for large sizes.
            let plain: Box<[$plain]> = vec![0; count].into_boxed_slice();
            // SAFETY: the atomic has the size, alignment and bit validity of the plain integer, and the box is owned.
            unsafe { Box::from_raw(Box::into_raw(plain) as *mut [$atomic]) }
        }

        $(#[$doc])*
        #[cfg(loom)]
        #[must_use]
        pub fn $name(count: usize) -> Box<[$atomic]> {
            (0..count).map(|_| $atomic::new(0)).collect()
        }
    };
}

zeroed!(
    /// So many bytes, zeroed without being touched: a region of a terabyte costs what is used of it.
    zeroed_bytes, AtomicU8, u8
);
zeroed!(
    /// So many words, zeroed without being touched.
    zeroed_words, AtomicU64, u64
);

/// futex(2) as loom sees it: the kernel looks at the word and puts the caller to sleep under the lock that a wake-up takes
/// too. There are no time limits: a lost wake-up is a deadlock, which loom reports.
#[cfg(loom)]
mod model {
    use loom::sync::atomic::{AtomicU32, Ordering};
    use loom::sync::{Condvar, Mutex};
    use std::sync::PoisonError;
    use std::time::Duration;

    loom::lazy_static! {
        static ref BUCKET: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());
    }

    /// Sleep while `*word == expected`, for ever.
    pub fn wait(word: &AtomicU32, expected: u32, _limit: Option<Duration>) {
        let asleep = BUCKET.0.lock().unwrap_or_else(PoisonError::into_inner);
        if word.load(Ordering::Relaxed) == expected {
            drop(BUCKET.1.wait(asleep));
        }
    }

    /// Wake every waiter, of other words too: a waiter looks again in any case.
    pub fn wake_all(_word: &AtomicU32) {
        let _awake = BUCKET.0.lock().unwrap_or_else(PoisonError::into_inner);
        BUCKET.1.notify_all();
    }
}
