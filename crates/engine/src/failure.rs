//! A page that cannot be had (law 4; recipe and limits: docs, «When a page cannot be had»).
//!
//! The thread that touched it is in the middle of a load or store. Its SIGBUS handler lets the instruction finish on a
//! page of 0xFF bytes (never zeros), counts the exposure, and has the language above raise in that thread. The page is
//! turned back into a hole by the keeper soon after, so that the next touch asks again.
//!
//! *Locks*: none: everything here runs in signal handlers. *Threads*: any.

use crate::cause::Kind;
use crate::counters::add;
use crate::exposures::Exposures;
use crate::futex::{ATTENTION, now_ns};
use crate::nest;
use crate::region::{OnError, Region};
use crate::reserve;
use crate::shared;
use crate::source::{Cause, SourceError, Table};
use crate::threads::{abort_with, say, thread_id};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use uffd::{CopyMode, Outcome};

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

const EMPTY: Failure =
    Failure { kind: Kind::Page, region: 0, address: 0, error: SourceError { offset: 0, cause: Cause::Latched } };
static RING: [Record; RECORDS] =
    [const { Record { sequence: AtomicU32::new(0), failure: UnsafeCell::new(EMPTY) } }; RECORDS];
static NEXT: AtomicU32 = AtomicU32::new(0);

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

/// What it was.
#[must_use]
pub fn orphan() -> Option<Failure> {
    read(&ORPHAN)
}

/// Threads with an error that was raised and has not surfaced yet.
const LATCHES: usize = shared::LATCHES;
/// A latch that was not touched for this long is over: its exception was swallowed, or its thread is gone.
pub const LATCH_LIFE: Duration = Duration::from_secs(1);
/// How soon the language above is asked again for a thread that does not hold its lock.
const ASK_AGAIN: Duration = Duration::from_millis(200);

struct Latch {
    thread: AtomicI32,
    touched_ns: AtomicU64,
    asked_ns: AtomicU64,
    failure: UnsafeCell<Failure>,
}

// SAFETY: `failure` is written and read by the latch's own thread only (`thread` says whose it is).
unsafe impl Sync for Latch {}

static TABLE: [Latch; LATCHES] = [const {
    Latch {
        thread: AtomicI32::new(0),
        touched_ns: AtomicU64::new(0),
        asked_ns: AtomicU64::new(0),
        failure: UnsafeCell::new(EMPTY),
    }
}; LATCHES];
/// How many latches are set: nobody searches while it is 0.
static LATCHED: AtomicU32 = AtomicU32::new(0);

fn latch_of(thread: i32) -> Option<&'static Latch> {
    if LATCHED.load(Ordering::Acquire) == 0 {
        return None;
    }
    TABLE.iter().find(|latch| latch.thread.load(Ordering::Acquire) == thread)
}

/// Does this thread have an error on its way? Then further failing touches of it are answered at once.
#[must_use]
pub fn is_latched(thread: i32) -> bool {
    latch_of(thread).is_some_and(|latch| {
        let age = now_ns().saturating_sub(latch.touched_ns.load(Ordering::Acquire));
        // Where a source touched, whoever called it looks once it has returned.
        if age > LATCH_LIFE.as_nanos() as u64 && !nest::is_running(thread) {
            release(latch, thread);
            return false;
        }
        true
    })
}

/// The same of the calling thread; without a system call while no thread is latched.
#[must_use]
pub fn is_this_latched() -> bool {
    LATCHED.load(Ordering::Acquire) > 0 && is_latched(thread_id())
}

fn release(latch: &Latch, thread: i32) {
    if latch.thread.compare_exchange(thread, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
        LATCHED.fetch_sub(1, Ordering::AcqRel);
        tell_pagers(latch, 0, 0);
    }
}

/// Pagers answer touches of latched threads at once, too.
fn tell_pagers(latch: &Latch, thread: i32, now: u64) {
    if let Some(place) = TABLE.iter().position(|known| std::ptr::eq(known, latch)) {
        shared::for_each_header(|header| header.latch(place, thread, now));
    }
}

/// Latch the calling thread; how the language above is to raise.
fn latch(failure: Failure) -> Why {
    let thread = thread_id();
    let now = now_ns();
    if let Some(latch) = latch_of(thread) {
        latch.touched_ns.store(now, Ordering::Release);
        tell_pagers(latch, thread, now);
        let ask = now.saturating_sub(latch.asked_ns.load(Ordering::Relaxed)) > ASK_AGAIN.as_nanos() as u64;
        if ask {
            latch.asked_ns.store(now, Ordering::Relaxed);
        }
        // SAFETY: the latch is this thread's, so nobody else writes it.
        let first = unsafe { latch.failure.get().read_volatile() };
        return match first.error.cause {
            Cause::Interrupted => Why::Nothing,
            _ if ask => Why::Failed(first.kind),
            _ => Why::FailedAgain(first.kind),
        };
    }
    let free =
        TABLE.iter().find(|latch| latch.thread.compare_exchange(0, -1, Ordering::AcqRel, Ordering::Relaxed).is_ok());
    if let Some(latch) = free {
        // SAFETY: -1 marks the latch as ours alone until the thread id is stored.
        unsafe { latch.failure.get().write_volatile(failure) };
        latch.touched_ns.store(now, Ordering::Relaxed);
        latch.asked_ns.store(now, Ordering::Relaxed);
        latch.thread.store(thread, Ordering::Release);
        tell_pagers(latch, thread, now);
        LATCHED.fetch_add(1, Ordering::AcqRel);
    }
    if failure.error.cause == Cause::Interrupted { Why::Interrupted } else { Why::Failed(failure.kind) }
}

/// The calling thread's error has surfaced (or is not wanted any more): what it was, and the latch is open again.
pub fn take() -> Option<Failure> {
    let thread = thread_id();
    let latch = latch_of(thread)?;
    // SAFETY: the latch is this thread's, so nobody else writes it.
    let failure = unsafe { latch.failure.get().read_volatile() };
    release(latch, thread);
    Some(failure)
}

/// What the calling thread's error is, if one is on its way.
#[must_use]
pub fn pending() -> Option<Failure> {
    // SAFETY: the latch is this thread's, so nobody else writes it.
    latch_of(thread_id()).map(|latch| unsafe { latch.failure.get().read_volatile() })
}

/// Has another thread an exception on its way?
#[must_use]
pub fn another_is_latched() -> bool {
    let (mine, now) = (thread_id(), now_ns());
    let young =
        |latch: &Latch| now.saturating_sub(latch.touched_ns.load(Ordering::Acquire)) < LATCH_LIFE.as_nanos() as u64;
    let other = |latch: &Latch| !matches!(latch.thread.load(Ordering::Acquire), 0 | -1) && young(latch);
    LATCHED.load(Ordering::Acquire) > 0
        && TABLE.iter().any(|latch| other(latch) && latch.thread.load(Ordering::Acquire) != mine)
}

/// Those in all regions.
#[cfg(not(loom))]
pub static EXPOSURES: Exposures = Exposures::new();
/// Those in all regions.
#[cfg(loom)]
pub static EXPOSURES: std::sync::LazyLock<Exposures> = std::sync::LazyLock::new(Exposures::default);

/// What the language above shall do in the calling thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Raise.
    Failed(Kind),
    /// It was asked a moment ago: repeat what is free.
    FailedAgain(Kind),
    /// Ctrl-C raises by itself: call [`take`] once it has, so that the thread's touches wait again.
    Interrupted,
    /// Ctrl-C is still on its way.
    Nothing,
}

/// Raises in the calling thread; false: it cannot be raised there (the language above does not know the thread), so the
/// thread must not be held to have an error on its way.
pub type Raise = fn(Why) -> bool;
static RAISE: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());

/// The language above tells how to raise. Without it a failed page aborts.
pub fn set_raise(raise: Raise) {
    RAISE.store(raise as *mut (), Ordering::Release);
}

/// In the SIGBUS handler of the thread that touched `page`: let its instruction finish on the pattern, and raise.
pub fn expose(region: &Region, page: usize, failure: Failure) {
    if show(region, page, &failure) {
        announce(failure);
    }
}

/// The first half: put the pattern there. False: there is nothing to raise; the page is there, or the process ends.
#[must_use]
pub fn show(region: &Region, page: usize, failure: &Failure) -> bool {
    if region.options.on_error == OnError::Abort || RAISE.load(Ordering::Acquire).is_null() {
        die(region, page, failure);
        return false;
    }
    // Begun before any thread can see the pattern, over when it is noted: who looks meanwhile cannot miss both.
    let everywhere: &Exposures = &EXPOSURES;
    let counts = [&region.exposures, everywhere];
    counts.iter().for_each(|count| count.begin());
    match install_pattern(region, region.page_address(page)) {
        Outcome::Done => {}
        outcome => {
            counts.iter().for_each(|count| count.withdraw());
            if outcome == Outcome::Exists && shows_pattern(region, page) {
                return true;
            }
            // The page is there, or the instruction asks again.
            if !matches!(outcome, Outcome::Exists | Outcome::Retry) {
                lost(region, outcome);
            }
            return false;
        }
    }
    let first = region.exposed.insert(page);
    add(&region.counters.exposed_pages, 1);
    counts.iter().for_each(|count| count.finish());
    if first {
        ATTENTION.ring(); // while the set is not empty the keeper comes by itself
    }
    true
}

/// Did another thread that failed put the pattern there? Then this one reads it too, and has to raise as well. In doubt yes: its
/// own read failed, whatever is there.
fn shows_pattern(region: &Region, page: usize) -> bool {
    // In this order: one that is over is in the set already, or is being taken out of it (which the last question sees), or its
    // page is a hole again and the instruction asks again.
    region.exposures.is_busy() || region.exposed.contains(page) || region.shows_pattern()
}

/// The second half: raise in this thread.
pub fn announce(failure: Failure) {
    let raise = RAISE.load(Ordering::Acquire);
    if raise.is_null() {
        return;
    }
    if failure.error.cause == Cause::Os(libc::ENOMEM) {
        // An exception is about to be made, and has to find memory.
        let _ = (0..reserve::STEPS_OF_AN_EXCEPTION).all(|_| reserve::give_back());
    }
    let why = latch(failure);
    // SAFETY: `set_raise` stored a `Raise`, and it was seen non-null above (it is never taken back).
    let raise: Raise = unsafe { std::mem::transmute::<*mut (), Raise>(raise) };
    let is_known = raise(why);
    if matches!(why, Why::Failed(_))
        && let Some(latch) = latch_of(thread_id())
    {
        // From the end of the wait: the page is a hole again by now, and one that waits at each touch gets nowhere.
        latch.asked_ns.store(now_ns(), Ordering::Relaxed);
    }
    if !is_known && let Some(failure) = take() {
        write(&ORPHAN, failure);
    }
}

/// Even the pattern wants a page. Where there is no memory for it, some was put by.
fn install_pattern(region: &Region, address: usize) -> Outcome {
    let handle = region.handle(Table::Application);
    loop {
        let outcome = handle.copy(address, reserve::pattern(), uffd::page_size(), CopyMode::NONE);
        let again = match outcome {
            Outcome::Failed(uffd::Errno(libc::ENOMEM)) => reserve::give_back(),
            Outcome::Failed(uffd::Errno(libc::EBADF)) => region.handles.restore(),
            _ => false,
        };
        if !again {
            return outcome;
        }
    }
}

/// The pattern cannot be put there: no memory at all, or somebody closed the descriptor.
fn lost(region: &Region, outcome: Outcome) {
    let why = match outcome.errno() {
        Some(uffd::Errno(libc::ENOMEM)) => "there is no memory left for it",
        _ => "was its descriptor closed, as by os.closerange?",
    };
    abort_with(format_args!(
        "userfault: a failed page of region {} cannot be answered ({outcome:?}: {why}): stopping, because the alternative is \
         zeros\n",
        region.id
    ));
}

/// `on_error="abort"`: one line, then the default action of SIGBUS when the instruction runs again.
fn die(region: &Region, page: usize, failure: &Failure) {
    let offset = page * uffd::page_size();
    say(format_args!(
        "userfault: the page at offset {offset} of {} cannot be had: {}{}; on_error=\"abort\"\n",
        region.source_name,
        failure.error.cause.describe(),
        Errno(failure.error.cause)
    ));
    // SAFETY: resets the action of SIGBUS; the touching instruction then ends the process by it.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

struct Errno(Cause);

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Cause::Os(errno) => write!(f, " (errno {errno})"),
            _ => Ok(()),
        }
    }
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

    #[test]
    fn a_latch_is_of_one_thread_and_opens_once() {
        let failure =
            Failure { kind: Kind::Page, region: 78, address: 4096, error: SourceError::new(5, Cause::Corrupt) };
        assert_eq!(latch(failure), Why::Failed(Kind::Page));
        assert_eq!(latch(failure), Why::FailedAgain(Kind::Page), "asked a moment ago");
        assert!(is_latched(thread_id()));
        let other = std::thread::spawn(|| (is_latched(thread_id()), take().is_none())).join().unwrap();
        assert_eq!(other, (false, true));
        assert_eq!(take().unwrap().error.offset, 5);
        assert!(take().is_none());
    }
}
