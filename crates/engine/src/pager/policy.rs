//! What becomes of a region whose pager died.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// As its owner chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDeath {
    /// Another pager takes over; pages that are there stay.
    Restart,
    /// Every page that is not there fails from then on.
    Poison,
    /// The process ends with a line.
    Abort,
}

/// How often a pager may be replaced.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// So many times.
    pub restarts: usize,
    /// In this time.
    pub within: Duration,
}

/// The deaths of late.
#[derive(Debug, Default)]
pub struct Deaths(VecDeque<Instant>);

impl Deaths {
    /// One more; true: the pager may be replaced.
    pub fn note(&mut self, limit: &Limit, now: Instant) -> bool {
        self.0.retain(|before| now.duration_since(*before) < limit.within);
        self.0.push_back(now);
        self.0.len() <= limit.restarts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_deaths_in_so_much_time_are_forgiven() {
        let limit = Limit { restarts: 2, within: Duration::from_secs(60) };
        let (mut deaths, start) = (Deaths::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let forgiven: Vec<bool> = [0, 1, 2, 61, 100].map(|seconds| deaths.note(&limit, at(seconds))).into();
        assert_eq!(forgiven, [true, true, false, true, true]);
    }
}
