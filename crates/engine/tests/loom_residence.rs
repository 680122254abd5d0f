//! Every order of events around a full resident budget (`cargo test --test loom_residence` with `--cfg loom`).
#![cfg(loom)]

use engine::residence::{FEWEST_UNITS, Residence};
use engine::states::{State, UnitStates};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

/// Present units and the ring they stand in.
struct Budget {
    states: UnitStates,
    ring: Residence,
    left: Vec<AtomicUsize>,
}

impl Budget {
    /// Full of the units from 0 on; there are `more` that did not come yet.
    fn full(more: usize) -> Arc<Self> {
        let units = FEWEST_UNITS + more;
        let budget = Self {
            states: UnitStates::new(units),
            ring: Residence::new(0, 4096),
            left: (0..units).map(|_| AtomicUsize::new(0)).collect(),
        };
        (0..FEWEST_UNITS).for_each(|unit| budget.fill(unit, 1));
        Arc::new(budget)
    }

    /// A unit comes, and up to `batch` leave: `evict::arrived`.
    fn fill(&self, unit: usize, batch: usize) {
        if !self.states.claim(unit, State::Absent) {
            return;
        }
        self.states.settle(unit, State::Present);
        let (turn, Some(oldest)) = self.ring.enter(unit) else { return };
        self.leave(oldest);
        (1..batch).filter_map(|after| self.ring.swap(turn + after, 0)).for_each(|unit| self.leave(unit));
    }

    /// `evict::release`.
    fn leave(&self, unit: usize) {
        let state = self.states.get(unit);
        if state != State::Filling && self.states.claim(unit, state) {
            self.left[unit].fetch_add(1, Ordering::Relaxed);
            self.states.settle(unit, State::Absent);
        }
    }

    /// Units that stand in the ring, and those that are present: each present unit has one place.
    fn check(&self) {
        let mut standing: Vec<_> = (0..self.ring.units()).filter_map(|turn| self.ring.swap(turn, 0)).collect();
        standing.sort_unstable();
        let present: Vec<_> = (0..self.states.len()).filter(|unit| self.states.get(*unit) == State::Present).collect();
        assert_eq!(standing, present, "a unit was lost, or stands there twice");
        for (unit, left) in self.left.iter().enumerate() {
            let times = left.load(Ordering::Relaxed);
            assert_eq!(times, usize::from(!present.contains(&unit)), "unit {unit} left {times} times");
        }
    }
}

fn three_come(batch: usize) {
    loom::model(move || {
        let budget = Budget::full(3);
        let threads: Vec<_> = (0..2)
            .map(|one| {
                let budget = budget.clone();
                thread::spawn(move || budget.fill(FEWEST_UNITS + one, batch))
            })
            .collect();
        budget.fill(FEWEST_UNITS + 2, batch);
        threads.into_iter().for_each(|thread| thread.join().expect("no assertion failed in it"));
        budget.check();
    });
}

#[test]
fn each_displaced_unit_leaves_once_and_none_is_lost() {
    three_come(1);
}

#[test]
fn units_that_leave_in_batches_leave_once_and_none_is_lost() {
    three_come(2);
}

/// A unit that is evicted by a caller and comes again, while its old place is wanted: it may stand there twice, but it never
/// stays without a place.
#[test]
fn a_unit_that_comes_again_while_it_is_displaced_keeps_a_place() {
    loom::model(|| {
        let budget = Budget::full(1);
        let again = budget.clone();
        let refilling = thread::spawn(move || {
            again.leave(0);
            again.fill(0, 1);
        });
        let evicter = budget.clone();
        let evicting = thread::spawn(move || evicter.leave(0));
        budget.fill(FEWEST_UNITS, 1);
        refilling.join().expect("no assertion failed in it");
        evicting.join().expect("no assertion failed in it");
        let standing: Vec<_> = (0..budget.ring.units()).filter_map(|turn| budget.ring.swap(turn, 0)).collect();
        let present = |unit: &usize| budget.states.get(*unit) == State::Present;
        assert!((0..=FEWEST_UNITS).filter(present).all(|unit| standing.contains(&unit)), "{standing:?}");
    });
}

#[test]
fn whoever_is_handed_a_unit_to_remove_sees_that_it_is_filled() {
    loom::model(|| {
        let (states, ring) = (UnitStates::new(1), Residence::new(0, 4096));
        let shared = Arc::new((states, ring));
        let filler = shared.clone();
        let filling = thread::spawn(move || {
            assert!(filler.0.claim(0, State::Absent));
            filler.0.settle(0, State::Present);
            let _ = filler.1.enter(0);
        });
        // The place that the filler uses, once the ring came round to it.
        if let Some(unit) = shared.1.swap(0, 0) {
            assert_eq!(
                shared.0.get(unit),
                State::Present,
                "its leaving is forgotten: it looks as if somebody filled it"
            );
        }
        filling.join().expect("no assertion failed in it");
    });
}
