//! One byte a unit: absent, filling, present. A hint for scheduling and the ownership of filling; a fault is the truth.
//!
//! *Locks*: none. *Threads*: any, handlers too. *Blocks on*: [`UnitStates::wait_while_filling`] only.
//!
//! Whoever turns a unit to `Filling` owns it: it alone installs or drops pages of the unit until it settles the state.

use crate::sync::{self, AtomicU8, AtomicU32, Ordering, fence};
use std::time::Duration;

/// The state of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Nothing there, or holes.
    Absent = 0,
    /// Owned by a thread that fills or empties it.
    Filling = 1,
    /// Was filled.
    Present = 2,
}

impl State {
    fn from(byte: u8) -> Self {
        match byte {
            0 => State::Absent,
            1 => State::Filling,
            _ => State::Present,
        }
    }
}

/// The states of all units of a region.
pub struct UnitStates {
    units: Units,
    /// Counts settlements while somebody waits; the futex word.
    settled: AtomicU32,
    waiters: AtomicU32,
}

enum Units {
    Own(Box<[AtomicU8]>),
    Shared(&'static [AtomicU8]),
}

impl std::ops::Deref for Units {
    type Target = [AtomicU8];
    fn deref(&self) -> &[AtomicU8] {
        match self {
            Self::Own(units) => units,
            Self::Shared(units) => units,
        }
    }
}

impl UnitStates {
    /// All absent.
    #[must_use]
    pub fn new(units: usize) -> Self {
        Self::over(Units::Own(sync::zeroed_bytes(units)))
    }

    /// In memory that a pager writes too; hints, then, and nobody is told when one changes.
    #[must_use]
    pub fn shared(units: &'static [AtomicU8]) -> Self {
        Self::over(Units::Shared(units))
    }

    fn over(units: Units) -> Self {
        Self { units, settled: AtomicU32::new(0), waiters: AtomicU32::new(0) }
    }

    /// How many units.
    #[must_use]
    pub fn len(&self) -> usize {
        self.units.len()
    }

    /// A region of no units.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// The state now.
    #[must_use]
    pub fn get(&self, unit: usize) -> State {
        State::from(self.units[unit].load(Ordering::SeqCst))
    }

    /// Become the owner, if the unit is in state `from`.
    pub fn claim(&self, unit: usize, from: State) -> bool {
        self.units[unit].compare_exchange(from as u8, State::Filling as u8, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Give up ownership: the unit is now `to`; waiters look again.
    pub fn settle(&self, unit: usize, to: State) {
        debug_assert_ne!(to, State::Filling);
        self.units[unit].store(to as u8, Ordering::Release);
        // Paired with the one in `wait_while_filling`: we see the waiter, or the waiter sees the state.
        fence(Ordering::SeqCst);
        if self.waiters.load(Ordering::Relaxed) > 0 {
            self.settled.fetch_add(1, Ordering::Release);
            sync::wake_all(&self.settled);
        }
    }

    /// Sleep while the unit is being filled, at most about `limit`; returns the state seen last.
    pub fn wait_while_filling(&self, unit: usize, limit: Duration) -> State {
        self.waiters.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        // Before the state: a settlement after our look at it changes the word, and we do not fall asleep.
        let seen = self.settled.load(Ordering::Acquire);
        if self.get(unit) == State::Filling {
            sync::wait(&self.settled, seen, Some(limit));
        }
        self.waiters.fetch_sub(1, Ordering::Relaxed);
        self.get(unit)
    }

    /// Units present, by counting.
    #[must_use]
    pub fn count_present(&self) -> usize {
        let present = |units: &[AtomicU8]| {
            units.iter().filter(|unit| unit.load(Ordering::Relaxed) == State::Present as u8).count()
        };
        match &self.units {
            Units::Own(units) => present(units),
            Units::Shared(units) => written(units).map(|range| present(&units[range])).sum(),
        }
    }

    /// A copy of the states of `units`, one byte each, for pictures and tests.
    #[must_use]
    pub fn snapshot(&self, units: std::ops::Range<usize>) -> Vec<u8> {
        match &self.units {
            Units::Own(own) => own[units].iter().map(|unit| unit.load(Ordering::Relaxed)).collect(),
            Units::Shared(shared) => {
                let shared = &shared[units];
                let mut copy = vec![State::Absent as u8; shared.len()];
                for range in written(shared) {
                    range.for_each(|unit| copy[unit] = shared[unit].load(Ordering::Relaxed));
                }
                copy
            }
        }
    }
}

fn is_there(address: usize) -> bool {
    let mut answer = 0u8;
    // SAFETY: asks about one page, with one byte of room.
    let asked = unsafe { libc::mincore(address as *mut libc::c_void, uffd::page_size(), &raw mut answer) };
    asked != 0 || answer & 1 == 1
}

/// The parts of memory of a file that the file has: reading the others would put zeros there, for good.
fn written(units: &[AtomicU8]) -> impl Iterator<Item = std::ops::Range<usize>> {
    let (page, start) = (uffd::page_size(), units.as_ptr() as usize);
    let pages = start / page..(start + units.len()).div_ceil(page);
    let (first, len) = (pages.start, units.len());
    pages.filter(move |at| is_there(at * page)).map(move |at| {
        let from = if at == first { 0 } else { at * page - start };
        from..((at + 1) * page - start).min(len)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_of_many_claims_wins() {
        let states = UnitStates::new(1);
        let wins = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..8).map(|_| scope.spawn(|| states.claim(0, State::Absent))).collect();
            tries.into_iter().filter(|_| true).map(|t| t.join().unwrap()).filter(|won| *won).count()
        });
        assert_eq!(wins, 1);
        states.settle(0, State::Present);
        assert!(!states.claim(0, State::Absent));
    }

    #[test]
    fn a_waiter_wakes_when_the_unit_settles() {
        let states = UnitStates::new(2);
        assert!(states.claim(1, State::Absent));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                loop {
                    let state = states.wait_while_filling(1, Duration::from_secs(5));
                    if state != State::Filling {
                        return state;
                    }
                }
            });
            std::thread::sleep(Duration::from_millis(20));
            states.settle(1, State::Present);
            assert_eq!(waiter.join().unwrap(), State::Present);
        });
    }
}
