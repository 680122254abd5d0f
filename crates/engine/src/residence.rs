//! Which units came when: what a resident budget needs to know.
//!
//! *Locks*: none. *Threads*: any, handlers too.

use crate::sync::{AtomicUsize, Ordering};

/// The units of a region in the order in which they came: a ring as long as the budget. Whoever has filled a unit puts it in
/// and takes out the one whose place it is. A unit filled twice stands there twice and leaves with the older place: the
/// budget is never exceeded for it.
pub struct Residence {
    /// Unit + 1; 0: a free place.
    order: Box<[AtomicUsize]>,
    next: AtomicUsize,
    batch: usize,
}

/// The fewest units of a budget: one instruction or system call may need several at once.
pub const FEWEST_UNITS: usize = 8;
/// What leaves in one call, bytes at most.
const BATCH_BYTES: usize = 4 << 20;
/// And units at most.
pub const BATCH_UNITS: usize = 64;

impl Residence {
    /// A budget of `bytes` in units of `unit` bytes.
    #[must_use]
    pub fn new(bytes: usize, unit: usize) -> Self {
        let units = (bytes / unit).max(FEWEST_UNITS);
        let batch = (BATCH_BYTES / unit).clamp(2, BATCH_UNITS).min(units / 4);
        Self { order: (0..units).map(|_| AtomicUsize::new(0)).collect(), next: AtomicUsize::new(0), batch }
    }

    /// How many units may stay.
    #[must_use]
    pub fn units(&self) -> usize {
        self.order.len()
    }

    /// How many leave at once when they leave in batches.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// `unit` came: its turn, and the unit that has to leave for it, never itself.
    #[must_use]
    pub fn enter(&self, unit: usize) -> (usize, Option<usize>) {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        (turn, self.swap(turn, unit + 1).filter(|oldest| *oldest != unit))
    }

    /// Take `unit` out of the place that is `turn`'s, if it stands there.
    pub fn take(&self, turn: usize, unit: usize) -> bool {
        let place = &self.order[turn % self.order.len()];
        // Acquire: as for `swap`.
        place.compare_exchange(unit + 1, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Put `place` (unit + 1; 0: nothing) where it is `turn`'s; answers the unit that stood there. Whoever gets a unit sees
    /// it settled: one that still looked absent or in filling would be passed over, and nothing names it again.
    pub fn swap(&self, turn: usize, place: usize) -> Option<usize> {
        self.order[turn % self.order.len()].swap(place, Ordering::AcqRel).checked_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_unit_leaves_when_the_ring_is_full() {
        let residence = Residence::new(8 * 4096, 4096);
        assert!((0..8).all(|unit| residence.enter(unit).1.is_none()));
        assert_eq!((8..12).map(|unit| residence.enter(unit).1).collect::<Vec<_>>(), [0, 1, 2, 3].map(Some));
    }

    #[test]
    fn a_unit_is_taken_out_of_its_place_and_of_no_other() {
        let residence = Residence::new(8 * 4096, 4096);
        assert!((0..8).all(|unit| residence.enter(unit).1.is_none()));
        assert!(residence.take(1, 1) && !residence.take(1, 1) && !residence.take(2, 3));
        assert_eq!([8, 9, 10].map(|unit| residence.enter(unit).1), [Some(0), None, Some(2)]);
    }

    #[test]
    fn a_unit_that_comes_again_and_again_never_has_to_leave_for_itself() {
        let residence = Residence::new(8 * 4096, 4096);
        assert!((0..100).all(|_| residence.enter(5).1.is_none()));
        assert_eq!(residence.enter(6).1, Some(5));
    }

    #[test]
    fn a_budget_is_never_less_than_one_access_may_need_and_a_batch_a_quarter_of_it() {
        let residence = Residence::new(0, 4096);
        assert_eq!((residence.units(), residence.batch()), (FEWEST_UNITS, 2));
        assert_eq!(Residence::new(1 << 30, 4096).batch(), BATCH_UNITS);
        assert_eq!(Residence::new(1 << 30, 2 << 20).batch(), 2);
    }
}
