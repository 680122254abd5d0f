//! Sequential detection: three neighbouring units in a row start it, a window that was used up grows it, windows that the
//! toucher left stop it for a while. Several threads may scan one region: each scan is a stream of its own.
//!
//! *Locks*: none; races between touchers make a guess worse and nothing else. *Threads*: any, handlers too.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The memory of one region's access pattern.
pub struct Readahead {
    enabled: bool,
    most: usize,
    streams: [Stream; STREAMS],
    oldest: AtomicUsize,
    /// Windows in a row that were left before their end.
    wasted: AtomicUsize,
    resting: AtomicUsize,
}

/// One scan: where it was last, for how long, and what is being read ahead for it.
struct Stream {
    last: AtomicUsize,
    streak: AtomicUsize,
    window: AtomicUsize,
    ahead_end: AtomicUsize,
}

/// Scans told apart in one region.
const STREAMS: usize = 4;
/// Never more than this ahead of the toucher.
const AHEAD_BYTES: usize = 16 << 20;
/// The neighbour's neighbour begins a scan: with a first window of so many units, and each that was used up makes the next one so
/// many times as long.
const STREAK: usize = 2;
const FIRST: usize = 4;
const GROWTH: usize = 4;
/// Wasted windows in a row before it rests, and for how many faults.
const WASTED: usize = 4;
const REST: usize = 256;

impl Stream {
    const fn new() -> Self {
        Self {
            last: AtomicUsize::new(usize::MAX - 1),
            streak: AtomicUsize::new(0),
            window: AtomicUsize::new(0),
            ahead_end: AtomicUsize::new(0),
        }
    }

    /// Is `unit` what comes next here: the neighbour of the last one, or a part or the end of what was read ahead?
    fn expects(&self, unit: usize) -> bool {
        let last = self.last.load(Relaxed);
        unit == last.wrapping_add(1) || unit > last && self.is_open() && unit <= self.ahead_end.load(Relaxed)
    }

    fn is_open(&self) -> bool {
        self.window.load(Relaxed) > 0
    }

    fn begin(&self, unit: usize) {
        self.last.store(unit, Relaxed);
        self.streak.store(0, Relaxed);
        self.window.store(0, Relaxed);
    }

    fn open(&self, window: usize, unit: usize, units: usize) -> Option<Range<usize>> {
        let end = (unit + 1 + window).min(units);
        self.window.store(window, Relaxed);
        self.ahead_end.store(end, Relaxed);
        (unit + 1 < end).then_some(unit + 1..end)
    }
}

impl Readahead {
    /// For a region whose source gains from it (`helps`); `units_kept`: no window is longer than half of what may stay.
    #[must_use]
    pub fn new(helps: bool, unit: usize, units_kept: usize) -> Self {
        let most = (AHEAD_BYTES / unit).clamp(2, 64).min(units_kept / 2);
        Self {
            enabled: helps && most > 0,
            most,
            streams: [const { Stream::new() }; STREAMS],
            oldest: AtomicUsize::new(0),
            wasted: AtomicUsize::new(0),
            resting: AtomicUsize::new(0),
        }
    }

    /// A demand fault on `unit` of `units`: what should be read ahead now, if anything.
    pub fn note(&self, unit: usize, units: usize) -> Option<Range<usize>> {
        if !self.enabled || self.rests() {
            return None;
        }
        let Some(stream) = self.streams.iter().find(|stream| stream.expects(unit)) else {
            self.replace_oldest(unit);
            return None;
        };
        stream.last.store(unit, Relaxed);
        if !stream.is_open() {
            let long = stream.streak.fetch_add(1, Relaxed) + 1 >= STREAK;
            return if long { stream.open(FIRST.min(self.most), unit, units) } else { None };
        }
        if unit < stream.ahead_end.load(Relaxed) {
            return None; // the toucher was faster: it has filled this one itself
        }
        self.wasted.store(0, Relaxed);
        stream.open((stream.window.load(Relaxed) * GROWTH).min(self.most), unit, units)
    }

    /// The units read ahead behind `unit`: what a toucher that would have to wait for `unit` may fill meanwhile.
    #[must_use]
    pub fn behind(&self, unit: usize) -> Range<usize> {
        let open = |stream: &&Stream| stream.is_open() && stream.expects(unit);
        let end = self.streams.iter().find(open).map_or(0, |stream| stream.ahead_end.load(Relaxed));
        unit + 1..end.max(unit + 1)
    }

    fn replace_oldest(&self, unit: usize) {
        let stream = &self.streams[self.oldest.fetch_add(1, Relaxed) % STREAMS];
        let left = stream.is_open();
        stream.begin(unit);
        if left && self.wasted.fetch_add(1, Relaxed) + 1 >= WASTED {
            self.wasted.store(0, Relaxed);
            self.resting.store(REST, Relaxed);
        }
    }

    fn rests(&self) -> bool {
        let left = self.resting.load(Relaxed);
        if left > 0 {
            self.resting.store(left - 1, Relaxed);
        }
        left > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY: usize = usize::MAX;

    #[test]
    fn a_scan_opens_a_window_that_grows_while_it_is_used_up() {
        let ahead = Readahead::new(true, 65536, MANY);
        assert_eq!((0..2).filter_map(|unit| ahead.note(unit, 1000)).next(), None);
        assert_eq!(ahead.note(2, 1000), Some(3..7));
        assert_eq!(ahead.behind(3), 4..7);
        assert_eq!(ahead.note(7, 1000), Some(8..24));
        assert_eq!(ahead.note(9, 1000), None);
        assert_eq!(ahead.note(24, 1000), Some(25..89));
        assert_eq!(ahead.note(89, 93), Some(90..93));
    }

    #[test]
    fn two_scans_of_one_region_are_both_seen() {
        let ahead = Readahead::new(true, 65536, MANY);
        let asked: Vec<_> = (0..3).flat_map(|at| [at, 500 + at]).filter_map(|unit| ahead.note(unit, 1000)).collect();
        assert_eq!(asked, [3..7, 503..507]);
    }

    #[test]
    fn random_access_reads_nothing_ahead() {
        let ahead = Readahead::new(true, 65536, MANY);
        assert!([5, 900, 6, 70, 300, 301, 2, 90].iter().all(|unit| ahead.note(*unit, 1000).is_none()));
    }

    #[test]
    fn windows_that_are_left_make_it_rest() {
        let ahead = Readahead::new(true, 65536, MANY);
        let runs = (0..500).flat_map(|run| (0..5).map(move |at| run * 100 + at));
        let asked: usize = runs.filter_map(|unit| ahead.note(unit, 100_000)).count();
        assert!((4..100).contains(&asked), "asked {asked} times");
    }

    #[test]
    fn memory_sources_never_ask_and_small_budgets_get_small_windows() {
        let ahead = Readahead::new(false, 65536, MANY);
        assert!((0..50).all(|unit| ahead.note(unit, 1000).is_none()));
        let ahead = Readahead::new(true, 65536, 8);
        assert!((0..200).filter_map(|unit| ahead.note(unit, 1000)).all(|range| range.len() <= 4));
    }
}
