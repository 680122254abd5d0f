//! Sequential detection: three neighbouring units in a row start it. As many units are read ahead as the scan has come; a window that is
//! half used goes on, windows that the toucher left stop it for a while. Several threads may scan one region: each scan is a stream
//! of its own.
//!
//! A fast source is read ahead by one worker for each stream: two would share the CPU that the toucher leaves, and what is wanted
//! next would come later. A slow one is read by several, who wait together.
//!
//! *Locks*: none; races between touchers make a guess worse and nothing else. That what is planned has a reader as long as there
//! is any is tried in every order (tests/loom_readahead.rs). *Threads*: any, handlers too.

mod stream;
#[cfg(all(test, not(loom)))]
mod tests;

use self::stream::{Plan, Stream};
use crate::cpus;
use crate::sync::Ordering;
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
        self.stop(stream);
        self.part(stream);
    }

    /// The same, where who planned has left already.
    pub fn stop(&self, stream: usize) {
        let stream = &self.streams[stream % STREAMS];
        stream.begin(stream.last.load(Relaxed));
        self.note_waste(1);
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
