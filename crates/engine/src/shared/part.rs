//! What is shared of one region: counters, units being filled, and whether pages are put there or taken.
//!
//! *Locks*: none; [`Part::installing`] yields while the owner looks at pages, a few system calls. *Threads*: any.

use super::noted::Noted;
use crate::counters::Counters;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Units of one region being filled at once, as far as the owner is told.
const FLIGHTS: usize = 64;
/// Of one region.
#[repr(C)]
pub struct Part {
    /// What happened in it. Its pager counts faults.
    pub counters: Counters,
    /// Threads of the pager that put pages there just now.
    copying: AtomicU32,
    /// The owner looks at pages and drops some.
    sweeping: AtomicU32,
    /// Units being filled, plus one.
    flights: [AtomicU64; FLIGHTS],
    /// Pages that the pager has poisoned.
    pub(super) noted: Noted,
}

impl Part {
    /// Pager: run `work`, which puts pages there, while the owner takes none of them for poison.
    pub fn installing<T>(&self, work: impl FnOnce() -> T) -> T {
        loop {
            self.copying.fetch_add(1, Ordering::SeqCst);
            if self.sweeping.load(Ordering::SeqCst) == 0 {
                break;
            }
            self.copying.fetch_sub(1, Ordering::SeqCst);
            std::thread::yield_now();
        }
        let answer = work();
        self.copying.fetch_sub(1, Ordering::SeqCst);
        answer
    }

    /// Owner: run `work` while the pager puts no page there; `None`: it does, try again later.
    pub fn quiet<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        self.sweeping.fetch_add(1, Ordering::SeqCst);
        let answer = (self.copying.load(Ordering::SeqCst) == 0).then(work);
        self.sweeping.fetch_sub(1, Ordering::SeqCst);
        answer
    }

    /// Pager: `unit` is being filled; the place to give to [`Part::landed`].
    #[must_use]
    pub fn took_off(&self, unit: usize) -> Option<usize> {
        let word = unit as u64 + 1;
        self.flights
            .iter()
            .position(|flight| flight.compare_exchange(0, word, Ordering::AcqRel, Ordering::Relaxed).is_ok())
    }

    /// Pager: it is over.
    pub fn landed(&self, place: Option<usize>) {
        if let Some(flight) = place.and_then(|place| self.flights.get(place)) {
            flight.store(0, Ordering::Release);
        }
    }

    /// Owner: the pager is dead, and nobody has replaced it. Faults that it had read are asked again; the units that it was
    /// about to fill.
    pub fn died(&self) -> Vec<usize> {
        self.copying.store(0, Ordering::SeqCst);
        let counters = &self.counters;
        let ended =
            [&counters.resolved, &counters.coalesced, &counters.poisoned, &counters.torn_down, &counters.requeued];
        let ended: u64 = ended.iter().map(|counter| counter.load(Ordering::SeqCst)).sum();
        // Not what in_flight says: killed between two steps of counting, it may be off by one.
        let lost = counters.faults.load(Ordering::SeqCst).saturating_sub(ended);
        counters.requeued.fetch_add(lost, Ordering::SeqCst);
        counters.in_flight.store(0, Ordering::SeqCst);
        let taken = self.flights.iter().map(|flight| flight.swap(0, Ordering::SeqCst)).filter(|word| *word != 0);
        taken.map(|word| usize::try_from(word - 1).unwrap_or(usize::MAX)).collect()
    }
}
