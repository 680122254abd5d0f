//! How often a page showed the error pattern, counted before it does and after: between the two somebody may see the pattern
//! already, and nobody knows yet whether it comes at all.
//!
//! *Locks*: none. *Threads*: any, handlers too.

use crate::sync::{AtomicU64, Ordering, fence};

/// Exposures that began, and those that are over: the pattern is there, and everybody may know.
#[derive(Default)]
pub struct Exposures {
    begun: AtomicU64,
    over: AtomicU64,
}

/// At some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(u64);

impl Exposures {
    /// None yet.
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new() -> Self {
        Self { begun: AtomicU64::new(0), over: AtomicU64::new(0) }
    }

    /// Before the pattern is put somewhere.
    pub fn begin(&self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst); // the pattern comes after it
    }

    /// It is there, and noted.
    pub fn finish(&self) {
        self.over.fetch_add(1, Ordering::SeqCst);
    }

    /// It was not put there after all.
    pub fn withdraw(&self) {
        self.begun.fetch_sub(1, Ordering::SeqCst);
    }

    /// How many are over.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.over.load(Ordering::SeqCst)
    }

    /// Before memory is looked at.
    #[must_use]
    pub fn now(&self) -> Moment {
        let now = Moment(self.count());
        fence(Ordering::SeqCst);
        now
    }

    /// After memory was looked at: may a pattern have been seen that was not there at that moment? False for certain only.
    #[must_use]
    pub fn any_since(&self, then: Moment) -> bool {
        // What was looked at was looked at before the counter is.
        fence(Ordering::SeqCst);
        self.begun.load(Ordering::SeqCst) != then.0
    }

    /// Is one under way?
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.is_over(u64::MAX)
    }

    /// How many began.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    /// Are as many over as had begun at some time, or all? While pages fail all the time one is always under way: nobody must
    /// wait for all of them.
    #[must_use]
    pub fn is_over(&self, begun: u64) -> bool {
        // In this order: one that ends in between must not hide one that began.
        let over = self.over.load(Ordering::SeqCst);
        over >= begun || self.begun() == over
    }
}

impl From<u64> for Moment {
    fn from(count: u64) -> Self {
        Self(count)
    }
}

impl From<Moment> for u64 {
    fn from(moment: Moment) -> Self {
        moment.0
    }
}
