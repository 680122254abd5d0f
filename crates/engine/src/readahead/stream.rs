//! One scan of a region, and what is planned for it. Who reads is counted beside the plan: a plan is never left by its last reader
//! without a look at what was added meanwhile, and whoever adds to it looks for readers afterwards.

use crate::sync::{AtomicU64, AtomicUsize, Ordering};
use std::sync::atomic::{AtomicUsize as Hint, Ordering::Relaxed};

/// One scan: where it began and was last, and what is being read ahead for it.
pub struct Stream {
    pub began: Hint,
    pub last: Hint,
    pub window: Hint,
    /// Where the toucher ran.
    pub cpu: Hint,
    pub plan: AtomicU64,
    pub readers: AtomicUsize,
}

/// The next unit to be read, and where to stop.
#[derive(Clone, Copy)]
pub struct Plan {
    pub next: u32,
    pub end: u32,
}

impl Plan {
    pub const NONE: u64 = 0;

    pub const fn of(word: u64) -> Self {
        Self { next: (word >> 32) as u32, end: word as u32 }
    }

    pub fn word(self) -> u64 {
        u64::from(self.next) << 32 | u64::from(self.end)
    }

    pub fn has_more(self) -> bool {
        self.next < self.end
    }

    /// What follows `unit` is wanted, up to `end`. What was read is not read again.
    fn extended(self, unit: u32, end: u32) -> Self {
        let from = if self.has_more() { self.next } else { self.end };
        Self { next: from.max(unit + 1), end: end.max(self.end) }
    }
}

impl Stream {
    pub fn new() -> Self {
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
    pub fn plan(&self) -> Plan {
        Plan::of(self.plan.fetch_add(0, Ordering::AcqRel))
    }

    pub fn end(&self) -> usize {
        Plan::of(self.plan.load(Ordering::Relaxed)).end as usize
    }

    /// Is `unit` what comes next here: the neighbour of the last one, or a part or the end of what was read ahead?
    pub fn expects(&self, unit: usize) -> bool {
        let last = self.last.load(Relaxed);
        unit == last.wrapping_add(1) || unit > last && self.is_open() && unit <= self.end()
    }

    pub fn is_at(&self, unit: usize) -> bool {
        self.last.load(Relaxed) == unit
    }

    pub fn is_open(&self) -> bool {
        self.window.load(Relaxed) > 0
    }

    /// Units of this scan so far.
    pub fn run(&self) -> usize {
        self.last.load(Relaxed).wrapping_sub(self.began.load(Relaxed)).wrapping_add(1)
    }

    /// Another scan, whose first unit this is. Whoever reads for the old one goes on for this.
    pub fn begin(&self, unit: usize) {
        self.began.store(unit, Relaxed);
        self.last.store(unit, Relaxed);
        self.window.store(0, Relaxed);
        self.plan.swap(Plan::NONE, Ordering::AcqRel);
    }

    pub fn extend(&self, unit: usize, end: usize) {
        let (unit, end) = (unit as u32, end as u32);
        let _ = self
            .plan
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |word| Some(Plan::of(word).extended(unit, end).word()));
    }

    /// One more reader, if there is something to be read and there are fewer than `most`.
    pub fn join(&self, most: usize) -> bool {
        let one_more = |readers: usize| (readers < most).then_some(readers + 1);
        self.plan().has_more() && self.readers.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).is_ok()
    }

    pub fn is_read(&self) -> bool {
        self.readers.load(Ordering::Relaxed) > 0
    }

    pub fn part(&self) {
        self.readers.fetch_sub(1, Ordering::AcqRel);
    }

    /// Units read for it that it never came to.
    pub fn unused(&self) -> usize {
        if self.is_open() { self.end().saturating_sub(self.last.load(Relaxed).wrapping_add(1)) } else { 0 }
    }
}
