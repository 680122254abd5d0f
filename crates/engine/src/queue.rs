//! Work for the worker pool: demand first, then what a caller waits for or hinted at, then readahead (law 8).
//!
//! *Locks*: one mutex around the lists, never held while anything else is done; the readahead ring takes none, because
//! signal handlers write it. *Threads*: any. *Blocks on*: [`Queue::next`] sleeps until there is work.

use crate::futex::Bell;
use crate::readahead::STREAMS;
use crate::region::Region;
use crate::source::SourceError;
use crate::table::Pin;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use uffd::Fault;

/// A fault that the reader could not end at once. Its unit is claimed (`Filling`) and belongs to the job.
pub struct FaultJob {
    /// Where.
    pub region: Pin<Region>,
    /// The page touched.
    pub page: usize,
    /// The toucher, 0 when unknown.
    pub thread: i32,
    /// Not before this (a deferred EAGAIN).
    pub after: Option<Instant>,
    /// How often it was deferred.
    pub deferrals: u32,
}

/// A fault whose thread ran when it was read: who answers it depends on what that does.
pub struct Look {
    /// Where.
    pub region: Pin<Region>,
    /// The fault.
    pub fault: Fault,
}

/// Many units of one region, filled by whichever workers have time.
pub struct Bulk {
    /// Where.
    pub region: Pin<Region>,
    /// Units.
    pub units: Range<usize>,
    /// Does somebody wait for it: then failures matter, and units that others fill are waited for.
    pub awaited: bool,
    next: AtomicUsize,
    active: AtomicUsize,
    /// Stop early.
    pub cancelled: AtomicBool,
    failed: Mutex<Option<SourceError>>,
    done: AtomicU32,
}

impl Bulk {
    /// All of `units`, not begun.
    #[must_use]
    pub fn new(region: Pin<Region>, units: Range<usize>, awaited: bool) -> Arc<Self> {
        Arc::new(Self {
            region,
            next: AtomicUsize::new(units.start),
            units,
            awaited,
            active: AtomicUsize::new(0),
            cancelled: AtomicBool::new(false),
            failed: Mutex::default(),
            done: AtomicU32::new(0),
        })
    }

    /// A worker takes part; every `join` is followed by one `leave`.
    pub fn join(&self) {
        self.active.fetch_add(1, Ordering::SeqCst);
    }

    /// The next units, at most `count`, if any are left.
    pub fn take(&self, count: usize) -> Option<Range<usize>> {
        if self.cancelled.load(Ordering::Acquire) || self.region.is_closing() {
            self.next.store(self.units.end, Ordering::SeqCst);
            return None;
        }
        let start = self.next.fetch_add(count, Ordering::SeqCst);
        (start < self.units.end).then(|| start..(start + count).min(self.units.end))
    }

    /// All of it was given to somebody else, who joined and leaves for each part.
    pub fn give_out(&self) {
        self.next.store(self.units.end, Ordering::SeqCst);
    }

    /// See `join`.
    pub fn leave(&self) {
        if self.active.fetch_sub(1, Ordering::SeqCst) == 1 && self.next.load(Ordering::SeqCst) >= self.units.end {
            self.done.store(1, Ordering::SeqCst);
            crate::futex::wake_all(&self.done);
        }
    }

    /// Remember the first failure and stop.
    pub fn fail(&self, error: SourceError) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.cancelled.store(true, Ordering::Release);
    }

    /// Wait until all is done, or `limit` passed: `None`.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> Option<Result<(), SourceError>> {
        if self.done.load(Ordering::SeqCst) == 0 {
            crate::futex::wait(&self.done, 0, Some(limit));
        }
        if self.done.load(Ordering::SeqCst) == 0 {
            return None;
        }
        Some(self.failed.lock().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err))
    }
}

/// What a worker does next.
pub enum Job {
    /// A demand fault.
    Fault(FaultJob),
    /// A thread to be looked at.
    Look(Look),
    /// A share of a bulk.
    Bulk(Arc<Bulk>),
    /// Reading ahead of a sequential toucher.
    Ahead(Ahead),
    /// A lane whose touchers take turns wants a reader on each CPU.
    Readers(usize),
}

/// For which region, and for which stream of its. In one word: a signal handler puts it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// Where the region is, or was: a multiple of 4 KiB.
    pub base: usize,
    tag: usize,
    /// Of the region's streams.
    pub stream: usize,
}

impl Ahead {
    const STREAM_BITS: u32 = STREAMS.ilog2();
    const TAG_BITS: u32 = 12 - Self::STREAM_BITS;

    fn tag_of(region: &Region) -> usize {
        region.id as usize & ((1 << Self::TAG_BITS) - 1)
    }

    /// Is it this one that is meant, and not one that was mapped there before?
    #[must_use]
    pub fn is_of(&self, region: &Region) -> bool {
        region.base == self.base && Self::tag_of(region) == self.tag
    }

    fn word(self) -> u64 {
        (self.base | self.tag << Self::STREAM_BITS | self.stream) as u64
    }

    fn of(word: u64) -> Self {
        let (word, low) = (word as usize, word as usize & 0xFFF);
        Self { base: word - low, tag: low >> Self::STREAM_BITS, stream: low & (STREAMS - 1) }
    }
}

const _: () = assert!(STREAMS.is_power_of_two());

#[derive(Default)]
struct Lists {
    demand: VecDeque<FaultJob>,
    looks: VecDeque<Look>,
    bulk: VecDeque<Arc<Bulk>>,
    deferred: Vec<FaultJob>,
}

/// Readahead requests under way at most.
const RING: usize = 64;
/// More workers are started up to this number while all of them wait for slow sources.
pub const MOST_WORKERS: usize = 32;

/// The queue.
pub struct Queue {
    lists: Mutex<Lists>,
    ahead: [AtomicU64; RING],
    /// One bit for each lane that wants more readers.
    readers: AtomicU64,
    bell: Bell,
    idle: AtomicUsize,
    /// Workers there are.
    pub workers: AtomicUsize,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            lists: Mutex::default(),
            ahead: [const { AtomicU64::new(0) }; RING],
            readers: AtomicU64::new(0),
            bell: Bell::new(),
            idle: AtomicUsize::new(0),
            workers: AtomicUsize::new(0),
        }
    }
}

impl Queue {
    fn lists(&self) -> MutexGuard<'_, Lists> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A demand fault. True: every worker is busy, and another one may be started.
    pub fn push_fault(&self, job: FaultJob) -> bool {
        let mut lists = self.lists();
        if job.after.is_some() {
            lists.deferred.push(job)
        } else {
            lists.demand.push_back(job)
        }
        let waiting = lists.demand.len();
        drop(lists);
        self.bell.ring();
        self.wants_worker(waiting)
    }

    /// A thread to be looked at. True: as `push_fault`.
    pub fn push_look(&self, look: Look) -> bool {
        let mut lists = self.lists();
        lists.looks.push_back(look);
        let waiting = lists.looks.len() + lists.demand.len();
        drop(lists);
        self.bell.ring();
        self.wants_worker(waiting)
    }

    /// A bulk, for up to `shares` workers. True: as `push_fault`.
    pub fn push_bulk(&self, bulk: &Arc<Bulk>, shares: usize) -> bool {
        self.lists().bulk.extend((0..shares).map(|_| bulk.clone()));
        self.bell.ring_all();
        self.wants_worker(1)
    }

    fn wants_worker(&self, waiting: usize) -> bool {
        self.idle.load(Ordering::SeqCst) < waiting && self.workers.load(Ordering::SeqCst) < MOST_WORKERS
    }

    /// How many more workers `shares` of them would need.
    #[must_use]
    pub fn lacks(&self, shares: usize) -> usize {
        let room = MOST_WORKERS.saturating_sub(self.workers.load(Ordering::SeqCst));
        shares.saturating_sub(self.idle.load(Ordering::SeqCst)).min(room)
    }

    /// Ask that a region be read ahead for one of its streams. Callable from a signal handler; false: too much is under way.
    pub fn push_ahead(&self, region: &Region, stream: usize) -> bool {
        let word = Ahead { base: region.base, tag: Ahead::tag_of(region), stream }.word();
        let free =
            self.ahead.iter().find(|slot| slot.compare_exchange(0, word, Ordering::AcqRel, Ordering::Relaxed).is_ok());
        if free.is_some() {
            self.bell.ring();
        }
        free.is_some()
    }

    /// Is somebody to read ahead, and nobody free to?
    #[must_use]
    pub fn lacks_for_ahead(&self) -> bool {
        self.idle.load(Ordering::SeqCst) == 0 && self.ahead.iter().any(|slot| slot.load(Ordering::Relaxed) != 0)
    }

    /// Have a worker start more readers for a lane (below 64). Takes no lock.
    pub fn want_readers(&self, lane: usize) {
        self.readers.fetch_or(1 << lane, Ordering::AcqRel);
        self.bell.ring();
    }

    fn pop_readers(&self) -> Option<Job> {
        let lanes = self.readers.load(Ordering::Acquire);
        let lane = (lanes != 0).then(|| lanes.trailing_zeros() as usize)?;
        let ours = self.readers.fetch_and(!(1 << lane), Ordering::AcqRel) & 1 << lane != 0;
        ours.then_some(Job::Readers(lane))
    }

    fn pop_ahead(&self) -> Option<Job> {
        let word = self.ahead.iter().find_map(|slot| match slot.load(Ordering::Relaxed) {
            0 => None,
            _ => Some(slot.swap(0, Ordering::AcqRel)).filter(|word| *word != 0),
        })?;
        Some(Job::Ahead(Ahead::of(word)))
    }

    /// The next demand fault, without waiting: looked at between the units of anything else.
    #[must_use]
    pub fn next_fault(&self) -> Option<FaultJob> {
        let mut lists = self.lists();
        let now = Instant::now();
        if let Some(due) = lists.deferred.iter().position(|job| job.after.is_none_or(|after| after <= now)) {
            return Some(lists.deferred.swap_remove(due));
        }
        lists.demand.pop_front()
    }

    /// The next job, waiting for one as long as it takes. An idle queue burns no CPU.
    pub fn next(&self) -> Job {
        loop {
            let rung = self.bell.rung();
            if let Some(job) = self.try_next() {
                return job;
            }
            let due = self.lists().deferred.iter().filter_map(|job| job.after).min();
            let limit = due.map(|due| due.saturating_duration_since(Instant::now()));
            self.idle.fetch_add(1, Ordering::SeqCst);
            self.bell.wait(rung, limit);
            self.idle.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn try_next(&self) -> Option<Job> {
        if let Some(job) = self.next_fault() {
            return Some(Job::Fault(job));
        }
        if let Some(look) = self.lists().looks.pop_front() {
            return Some(Job::Look(look));
        }
        if let Some(bulk) = self.lists().bulk.pop_front() {
            return Some(Job::Bulk(bulk));
        }
        self.pop_readers().or_else(|| self.pop_ahead())
    }
}
