//! Those who wait at a descriptor for longer than they are to, and those who did.
//!
//! *Locks*: the descriptor's state, for a few instructions. *Threads*: the pump takes them out, anybody asks.

use super::Descriptor;
use crate::mman::late::TimedOut;
use crate::mman::waiting::Waiting;
use crate::source::Table;
use std::time::{Duration, Instant};

/// How many faults that ended by the timeout are remembered.
const KEPT: usize = 16;

impl Descriptor {
    /// Take out those who have waited for too long, and `ask` for the language's lock because of those who may be late soon.
    #[must_use]
    pub fn take_late(&self, now: Instant, ask: impl FnOnce() -> u64) -> Vec<Waiting> {
        let Some(timeout) = self.timeout else { return vec![] };
        let mut state = self.state();
        let taken = state.waiters.take(|waiting| now.duration_since(waiting.since) >= timeout);
        if !taken.is_empty() {
            state.show(Table::Engine);
        }
        state.waiters.ask(now, asked_after(timeout), ask);
        taken
    }

    /// Remember one of those, for whoever asks.
    pub fn keep_late(&self, late: TimedOut) {
        let mut state = self.state();
        state.timeouts += 1;
        if state.late.len() == KEPT {
            state.late.pop_front();
        }
        state.late.push_back(late);
    }

    /// The newest faults that ended by the timeout, oldest first.
    #[must_use]
    pub fn late(&self) -> Vec<TimedOut> {
        self.state().late.iter().copied().collect()
    }

    /// When somebody will have waited for too long, or long enough for a question.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let timeout = self.timeout?;
        self.state().waiters.next_deadline(asked_after(timeout), timeout)
    }
}

/// Somebody who waits for so long may be late: it is then found out whether the language's lock can be had.
fn asked_after(timeout: Duration) -> Duration {
    (timeout / 4).min(Duration::from_secs(1))
}
