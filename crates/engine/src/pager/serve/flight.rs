//! Units being filled, each by one thread, and who waits for them.
//!
//! *Locks*: `map`, for a few instructions.

use super::table::Served;
use crate::states::State;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A thread of the owner that waits.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// As the owner numbers it.
    pub thread: i32,
    /// For this page.
    pub page: usize,
    /// Until then.
    pub deadline_ns: u64,
    /// SIGINTs counted when it began.
    pub interrupts: u32,
    /// When /proc was last asked about it.
    pub looked_ns: u64,
}

/// A unit being filled.
struct Flight {
    number: u64,
    served: Arc<Served>,
    waits: Vec<Wait>,
    /// Somebody asked twice, or joined: a page may have been passed before it was dropped again.
    joined: bool,
    /// Where the owner sees it.
    place: Option<usize>,
    /// Does its byte say that it is being filled?
    marked: bool,
}

/// What became of a fault.
pub enum Admitted {
    /// The unit is the caller's to fill.
    Ours(u64),
    /// Somebody fills it.
    Joined,
    /// The same thread has asked for the same page before: a signal interrupted its wait.
    Repeats(Wait),
}

/// How a fill of a unit came out.
pub struct Landed {
    /// Was it given up before, because it took too long?
    pub was_abandoned: bool,
    /// Did others wait for it?
    pub joined: bool,
}

/// Somebody whose time is up.
pub struct Overdue {
    /// In which region.
    pub served: Arc<Served>,
    /// Those to be answered by an error.
    pub late: Vec<Wait>,
    /// Those to be asked again: their time is not up, but the fill is given up.
    pub early: Vec<Wait>,
}

/// All of them.
#[derive(Default)]
pub struct Flights {
    map: Mutex<Map>,
    /// Reads given up that have not come back.
    pub hung: AtomicUsize,
}

#[derive(Default)]
struct Map {
    flights: HashMap<(u64, usize), Flight>,
    next: u64,
}

impl Flights {
    fn map(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is being filled.
    pub fn is_empty(&self) -> bool {
        self.map().flights.is_empty()
    }

    /// A thread waits for a page of `unit`.
    pub fn admit(&self, served: &Arc<Served>, unit: usize, wait: Wait) -> Admitted {
        let mut map = self.map();
        let Some(flight) = map.flights.get_mut(&(served.id, unit)) else {
            return Admitted::Ours(map.begin(served, unit, Some(wait)));
        };
        flight.joined = true;
        let same = |known: &&mut Wait| known.thread == wait.thread && known.page == wait.page;
        if let Some(known) = flight.waits.iter_mut().find(same) {
            return Admitted::Repeats(*known);
        }
        flight.waits.push(wait);
        Admitted::Joined
    }

    /// Fill a unit for nobody in particular; `None`: somebody fills it.
    pub fn claim(&self, served: &Arc<Served>, unit: usize) -> Option<u64> {
        let mut map = self.map();
        (!map.flights.contains_key(&(served.id, unit))).then(|| map.begin(served, unit, None))
    }

    /// Is a unit being filled?
    pub fn is_filling(&self, served: &Served, unit: usize) -> bool {
        self.map().flights.contains_key(&(served.id, unit))
    }

    /// /proc was asked about a thread.
    pub fn looked_at(&self, served: &Served, unit: usize, thread: i32, now_ns: u64) {
        if let Some(flight) = self.map().flights.get_mut(&(served.id, unit)) {
            flight.waits.iter_mut().filter(|wait| wait.thread == thread).for_each(|wait| wait.looked_ns = now_ns);
        }
    }

    /// This thread waits no more.
    pub fn forget(&self, served: &Served, unit: usize, thread: i32) {
        if let Some(flight) = self.map().flights.get_mut(&(served.id, unit)) {
            flight.waits.retain(|wait| wait.thread != thread);
        }
    }

    /// The fill under this number is over; `there`: the whole unit is.
    pub fn land(&self, served: &Served, unit: usize, number: u64, there: bool) -> Landed {
        let mut map = self.map();
        let key = (served.id, unit);
        if map.flights.get(&key).is_none_or(|flight| flight.number != number) {
            drop(map);
            self.hung.fetch_sub(1, Ordering::SeqCst);
            return Landed { was_abandoned: true, joined: true };
        }
        let flight = map.flights.remove(&key);
        let joined = flight.as_ref().is_some_and(|flight| flight.joined);
        if let Some(flight) = flight {
            flight.show(unit, there);
        }
        Landed { was_abandoned: false, joined }
    }

    /// A read of several units, from `first` on, did not come back in its time, and counts as one that hangs. Who waits for one
    /// of them came later than it began.
    pub fn give_up(&self, served: &Arc<Served>, first: usize, numbers: &[u64]) -> Overdue {
        let mut map = self.map();
        let mut waits = Vec::new();
        for (unit, number) in (first..).zip(numbers) {
            let key = (served.id, unit);
            if map.flights.get(&key).is_none_or(|flight| flight.number != *number) {
                self.hung.fetch_sub(1, Ordering::SeqCst); // given up before, by itself
            } else if let Some(flight) = map.flights.remove(&key) {
                flight.show(unit, false);
                waits.extend(flight.waits);
            }
        }
        self.hung.fetch_add(1, Ordering::SeqCst);
        Overdue { served: served.clone(), late: vec![], early: waits }
    }

    /// Those whose time is up. What takes too long is given up: the next touch begins anew.
    pub fn overdue(&self, now_ns: u64) -> Vec<Overdue> {
        let mut map = self.map();
        let is_late = |wait: &Wait| wait.deadline_ns <= now_ns;
        let late: Vec<(u64, usize)> =
            map.flights.iter().filter(|(_, flight)| flight.waits.iter().any(is_late)).map(|(key, _)| *key).collect();
        let given_up = late.into_iter().filter_map(|key| map.flights.remove(&key).map(|flight| (key.1, flight)));
        given_up
            .map(|(unit, flight)| {
                self.hung.fetch_add(1, Ordering::SeqCst);
                flight.show(unit, false);
                let (late, early) = flight.waits.iter().partition(|wait| is_late(wait));
                Overdue { served: flight.served, late, early }
            })
            .collect()
    }
}

impl Map {
    fn begin(&mut self, served: &Arc<Served>, unit: usize, wait: Option<Wait>) -> u64 {
        self.next += 1;
        let place = served.part.took_off(unit);
        let byte = &served.part.states()[unit];
        let was = byte.load(Ordering::SeqCst);
        // Not if the owner has it, or if a death in between would leave it so.
        let marked = place.is_some()
            && was != State::Filling as u8
            && byte.compare_exchange(was, State::Filling as u8, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        let number = self.next;
        let waits = wait.into_iter().collect();
        let flight = Flight { number, served: served.clone(), waits, joined: false, place, marked };
        self.flights.insert((served.id, unit), flight);
        number
    }
}

impl Flight {
    /// Tell the owner that it is over.
    fn show(&self, unit: usize, there: bool) {
        let byte = &self.served.part.states()[unit];
        let to = if there { State::Present } else { State::Absent } as u8;
        let from = if self.marked { State::Filling } else { State::Absent } as u8;
        let _ = byte.compare_exchange(from, to, Ordering::SeqCst, Ordering::Relaxed);
        self.served.part.landed(self.place);
    }
}
