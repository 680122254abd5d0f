//! Sequential detection: three neighbouring units in a row start it, a window that is half used up grows and goes on, windows that
//! the toucher left stop it for a while. Several threads may scan one region: each scan is a stream of its own.
//!
//! One worker reads ahead for a stream, for as long as there is something: two would share the CPU that the toucher leaves, and what
//! is wanted next would come later.
//!
//! *Locks*: none; races between touchers make a guess worse and nothing else. *Threads*: any, handlers too.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};

/// The memory of one region's access pattern.
pub struct Readahead {
    enabled: bool,
    most: usize,
    streams: [Stream; STREAMS],
    oldest: AtomicUsize,
    /// Windows in a row that were left before their end.
    wasted: AtomicUsize,
    resting: AtomicUsize,
    /// Where the toucher ran that faulted last.
    cpu: AtomicUsize,
}

/// One scan: where it was last, for how long, and what is being read ahead for it.
struct Stream {
    last: AtomicUsize,
    streak: AtomicUsize,
    window: AtomicUsize,
    ahead_end: AtomicUsize,
    /// What its worker reads next.
    next: AtomicUsize,
    /// It has a worker.
    is_read: AtomicBool,
}

/// Scans told apart in one region.
pub const STREAMS: usize = 4;
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
            next: AtomicUsize::new(0),
            is_read: AtomicBool::new(false),
        }
    }

    /// Is `unit` what comes next here: the neighbour of the last one, or a part or the end of what was read ahead?
    fn expects(&self, unit: usize) -> bool {
        let last = self.last.load(Relaxed);
        unit == last.wrapping_add(1) || unit > last && self.is_open() && unit <= self.ahead_end.load(Relaxed)
    }

    fn is_at(&self, unit: usize) -> bool {
        self.last.load(Relaxed) == unit
    }

    fn is_open(&self) -> bool {
        self.window.load(Relaxed) > 0
    }

    fn begin(&self, unit: usize) {
        self.last.store(unit, Relaxed);
        self.streak.store(0, Relaxed);
        self.window.store(0, Relaxed);
        self.ahead_end.store(0, SeqCst); // its worker, if it has one, leaves
    }

    /// What lies behind `unit` is wanted, so much of it. True: it wants a worker.
    fn open(&self, window: usize, unit: usize, units: usize) -> bool {
        self.window.store(window, Relaxed);
        if self.has_more() {
            self.next.fetch_max(unit + 1, Relaxed);
        } else {
            self.next.store((unit + 1).max(self.ahead_end.load(Relaxed)), Relaxed);
        }
        self.ahead_end.store((unit + 1 + window).min(units), SeqCst);
        self.has_more() && !self.is_read.swap(true, SeqCst)
    }

    fn has_more(&self) -> bool {
        self.next.load(SeqCst) < self.ahead_end.load(SeqCst)
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
            cpu: AtomicUsize::new(usize::MAX),
        }
    }

    /// A fault on `unit` of `units`, whoever fills it. Some: that stream wants a worker ([`Readahead::next`]).
    pub fn note(&self, unit: usize, units: usize) -> Option<usize> {
        if !self.enabled || self.rests() {
            return None;
        }
        let Some(number) = self.streams.iter().position(|stream| stream.expects(unit)) else {
            if !self.streams.iter().any(|stream| stream.is_at(unit)) {
                self.replace_oldest(unit);
            } // else the same once more, as of another thread
            return None;
        };
        let stream = &self.streams[number];
        stream.last.store(unit, Relaxed);
        let wants_worker = if stream.is_open() {
            let (end, window) = (stream.ahead_end.load(Relaxed), stream.window.load(Relaxed));
            if end.saturating_sub(unit) > window / 2 {
                return None; // the toucher was faster than the reading: it fills this one itself
            }
            self.wasted.store(0, Relaxed);
            stream.open((window * GROWTH).min(self.most), unit, units)
        } else {
            let long = stream.streak.fetch_add(1, Relaxed) + 1 >= STREAK;
            long && stream.open(FIRST.min(self.most), unit, units)
        };
        wants_worker.then_some(number)
    }

    /// The worker's: the next unit to be read ahead for a stream. `None`: there is no more, and it is not the worker any more.
    #[must_use]
    pub fn next(&self, stream: usize) -> Option<usize> {
        let stream = &self.streams[stream % STREAMS];
        loop {
            let unit = stream.next.load(SeqCst);
            if unit < stream.ahead_end.load(SeqCst) {
                // Else the toucher has gone past it.
                if stream.next.compare_exchange(unit, unit + 1, SeqCst, Relaxed).is_ok() {
                    return Some(unit);
                }
                continue;
            }
            stream.is_read.store(false, SeqCst);
            // More may have been asked for just before, of whoever still seemed to read.
            if !stream.has_more() || stream.is_read.swap(true, SeqCst) {
                return None;
            }
        }
    }

    /// A stream has no worker: it was not to be had, or has to leave early. What was to be read is left.
    pub fn leave(&self, stream: usize) {
        let stream = &self.streams[stream % STREAMS];
        stream.ahead_end.store(0, SeqCst);
        stream.is_read.store(false, SeqCst);
    }

    /// A toucher on this CPU, and its reader, are busy there: whoever reads ahead for them does so elsewhere.
    pub fn set_cpu(&self, cpu: usize) {
        self.cpu.store(cpu, Relaxed);
    }

    /// See [`Readahead::set_cpu`].
    #[must_use]
    pub fn cpu(&self) -> usize {
        self.cpu.load(Relaxed)
    }

    /// The units read ahead behind `unit`: what a toucher that would have to wait for `unit` may fill meanwhile.
    #[must_use]
    pub fn behind(&self, unit: usize) -> Range<usize> {
        let open = |stream: &&Stream| stream.is_open() && (stream.is_at(unit) || stream.expects(unit));
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

    /// All that a worker reads now.
    fn read(ahead: &Readahead, stream: usize) -> Vec<usize> {
        std::iter::from_fn(|| ahead.next(stream)).collect()
    }

    #[test]
    fn a_scan_opens_a_window_that_grows_and_goes_on_while_it_is_used() {
        let ahead = Readahead::new(true, 65536, MANY);
        assert_eq!((0..2).filter_map(|unit| ahead.note(unit, 1000)).next(), None);
        assert_eq!(ahead.note(2, 1000), Some(0));
        assert_eq!(ahead.behind(3), 4..7);
        assert_eq!(read(&ahead, 0), [3, 4, 5, 6]);
        assert_eq!(ahead.note(4, 1000), None, "more than half of it is left");
        assert_eq!(ahead.note(5, 1000), Some(0));
        assert_eq!(read(&ahead, 0), (7..22).collect::<Vec<_>>());
        assert_eq!(ahead.note(22, 90), Some(0));
        assert_eq!(read(&ahead, 0), (23..87).collect::<Vec<_>>());
        assert_eq!(ahead.note(87, 90), Some(0));
        assert_eq!(read(&ahead, 0), [88, 89]);
    }

    #[test]
    fn a_stream_has_one_worker_which_reads_what_is_asked_for_meanwhile() {
        let ahead = Readahead::new(true, 65536, MANY);
        assert_eq!((0..3).filter_map(|unit| ahead.note(unit, 1000)).collect::<Vec<_>>(), [0]);
        assert_eq!(ahead.next(0), Some(3));
        assert_eq!(ahead.note(6, 1000), None, "it has one");
        assert_eq!(ahead.next(0), Some(7), "past what the toucher has reached itself");
        assert_eq!(read(&ahead, 0).last(), Some(&22));
        assert_eq!(ahead.note(23, 1000), Some(0));
        ahead.leave(0);
        assert_eq!((ahead.next(0), ahead.behind(23)), (None, 24..24));
        assert_eq!(ahead.note(24, 1000), Some(0));
    }

    #[test]
    fn two_scans_of_one_region_are_both_seen() {
        let ahead = Readahead::new(true, 65536, MANY);
        let asked: Vec<_> = (0..3).flat_map(|at| [at, 500 + at]).filter_map(|unit| ahead.note(unit, 1000)).collect();
        assert_eq!(
            asked.into_iter().map(|stream| read(&ahead, stream)).collect::<Vec<_>>(),
            [[3, 4, 5, 6], [503, 504, 505, 506]]
        );
    }

    #[test]
    fn the_same_fault_of_another_thread_is_no_scan_of_its_own() {
        let ahead = Readahead::new(true, 65536, MANY);
        assert_eq!([0, 0, 1, 1, 1, 2].iter().filter_map(|unit| ahead.note(*unit, 1000)).collect::<Vec<_>>(), [0]);
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
        let mut asked = 0;
        for stream in runs.filter_map(|unit| ahead.note(unit, 100_000)) {
            assert!(!read(&ahead, stream).is_empty());
            asked += 1;
        }
        assert!((4..100).contains(&asked), "asked {asked} times");
    }

    #[test]
    fn memory_sources_never_ask_and_small_budgets_get_small_windows() {
        let ahead = Readahead::new(false, 65536, MANY);
        assert!((0..50).all(|unit| ahead.note(unit, 1000).is_none()));
        let ahead = Readahead::new(true, 65536, 8);
        let far = (0..200).filter_map(|unit| Some((unit, read(&ahead, ahead.note(unit, 1000)?))));
        assert!(far.into_iter().all(|(unit, units)| units.iter().all(|one| (1..=4).contains(&(one - unit)))));
    }
}
