//! What is known about pages that could not be had: written where it happens, read where it is raised.
//!
//! *Locks*: none: signal handlers write and read it. *Threads*: any.

use crate::cause::Kind;
use crate::futex::ATTENTION;
use crate::region::Region;
use crate::reserve;
use crate::source::{Cause, SourceError};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, Ordering};

/// What is known about one failed page.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// Which exception.
    pub kind: Kind,
    /// The region.
    pub region: u64,
    /// Address of the page; 0: not one page in particular.
    pub address: usize,
    /// Offset in the source and why.
    pub error: SourceError,
}

impl Failure {
    /// That `page` of `region` could not be had.
    #[must_use]
    pub fn of(region: &Region, page: usize, error: SourceError) -> Self {
        let kind = if error.cause == Cause::Purged { Kind::Purged } else { region.options.kind };
        Self { kind, region: region.id, address: region.page_address(page), error }
    }
}

/// Recent failures, written where they happen and read where they are raised.
const RECORDS: usize = 256;

struct Record {
    /// Odd while being written.
    sequence: AtomicU32,
    failure: UnsafeCell<Failure>,
}

// SAFETY: `failure` is written only between the odd and even steps of `sequence`, by the one thread that made it odd,
// and readers copy it and then check that the sequence did not move.
unsafe impl Sync for Record {}

/// No failure yet.
pub(crate) const EMPTY: Failure =
    Failure { kind: Kind::Page, region: 0, address: 0, error: SourceError { offset: 0, cause: Cause::Latched } };
static RING: [Record; RECORDS] =
    [const { Record { sequence: AtomicU32::new(0), failure: UnsafeCell::new(EMPTY) } }; RECORDS];
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Make room for failures while there is memory: whoever answers a fault must not wait for it.
pub fn make_room() {
    reserve::make_own(&RING);
    reserve::make_own(&NEXT);
    reserve::make_own(&ORPHAN);
    reserve::make_own(&ATTENTION);
}

/// Keep a failure for the thread that will raise it.
pub fn record(failure: Failure) {
    write(&RING[NEXT.fetch_add(1, Ordering::Relaxed) as usize % RECORDS], failure);
}

fn write(record: &Record, failure: Failure) {
    let sequence = record.sequence.load(Ordering::Relaxed);
    let odd = sequence | 1;
    if sequence & 1 == 1
        || record.sequence.compare_exchange(sequence, odd, Ordering::Acquire, Ordering::Relaxed).is_err()
    {
        return;
    }
    std::sync::atomic::fence(Ordering::Release); // no reader sees the new bytes with the old, even sequence
    // SAFETY: this thread made the sequence odd, so it alone writes.
    unsafe { record.failure.get().write_volatile(failure) };
    record.sequence.store(odd.wrapping_add(1), Ordering::Release);
}

/// The newest record of a page.
#[must_use]
pub fn find(region: u64, address: usize) -> Option<Failure> {
    let newest = NEXT.load(Ordering::Relaxed) as usize;
    (1..=RECORDS).find_map(|back| {
        let failure = read(&RING[newest.wrapping_sub(back) % RECORDS])?;
        (failure.region == region && failure.address == address).then_some(failure)
    })
}

fn read(record: &Record) -> Option<Failure> {
    let before = record.sequence.load(Ordering::Acquire);
    // SAFETY: a torn copy is thrown away below when the sequence moved; the type is plain data.
    let failure = unsafe { record.failure.get().read_volatile() };
    std::sync::atomic::fence(Ordering::Acquire); // the second look at the sequence comes after the copy
    let steady = before & 1 == 0 && before != 0 && record.sequence.load(Ordering::Relaxed) == before;
    steady.then_some(failure)
}

/// The last failure of a thread that the language above does not know; its exception is another thread's.
static ORPHAN: Record = Record { sequence: AtomicU32::new(0), failure: UnsafeCell::new(EMPTY) };

/// The calling thread's failure is one of those.
pub(crate) fn leave_orphan(failure: Failure) {
    write(&ORPHAN, failure);
}

/// What it was.
#[must_use]
pub fn orphan() -> Option<Failure> {
    read(&ORPHAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_record_of_a_page_is_found() {
        for offset in 0..3 {
            record(Failure {
                kind: Kind::Page,
                region: 77,
                address: 4096,
                error: SourceError::new(offset, Cause::Short),
            });
        }
        assert_eq!(find(77, 4096).unwrap().error.offset, 2);
        assert!(find(77, 8192).is_none());
    }
}
