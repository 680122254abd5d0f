//! How long to try again what is refused for a moment.
//!
//! *Locks*: none. *Threads*: any, resolvers in signal handlers too. *Blocks on*: a sleep of 100 us, after many tries.

use std::time::{Duration, Instant};

/// What is transient is tried again: at first at once, later now and then. It lasts until the pump has read an event, or until somebody
/// has done with a page.
#[derive(Default)]
pub struct Retries {
    tries: u32,
    began: Option<Instant>,
}

impl Retries {
    const AT_ONCE: u32 = 1000;
    const PAUSE_MICROSECONDS: libc::useconds_t = 100;
    /// On a machine where nothing else works either.
    const LIMIT: Duration = Duration::from_secs(10);

    /// Wait a little; false: it has been too long.
    pub fn again(&mut self) -> bool {
        self.tries += 1;
        if self.tries < Self::AT_ONCE {
            std::thread::yield_now();
            return true;
        }
        // SAFETY: sleeps.
        unsafe { libc::usleep(Self::PAUSE_MICROSECONDS) };
        self.began.get_or_insert_with(Instant::now).elapsed() < Self::LIMIT
    }
}
