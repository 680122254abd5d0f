//! Sequential detection: three neighbouring units in a row start it, a window that was used up grows it, a window that
//! came too late shrinks it, and after enough of those it stops for a while.
//!
//! *Locks*: none; races between touchers make a guess worse and nothing else. *Threads*: any, handlers too.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// The memory of one region's access pattern.
pub struct Readahead {
    enabled: bool,
    most: usize,
    last: AtomicUsize,
    streak: AtomicUsize,
    window: AtomicUsize,
    ahead_end: AtomicUsize,
    /// A unit of the present window was touched before it had been filled.
    was_late: AtomicBool,
    /// Windows in a row that were late.
    late: AtomicUsize,
    resting: AtomicUsize,
}

/// Never more than this ahead of the toucher.
const AHEAD_BYTES: usize = 8 << 20;
/// Neighbours in a row before anything is read ahead.
const STREAK: usize = 3;
/// Late windows in a row before it rests, and for how many faults.
const LATE: usize = 4;
const REST: usize = 256;

impl Readahead {
    /// For a region whose source gains from it (`helps`).
    #[must_use]
    pub fn new(helps: bool, unit: usize) -> Self {
        Self {
            enabled: helps,
            most: (AHEAD_BYTES / unit).clamp(2, 64),
            last: AtomicUsize::new(usize::MAX - 1),
            streak: AtomicUsize::new(0),
            window: AtomicUsize::new(0),
            ahead_end: AtomicUsize::new(usize::MAX),
            was_late: AtomicBool::new(false),
            late: AtomicUsize::new(0),
            resting: AtomicUsize::new(0),
        }
    }

    /// A demand fault on `unit` of `units`: what should be read ahead now, if anything.
    pub fn note(&self, unit: usize, units: usize) -> Option<Range<usize>> {
        if !self.enabled || self.rests() {
            return None;
        }
        let last = self.last.swap(unit, Relaxed);
        let window = self.window.load(Relaxed);
        let ahead_end = self.ahead_end.load(Relaxed);
        if window > 0 && unit == ahead_end {
            return self.end_of_window(window, unit, units);
        }
        if window > 0 && unit < ahead_end && unit + window >= ahead_end {
            self.was_late.store(true, Relaxed);
            return None;
        }
        if unit != last.wrapping_add(1) {
            self.streak.store(0, Relaxed);
            self.window.store(0, Relaxed);
            return None;
        }
        if self.streak.fetch_add(1, Relaxed) + 1 < STREAK { None } else { self.open(2, unit, units) }
    }

    fn rests(&self) -> bool {
        let left = self.resting.load(Relaxed);
        if left > 0 {
            self.resting.store(left - 1, Relaxed);
        }
        left > 0
    }

    /// The toucher has passed the window: was it of use?
    fn end_of_window(&self, window: usize, unit: usize, units: usize) -> Option<Range<usize>> {
        if !self.was_late.swap(false, Relaxed) {
            self.late.store(0, Relaxed);
            return self.open((window * 2).min(self.most), unit, units);
        }
        if self.late.fetch_add(1, Relaxed) + 1 < LATE {
            return self.open((window / 2).max(1), unit, units);
        }
        self.late.store(0, Relaxed);
        self.window.store(0, Relaxed);
        self.streak.store(0, Relaxed);
        self.resting.store(REST, Relaxed);
        None
    }

    fn open(&self, window: usize, unit: usize, units: usize) -> Option<Range<usize>> {
        let end = (unit + 1 + window).min(units);
        self.window.store(window, Relaxed);
        self.ahead_end.store(end, Relaxed);
        (unit + 1 < end).then_some(unit + 1..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_opens_a_window_that_grows_while_it_is_used_up() {
        let ahead = Readahead::new(true, 65536);
        assert_eq!((0..3).filter_map(|unit| ahead.note(unit, 1000)).next(), None);
        assert_eq!(ahead.note(3, 1000), Some(4..6));
        assert_eq!(ahead.note(6, 1000), Some(7..11));
        assert_eq!(ahead.note(11, 1000), Some(12..20));
        assert_eq!(ahead.note(20, 24), Some(21..24));
    }

    #[test]
    fn random_access_reads_nothing_ahead() {
        let ahead = Readahead::new(true, 65536);
        assert!([5, 900, 6, 7, 300, 301, 2, 90].iter().all(|unit| ahead.note(*unit, 1000).is_none()));
    }

    #[test]
    fn a_window_that_is_always_late_makes_it_rest() {
        let ahead = Readahead::new(true, 65536);
        let asked: usize = (0..400).filter_map(|unit| ahead.note(unit, 1000)).count();
        assert!(asked < 12, "asked {asked} times");
    }

    #[test]
    fn memory_sources_never_ask() {
        let ahead = Readahead::new(false, 65536);
        assert!((0..50).all(|unit| ahead.note(unit, 1000).is_none()));
    }
}
