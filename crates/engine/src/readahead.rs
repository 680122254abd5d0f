//! Sequential detection: three neighbouring units in a row start it. As many units are read ahead as the scan has come; a window that is
//! half used goes on, windows that the toucher left stop it for a while. Several threads may scan one region: each scan is a stream
//! of its own.
//!
//! A fast source is read ahead by one worker for each stream: two would share the CPU that the toucher leaves, and what is wanted
//! next would come later. A slow one is read by several, who wait together.
//!
//! *Locks*: none; races between touchers make a guess worse and nothing else. That what is planned has a reader as long as there
//! is any is tried in every order (tests/loom_readahead.rs). *Threads*: any, handlers too.

use crate::cpus;
use crate::sync::{AtomicU64, AtomicUsize, Ordering};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize as Hint, Ordering::Relaxed};

/// The memory of one region's access pattern.
pub struct Readahead {
    enabled: bool,
    most: usize,
    readers: usize,
    piece: usize,
    streams: [Stream; STREAMS],
    oldest: Hint,
    /// Streams in a row of which much was read and not used, and how much.
    wasted: Hint,
    lost: Hint,
    resting: Hint,
}

/// What a region's readahead depends on.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Does its source gain from it?
    pub helps: bool,
    /// Does a reader of it wait, rather than work?
    pub slow: bool,
    /// Bytes of a unit.
    pub unit: usize,
    /// Units that one read likes to have.
    pub piece: usize,
    /// Units that may stay; no more than half of them are read ahead.
    pub kept: usize,
}

/// One scan: where it began and was last, and what is being read ahead for it.
struct Stream {
    began: Hint,
    last: Hint,
    window: Hint,
    /// Where the toucher ran.
    cpu: Hint,
    plan: AtomicU64,
    readers: AtomicUsize,
}

/// The next unit to be read, and where to stop.
#[derive(Clone, Copy)]
struct Plan {
    next: u32,
    end: u32,
}

impl Plan {
    const NONE: u64 = 0;

    const fn of(word: u64) -> Self {
        Self { next: (word >> 32) as u32, end: word as u32 }
    }

    fn word(self) -> u64 {
        u64::from(self.next) << 32 | u64::from(self.end)
    }

    fn has_more(self) -> bool {
        self.next < self.end
    }

    /// What follows `unit` is wanted, up to `end`. What was read is not read again.
    fn extended(self, unit: u32, end: u32) -> Self {
        let from = if self.has_more() { self.next } else { self.end };
        Self { next: from.max(unit + 1), end: end.max(self.end) }
    }
}

/// Scans told apart in one region.
pub const STREAMS: usize = 4;
/// Never more than this ahead of the toucher.
const AHEAD_BYTES: usize = 16 << 20;
/// So many units in a row are a scan, and get a first window of so many.
const STREAK: usize = 3;
const FIRST: usize = 4;
/// Readers of a slow source, for each stream.
const SLOW_READERS: usize = 4;
/// A stream is wasted of which more than a fourth of what was used was read for nothing.
const WASTE: usize = 4;
/// Wasted streams in a row before it rests, for so many faults at least, and so many for each unit that was read for nothing.
const WASTED: usize = 4;
const REST: usize = 256;
const REST_EACH: usize = 8;

impl Stream {
    fn new() -> Self {
        Self {
            began: Hint::new(usize::MAX - 1),
            last: Hint::new(usize::MAX - 1),
            window: Hint::new(0),
            cpu: Hint::new(usize::MAX),
            plan: AtomicU64::new(Plan::NONE),
            readers: AtomicUsize::new(0),
        }
    }

    /// As it is now: whoever changes it before is seen.
    fn plan(&self) -> Plan {
        Plan::of(self.plan.fetch_add(0, Ordering::AcqRel))
    }

    fn end(&self) -> usize {
        Plan::of(self.plan.load(Ordering::Relaxed)).end as usize
    }

    /// Is `unit` what comes next here: the neighbour of the last one, or a part or the end of what was read ahead?
    fn expects(&self, unit: usize) -> bool {
        let last = self.last.load(Relaxed);
        unit == last.wrapping_add(1) || unit > last && self.is_open() && unit <= self.end()
    }

    fn is_at(&self, unit: usize) -> bool {
        self.last.load(Relaxed) == unit
    }

    fn is_open(&self) -> bool {
        self.window.load(Relaxed) > 0
    }

    /// Units of this scan so far.
    fn run(&self) -> usize {
        self.last.load(Relaxed).wrapping_sub(self.began.load(Relaxed)).wrapping_add(1)
    }

    /// Another scan, whose first unit this is. Whoever reads for the old one goes on for this.
    fn begin(&self, unit: usize) {
        self.began.store(unit, Relaxed);
        self.last.store(unit, Relaxed);
        self.window.store(0, Relaxed);
        self.plan.swap(Plan::NONE, Ordering::AcqRel);
    }

    fn extend(&self, unit: usize, end: usize) {
        let (unit, end) = (unit as u32, end as u32);
        let _ = self
            .plan
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |word| Some(Plan::of(word).extended(unit, end).word()));
    }

    /// One more reader, if there is something to be read and there are fewer than `most`.
    fn join(&self, most: usize) -> bool {
        let one_more = |readers: usize| (readers < most).then_some(readers + 1);
        self.plan().has_more() && self.readers.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).is_ok()
    }

    fn is_read(&self) -> bool {
        self.readers.load(Ordering::Relaxed) > 0
    }

    fn part(&self) {
        self.readers.fetch_sub(1, Ordering::AcqRel);
    }

    /// Units read for it that it never came to.
    fn unused(&self) -> usize {
        if self.is_open() { self.end().saturating_sub(self.last.load(Relaxed).wrapping_add(1)) } else { 0 }
    }
}

impl Readahead {
    /// Nothing noted yet.
    #[must_use]
    pub fn new(shape: &Shape) -> Self {
        let most = (AHEAD_BYTES / shape.unit).clamp(2, 64).min(shape.kept / 2);
        Self {
            enabled: shape.helps && most > 0,
            most,
            readers: if shape.slow { SLOW_READERS } else { 1 },
            piece: shape.piece.max(1),
            streams: std::array::from_fn(|_| Stream::new()),
            oldest: Hint::new(0),
            wasted: Hint::new(0),
            lost: Hint::new(0),
            resting: Hint::new(0),
        }
    }

    /// A fault on `unit` of `units`, whoever fills it. Some: that stream wants a reader, which counts as one from now on: it calls
    /// [`Readahead::next`] until there is no more, or [`Readahead::part`].
    pub fn note(&self, unit: usize, units: usize) -> Option<usize> {
        if !self.enabled || units > u32::MAX as usize || self.rests() {
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
        stream.cpu.store(cpus::this(), Relaxed);
        if stream.run() < STREAK {
            return None;
        }
        let mut end = stream.end();
        // A toucher that is far from the end was faster than the reading: it fills this one itself.
        if !stream.is_open() || end.saturating_sub(unit) <= stream.window.load(Relaxed) / 2 {
            let others = self.streams.iter().filter(|other| !std::ptr::eq(*other, stream) && other.is_read()).count();
            let window = stream.run().max(FIRST).min((self.most / (others + 1)).max(1));
            stream.window.store(window, Relaxed);
            end = (unit + 1 + window).min(units);
        }
        stream.extend(unit, end);
        stream.join(self.readers).then_some(number)
    }

    /// A reader's: the next units to be read ahead, in one read. `None`: there are no more, and it is not a reader any more.
    #[must_use]
    pub fn next(&self, stream: usize) -> Option<Range<usize>> {
        let stream = &self.streams[stream % STREAMS];
        loop {
            let plan = stream.plan();
            if plan.has_more() {
                let until = Plan { next: plan.end.min(plan.next.saturating_add(self.piece as u32)), end: plan.end };
                let ours = stream.plan.compare_exchange(plan.word(), until.word(), Ordering::AcqRel, Ordering::Relaxed);
                if ours.is_ok() {
                    return Some(plan.next as usize..until.next as usize);
                }
                continue;
            }
            stream.part();
            // More may have been planned just before, by somebody to whom this still was a reader.
            if !stream.join(self.readers) {
                return None;
            }
        }
    }

    /// Does a stream want one more reader? It counts as one from now on.
    #[must_use]
    pub fn wants_another(&self, stream: usize) -> bool {
        self.streams[stream % STREAMS].join(self.readers)
    }

    /// A reader leaves, or was not to be had. The next fault of the scan finds another.
    pub fn part(&self, stream: usize) {
        self.streams[stream % STREAMS].part();
    }

    /// A reader leaves because its source failed: the scan has to show itself again.
    pub fn failed(&self, stream: usize) {
        let stream = &self.streams[stream % STREAMS];
        stream.begin(stream.last.load(Relaxed));
        self.note_waste(1);
        stream.part();
    }

    /// Where a stream's toucher runs, and the reader of its faults: whoever reads ahead for it does so elsewhere.
    #[must_use]
    pub fn cpu(&self, stream: usize) -> usize {
        self.streams[stream % STREAMS].cpu.load(Relaxed)
    }

    /// The units read ahead behind `unit`: what a toucher that would have to wait for `unit` may fill meanwhile.
    #[must_use]
    pub fn behind(&self, unit: usize) -> Range<usize> {
        let open = |stream: &&Stream| stream.is_open() && (stream.is_at(unit) || stream.expects(unit));
        let end = self.streams.iter().find(open).map_or(0, Stream::end);
        unit + 1..end.max(unit + 1)
    }

    fn replace_oldest(&self, unit: usize) {
        let stream = &self.streams[self.oldest.fetch_add(1, Relaxed) % STREAMS];
        let unused = stream.unused();
        if unused * WASTE > stream.run() {
            self.note_waste(unused);
        } else if stream.is_open() {
            self.wasted.store(0, Relaxed);
            self.lost.store(0, Relaxed);
        }
        stream.begin(unit);
    }

    fn note_waste(&self, units: usize) {
        let lost = self.lost.fetch_add(units, Relaxed) + units;
        if self.wasted.fetch_add(1, Relaxed) + 1 >= WASTED {
            self.wasted.store(0, Relaxed);
            self.lost.store(0, Relaxed);
            self.resting.store(REST.max(lost * REST_EACH), Relaxed);
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const PLAIN: Shape = Shape { helps: true, slow: false, unit: 65536, piece: 1, kept: usize::MAX };

    /// All that a worker reads now.
    fn read(ahead: &Readahead, stream: usize) -> Vec<usize> {
        std::iter::from_fn(|| ahead.next(stream)).flatten().collect()
    }

    fn noted(ahead: &Readahead, units: impl IntoIterator<Item = usize>) -> Vec<usize> {
        units.into_iter().filter_map(|unit| ahead.note(unit, 1000)).collect()
    }

    #[test]
    fn a_scan_opens_a_window_that_grows_with_it_and_goes_on_while_it_is_used() {
        let ahead = Readahead::new(&PLAIN);
        assert_eq!(noted(&ahead, [0, 1, 2]), [0]);
        assert_eq!(ahead.behind(3), 4..7);
        assert_eq!(read(&ahead, 0), [3, 4, 5, 6]);
        assert_eq!(noted(&ahead, [4]), [], "more than half of it is left");
        assert_eq!(noted(&ahead, [5]), [0]);
        assert_eq!(read(&ahead, 0), (7..12).collect::<Vec<_>>());
        assert_eq!(noted(&ahead, [12]), [0]);
        assert_eq!(read(&ahead, 0), (13..26).collect::<Vec<_>>());
        assert_eq!(ahead.note(26, 30), Some(0));
        assert_eq!(read(&ahead, 0), [27, 28, 29]);
    }

    #[test]
    fn a_fast_source_has_one_reader_which_reads_what_is_planned_meanwhile() {
        let ahead = Readahead::new(&PLAIN);
        assert_eq!(noted(&ahead, [0, 1, 2]), [0]);
        assert_eq!(ahead.next(0), Some(3..4));
        assert!(!ahead.wants_another(0));
        assert_eq!(noted(&ahead, [6]), [], "it has one");
        assert_eq!(ahead.next(0), Some(7..8), "past what the toucher has reached itself");
        assert_eq!(read(&ahead, 0).last(), Some(&13));
    }

    #[test]
    fn a_slow_source_has_several_readers_and_is_read_in_pieces() {
        let ahead = Readahead::new(&Shape { slow: true, piece: 3, ..PLAIN });
        assert_eq!(noted(&ahead, 0..3), [0]);
        assert_eq!(ahead.next(0), Some(3..6));
        assert!(ahead.wants_another(0));
        assert_eq!((ahead.next(0), ahead.wants_another(0)), (Some(6..7), false), "nothing is left");
        assert_eq!(noted(&ahead, [6]), [0]);
    }

    #[test]
    fn a_reader_that_leaves_early_is_replaced_at_the_next_fault() {
        let ahead = Readahead::new(&PLAIN);
        assert_eq!(noted(&ahead, 0..3), [0]);
        ahead.part(0);
        assert_eq!(noted(&ahead, [3]), [0]);
        assert_eq!(read(&ahead, 0), [4, 5, 6]);
    }

    #[test]
    fn a_source_that_fails_is_not_read_ahead_until_the_scan_shows_itself_again_and_at_last_for_long() {
        let ahead = Readahead::new(&PLAIN);
        let mut asked = vec![];
        for unit in 0..200 {
            if let Some(stream) = ahead.note(unit, 1000) {
                asked.push(unit);
                assert!(ahead.next(stream).is_some());
                ahead.failed(stream);
                assert_eq!(ahead.behind(unit), unit + 1..unit + 1);
            }
        }
        assert_eq!(asked, [2, 4, 6, 8]);
    }

    #[test]
    fn two_scans_of_one_region_are_both_seen_and_share_what_may_be_read() {
        let ahead = Readahead::new(&Shape { kept: 12, ..PLAIN });
        let asked = noted(&ahead, (0..3).flat_map(|at| [at, 500 + at]));
        let units: Vec<_> = asked.into_iter().map(|stream| read(&ahead, stream)).collect();
        assert_eq!(units, [vec![3, 4, 5, 6], vec![503, 504, 505]]);
    }

    #[test]
    fn the_same_fault_of_another_thread_is_no_scan_of_its_own() {
        assert_eq!(noted(&Readahead::new(&PLAIN), [0, 0, 1, 1, 1, 2]), [0]);
    }

    #[test]
    fn random_access_reads_nothing_ahead() {
        assert_eq!(noted(&Readahead::new(&PLAIN), [5, 900, 6, 70, 300, 301, 2, 90]), []);
    }

    /// Records in random order, of so many units each: how many units were read ahead and not used, of a hundred that were.
    fn waste(length: usize) -> usize {
        let ahead = Readahead::new(&PLAIN);
        let (mut used, mut unused) = (0, 0);
        for record in (0..2000).map(|number| number * 7919 % 2000 * 100) {
            let mut filled = std::collections::HashSet::new();
            for unit in record..record + length {
                used += 1;
                // Whoever finds its unit read does not fault.
                if !filled.contains(&unit)
                    && let Some(stream) = ahead.note(unit, 1_000_000)
                {
                    filled.extend(read(&ahead, stream));
                }
            }
            unused += filled.iter().filter(|unit| **unit >= record + length).count();
        }
        100 * unused / used
    }

    #[test]
    fn records_of_any_length_cost_little_that_is_not_used() {
        let wasted: Vec<usize> = (1..40).map(waste).collect();
        assert_eq!(wasted[..2], [0, 0]);
        assert!(wasted.iter().all(|percent| *percent <= 100 / REST_EACH), "{wasted:?}");
    }

    #[test]
    fn memory_sources_never_ask_and_small_budgets_get_small_windows() {
        assert_eq!(noted(&Readahead::new(&Shape { helps: false, ..PLAIN }), 0..50), []);
        let ahead = Readahead::new(&Shape { kept: 8, ..PLAIN });
        let far = (0..200).filter_map(|unit| Some((unit, read(&ahead, ahead.note(unit, 1000)?))));
        assert!(far.into_iter().all(|(unit, units)| units.iter().all(|one| (1..=4).contains(&(one - unit)))));
    }
}
