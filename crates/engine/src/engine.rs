//! Everything there is one of in a process: descriptors, the table of regions, the queue, shared working memory.
//!
//! *Locks*: `stocks`, `pools`, `lanes_started`: only while a region is opened; `names`: a moment, as one that failed is closed.
//! *Threads*: shared by all.

use crate::counters::Counters;
use crate::error::Error;
use crate::queue::Queue;
use crate::region::{Handles, Region};
use crate::scratch::{ScratchNeeds, ScratchPool};
use crate::spread::Spread;
use crate::stock::Stock;
use crate::table::{AddressTable, Pin};
use crate::threads::Root;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use uffd::{Handle, Userfaultfd};

/// What the kernel lets this process do.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    /// UFFDIO_MOVE (6.8).
    pub can_move: bool,
    /// UFFDIO_POISON (6.6).
    pub can_poison: bool,
    /// Faults of system calls reach a descriptor.
    pub kernel_faults: bool,
}

/// One descriptor with its reader.
pub struct Lane {
    /// In the engine's table.
    pub handle: Handle,
    /// In the application's table, made for the first region whose touchers serve themselves; `None`: it cannot be had.
    pub application: OnceLock<Option<OwnedFd>>,
    /// Has its reader thread been started?
    pub started: Mutex<bool>,
    /// The CPU its reader pinned itself to, -1: none yet. For people.
    pub cpu: AtomicU32,
    /// One reader or several?
    pub spread: Spread,
    /// Has it a reader on each CPU, asleep or not?
    pub has_many: AtomicBool,
}

/// The descriptor with the SIGBUS feature.
pub struct SignalDescriptor {
    /// Keeps the application's copy open; nobody but this owns it.
    pub application: Userfaultfd,
    /// Its number in the engine's table: a dup that outlives the application's.
    pub engine: Handle,
}

/// The engine of this process.
pub struct Engine {
    /// Address to region.
    pub table: AddressTable<Region>,
    /// What works here.
    pub abilities: Abilities,
    /// For thread delivery.
    pub lanes: Vec<Lane>,
    /// For signal delivery, and for resolving from signal handlers of any region.
    pub signal: SignalDescriptor,
    /// Engine threads.
    pub root: &'static Root,
    /// Work for the pool.
    pub queue: Queue,
    /// Sums of closed regions.
    pub closed: Counters,
    /// Dead engines of the processes this one was forked from, for their tombstones.
    pub previous: *const Engine,
    /// Starts one more worker. A pointer, because workers live above this floor.
    pub start_worker: fn(&'static Engine),
    /// Of the last closed regions that failed.
    names: Mutex<VecDeque<(u64, String)>>,
    next_region: AtomicU64,
    next_lane: AtomicU64,
    stocks: Mutex<Vec<Weak<Stock>>>,
    pools: Mutex<Vec<Weak<ScratchPool>>>,
}

// SAFETY: `previous` points to a leaked engine that nobody writes any more; everything else is Sync by itself.
unsafe impl Sync for Engine {}
// SAFETY: as above.
unsafe impl Send for Engine {}

static CURRENT: AtomicPtr<Engine> = AtomicPtr::new(std::ptr::null_mut());
/// The newest engine of a process we were forked from.
static DEAD: AtomicPtr<Engine> = AtomicPtr::new(std::ptr::null_mut());

/// Lanes that regions of called sources use.
const CALLED_LANES: u64 = 4;

/// So many closed regions are known by name: as many as threads may have an exception on their way.
const NAMES: usize = crate::shared::LATCHES;

/// Scratches in a pool of large units and small ones.
const SCRATCHES: usize = 8;

impl Engine {
    /// The engine, if it was started.
    #[must_use]
    pub fn current() -> Option<&'static Engine> {
        // SAFETY: the pointer is null or a leaked box.
        unsafe { CURRENT.load(Ordering::Acquire).as_ref() }
    }

    /// The engine of the process we were forked from, if we were and it had one.
    #[must_use]
    pub fn dead() -> Option<&'static Engine> {
        // SAFETY: the pointer is null or a leaked box.
        unsafe { DEAD.load(Ordering::Acquire).as_ref() }
    }

    /// The region of the process that we were forked from that had `address`, or of an older one. Takes no lock.
    #[must_use]
    pub fn parents_region(address: usize) -> Option<Pin<Region>> {
        let mut engine = Self::dead();
        while let Some(dead) = engine {
            if let Some(region) = dead.table.pin(address).filter(|region| region.contains(address)) {
                return Some(region);
            }
            // SAFETY: `previous` is null or a leaked engine.
            engine = unsafe { dead.previous.as_ref() };
        }
        None
    }

    /// Make this the engine of the process.
    pub fn install(&'static self) {
        CURRENT.store(std::ptr::from_ref(self).cast_mut(), Ordering::Release);
    }

    /// In a forked child: the engine is the parent's; nothing of it works here.
    pub fn bury() {
        let engine = CURRENT.swap(std::ptr::null_mut(), Ordering::AcqRel);
        if !engine.is_null() {
            DEAD.store(engine, Ordering::Release);
        }
    }

    /// Put an engine together.
    ///
    /// # Errors
    /// [`Error::Os`] when the descriptors cannot be shared with the engine's threads.
    pub fn new(
        root: &'static Root,
        lanes: Vec<Handle>,
        signal: Userfaultfd,
        abilities: Abilities,
        start_worker: fn(&'static Engine),
    ) -> Result<Self, Error> {
        let owned: OwnedFd = signal.into_owned();
        let engine = Handle::from_raw(root.adopt(&owned)?);
        Ok(Self {
            table: AddressTable::new(),
            abilities,
            lanes: lanes.into_iter().map(Lane::new).collect(),
            signal: SignalDescriptor { application: Userfaultfd::from_owned(owned), engine },
            root,
            queue: Queue::default(),
            closed: Counters::default(),
            previous: DEAD.load(Ordering::Acquire),
            start_worker,
            names: Mutex::default(),
            next_region: AtomicU64::new(1),
            next_lane: AtomicU64::new(0),
            stocks: Mutex::default(),
            pools: Mutex::default(),
        })
    }

    /// A number for a new region.
    #[must_use]
    pub fn next_region(&self) -> u64 {
        self.next_region.fetch_add(1, Ordering::Relaxed)
    }

    /// A region is about to go: an exception that is still on its way names its source.
    pub fn keep_name(&self, region: &Region) {
        if region.exposures.count() == 0 {
            return; // no page of it failed
        }
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= NAMES {
            names.pop_front();
        }
        names.push_back((region.id, region.source_name.clone()));
    }

    /// The name of the source of the region with this number, if that was closed a while ago.
    #[must_use]
    pub fn name_of_closed(&self, number: u64) -> Option<String> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.iter().find(|(region, _)| *region == number).map(|(_, name)| name.clone())
    }

    /// Lanes in turn.
    #[must_use]
    pub fn next_lane(&self) -> usize {
        (self.next_lane.fetch_add(1, Ordering::Relaxed) % self.lanes.len() as u64) as usize
    }

    /// The same for regions whose touchers serve themselves: the last lanes, which have a reader on each CPU.
    #[must_use]
    pub fn next_called_lane(&self) -> usize {
        let count = self.lanes.len() as u64;
        let called = CALLED_LANES.min(count);
        (count - called + self.next_lane.fetch_add(1, Ordering::Relaxed) % called) as usize
    }

    /// The signal descriptor in both tables.
    #[must_use]
    pub fn signal_handles(&self) -> Handles {
        Handles::of(self.signal.application.handle(), self.signal.engine)
    }

    /// A lane's descriptor in both tables: for touchers that serve themselves. Application threads.
    #[must_use]
    pub fn lane_handles(&self, index: usize) -> Handles {
        let lane = &self.lanes[index];
        if !self.root.has_private_table() {
            return Handles::of(lane.handle, lane.handle);
        }
        match lane.application.get_or_init(|| self.root.borrow(lane.handle.as_raw_fd())) {
            Some(copy) => Handles::of(Handle::from_raw(copy.as_raw_fd()), lane.handle),
            // It resolves just as well, but wakes nobody: who waits for the same unit asks again when its time is up.
            None => Handles { engine: lane.handle, ..self.signal_handles() },
        }
    }

    /// Staging for units of this size, shared by the regions that need it; made for the first, given back with the last.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn stock(&self, unit: usize, huge: bool) -> Result<Arc<Stock>, Error> {
        let mut stocks = self.stocks.lock().unwrap_or_else(PoisonError::into_inner);
        stocks.retain(|stock| stock.strong_count() > 0);
        if let Some(stock) = stocks.iter().filter_map(Weak::upgrade).find(|stock| stock.serves(unit, huge)) {
            return Ok(stock);
        }
        let handle = self.signal.engine;
        let stock = Arc::new(self.root.run(move || Stock::new(unit, huge, handle))?);
        stocks.push(Arc::downgrade(&stock));
        Ok(stock)
    }

    /// Working memory for this shape, shared by the regions that need it.
    #[must_use]
    pub fn pool(&self, unit: usize, needs: ScratchNeeds) -> Arc<ScratchPool> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|pool| pool.strong_count() > 0);
        let known = pools.iter().filter_map(Weak::upgrade).find(|pool| pool.shape() == (unit, needs));
        known.unwrap_or_else(|| {
            let pool = Arc::new(ScratchPool::new(unit, needs, SCRATCHES));
            pools.push(Arc::downgrade(&pool));
            pool
        })
    }
}

impl Lane {
    fn new(handle: Handle) -> Self {
        Self {
            handle,
            application: OnceLock::new(),
            started: Mutex::new(false),
            cpu: AtomicU32::new(u32::MAX),
            spread: Spread::default(),
            has_many: AtomicBool::new(false),
        }
    }
}
