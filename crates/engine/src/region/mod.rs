//! One range we mapped: where it is, where its pages come from, how its faults are delivered, and what state it is in.
//!
//! *Locks*: `poisoned`, `waits`: engine threads only, held for a few system calls, never while a source is read.
//! *Threads*: shared by all; a signal handler uses the atomics, `states`, `exposed` and `scratch` only.

mod away;
mod copied;
mod failed;
mod options;
mod statistics;
mod tables;
pub mod waits;

pub use away::{Away, NOT_LOST};
pub use failed::A_LITTLE;
pub use options::{Delivery, Mode, OnError, Options};
pub use tables::{Handles, SharedFile};

use crate::bits::PageBits;
use crate::counters::Counted;
use crate::exposures::Exposures;
use crate::mapping;
use crate::policy::{Choice, Policy};
use crate::readahead::{Readahead, Shape};
use crate::residence::Residence;
use crate::scratch::ScratchPool;
use crate::source::volatile::Offers;
use crate::source::{Latency, Source, Table};
use crate::states::{State, UnitStates};
use crate::stock::Stock;
use crate::threads::Root;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use uffd::Handle;

/// The region.
pub struct Region {
    /// Never used twice in a process.
    pub id: u64,
    /// First address; a multiple of 2 MiB.
    pub base: usize,
    /// Bytes of the source.
    pub len: usize,
    /// Bytes mapped: `len` rounded up to pages.
    pub mapped: usize,
    /// Bytes filled per fault; a power of two.
    pub unit: usize,
    /// As chosen.
    pub options: Options,
    /// Where pages come from.
    pub source: Arc<dyn Source>,
    /// Of volatile memory: the states of its pages.
    pub offers: Option<Arc<Offers>>,
    /// Its name, made before any fault.
    pub source_name: String,
    /// The memory file of a shared region.
    pub file: Option<SharedFile>,
    /// The userfaultfd it is registered with.
    pub handles: Handles,
    /// Which lane serves it (thread delivery).
    pub lane: usize,
    /// Staging for MOVE, where the unit is large enough.
    pub stock: Option<Arc<Stock>>,
    /// COPY or MOVE.
    pub policy: Policy,
    /// The resident budget, if there is one.
    pub residence: Option<Residence>,
    /// Working memory for fills.
    pub scratch: Arc<ScratchPool>,
    /// Absent, filling, present.
    pub states: UnitStates,
    /// What happened.
    pub counters: Counted,
    /// Pages that show the error pattern.
    pub exposed: Exposed,
    /// Pages that were poisoned, until they are touched, filled or expire.
    poisoned: Mutex<BTreeMap<usize, Instant>>,
    /// Is `poisoned` worth locking?
    poisoned_count: AtomicU64,
    /// Faults that wait for a slow read.
    pub waits: waits::Waits,
    /// How often a page of it showed the error pattern.
    pub exposures: Exposures,
    /// Set before it is taken down: queued work ends early.
    pub closing: AtomicBool,
    /// When failed pages are re-armed next, and how far apart; the keeper's.
    pub rearm: Mutex<Rearm>,
    /// Held while pages that show the pattern are turned back into holes.
    pub sweeping: Mutex<()>,
    /// Fills that turn such a page into a hole just now.
    pub hiding: AtomicU32,
    /// Sequential detection.
    pub readahead: Readahead,
    /// Of a region that a pager serves.
    pub away: Option<Away>,
}

/// The pages that show the error pattern. Of volatile memory such a page counts as lost from then on, although the pattern
/// goes again: the note outlives it.
pub struct Exposed {
    bits: PageBits,
    offers: Option<Arc<Offers>>,
}

impl Exposed {
    /// Add a page; true if the set was empty before. Callable from a signal handler.
    pub fn insert(&self, page: usize) -> bool {
        if let Some(offers) = &self.offers {
            offers.spoil(page);
        }
        self.bits.insert(page)
    }
}

impl std::ops::Deref for Exposed {
    type Target = PageBits;
    fn deref(&self) -> &PageBits {
        &self.bits
    }
}

/// The pace of re-arming: fast for a lone failure, slower for a storm, so that a slow toucher makes progress.
#[derive(Clone, Copy, Debug)]
pub struct Rearm {
    /// Not before this.
    pub due: Option<Instant>,
    /// The present distance.
    pub pace: Duration,
}

/// First and last pace of re-arming.
pub const REARM_PACE: Range<Duration> = Duration::from_micros(100)..Duration::from_millis(10);

impl Default for Rearm {
    fn default() -> Self {
        Self { due: None, pace: REARM_PACE.start }
    }
}

/// Everything [`Region::new`] is given.
pub struct Parts {
    /// Never used twice.
    pub id: u64,
    /// Where it was mapped.
    pub base: usize,
    /// A power of two.
    pub unit: usize,
    /// As chosen.
    pub options: Options,
    /// Where pages come from.
    pub source: Arc<dyn Source>,
    /// Of a shared region.
    pub file: Option<SharedFile>,
    /// The userfaultfd.
    pub handles: Handles,
    /// Which lane.
    pub lane: usize,
    /// Staging.
    pub stock: Option<Arc<Stock>>,
    /// Working memory.
    pub scratch: Arc<ScratchPool>,
    /// Of a region that a pager serves.
    pub away: Option<Away>,
}

impl Region {
    /// Put a region together.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let len = usize::try_from(parts.source.len()).unwrap_or(usize::MAX);
        let mapped = mapped_bytes(len);
        let pages = mapped / uffd::page_size();
        let offers = parts.source.offers().cloned();
        let resident = parts.options.resident;
        let residence = (1..mapped).contains(&resident).then(|| Residence::new(resident, parts.unit));
        let kept = residence.as_ref().map_or(usize::MAX, Residence::units);
        let slow = parts.source.latency() == Latency::MayBlock;
        // Alone on one CPU, a source that never waits is not read any sooner by somebody else.
        let may_gain = slow || std::thread::available_parallelism().is_ok_and(|n| n.get() > 1);
        let readahead = Readahead::new(&Shape {
            helps: may_gain && parts.source.readahead_helps(),
            slow,
            unit: parts.unit,
            piece: parts.source.piece() / parts.unit,
            kept,
        });
        let policy = Policy::new(&Choice {
            unit: parts.unit,
            huge: parts.options.huge,
            shared: parts.file.is_some(),
            can_move: parts.stock.is_some(),
            batch: residence.as_ref().map_or(0, Residence::batch),
        });
        let (counters, states) = away::counters_and_states(parts.away.as_ref(), mapped.div_ceil(parts.unit));
        Self {
            id: parts.id,
            base: parts.base,
            len,
            mapped,
            unit: parts.unit,
            source_name: parts.source.name(),
            source: parts.source,
            options: parts.options,
            file: parts.file,
            handles: parts.handles,
            lane: parts.lane,
            stock: parts.stock,
            policy,
            residence,
            scratch: parts.scratch,
            states,
            away: parts.away,
            counters,
            exposed: Exposed { bits: PageBits::new(pages), offers: offers.clone() },
            offers,
            poisoned: Mutex::default(),
            poisoned_count: AtomicU64::new(0),
            waits: waits::Waits::default(),
            exposures: Exposures::default(),
            closing: AtomicBool::new(false),
            rearm: Mutex::default(),
            sweeping: Mutex::default(),
            hiding: AtomicU32::new(0),
            readahead,
        }
    }

    /// Is this address in it?
    #[must_use]
    pub fn contains(&self, address: usize) -> bool {
        address >= self.base && address - self.base < self.mapped
    }

    /// The page of an address inside.
    #[must_use]
    pub fn page_of(&self, address: usize) -> usize {
        (address - self.base) / uffd::page_size()
    }

    /// Where a page is.
    #[must_use]
    pub fn page_address(&self, page: usize) -> usize {
        self.base + page * uffd::page_size()
    }

    /// The unit a page lies in.
    #[must_use]
    pub fn unit_of_page(&self, page: usize) -> usize {
        page * uffd::page_size() / self.unit
    }

    /// The mapped bytes of a unit, as offsets in the region.
    #[must_use]
    pub fn unit_range(&self, unit: usize) -> Range<usize> {
        let start = unit * self.unit;
        start..(start + self.unit).min(self.mapped)
    }

    /// The units that a range of bytes touches.
    #[must_use]
    pub fn units_touching(&self, bytes: Range<usize>) -> Range<usize> {
        if bytes.is_empty() {
            return 0..0;
        }
        bytes.start / self.unit..bytes.end.min(self.mapped).div_ceil(self.unit)
    }

    /// The descriptor number for a thread with this table.
    #[must_use]
    pub fn handle(&self, table: Table) -> Handle {
        match table {
            Table::Application => self.handles.application,
            Table::Engine => self.handles.engine,
        }
    }

    /// Is this page there, so that a touch of it goes on?
    #[must_use]
    pub fn has_page(&self, page: usize) -> bool {
        let address = self.page_address(page);
        if self.file.is_some() { mapping::is_mapped(address, 1) } else { mapping::is_resident(address) }
    }

    /// Is it being taken down?
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// The unit was filled or emptied, or cannot be filled: give up its ownership and answer everybody who waited for it.
    /// Engine threads only.
    pub fn settle(&self, unit: usize, state: State) {
        self.settle_from(Table::Engine, unit, state);
    }

    /// The same in a thread with this table of descriptors: in signal handlers too.
    pub fn settle_from(&self, table: Table, unit: usize, state: State) {
        self.states.settle(unit, state);
        // With signal delivery nobody waits in the kernel.
        let may_wait = table == Table::Engine || self.options.delivery == Delivery::Thread;
        if may_wait && self.forget_waits(unit) {
            // Those who were told to wait ask again, even of a unit that was filled: their page may have been dropped
            // (madvise, or the kernel unmapping a page of a memory file) after the fill had passed it.
            let range = self.unit_range(unit);
            self.wake_from(table, self.base + range.start, range.len());
        }
    }

    /// Only the descriptor of the registration wakes; where this table has no copy of it, a thread that has it is asked.
    fn wake_from(&self, table: Table, start: usize, bytes: usize) {
        let engine = self.handles.engine;
        if table == Table::Engine || self.handles.original == engine {
            let _ = self.handle(table).wake(start, bytes);
        } else if let Some(root) = Root::current() {
            let _ = root.run(move || engine.wake(start, bytes));
        }
    }

    /// Nobody waits for this unit any more; true: somebody did.
    pub fn forget_waits(&self, unit: usize) -> bool {
        let range = self.unit_range(unit);
        self.waits.over(range.start / uffd::page_size()..range.end / uffd::page_size())
    }

    /// Make all waiters of a unit fault again; errors do not matter: then nobody can be waiting there.
    pub fn wake_unit(&self, unit: usize) {
        let range = self.unit_range(unit);
        let _ = self.handles.engine.wake(self.base + range.start, range.len());
    }

    /// Give the address space back; on an engine thread, once. What is left is dropped by an application thread.
    pub fn unmap(&self) {
        // Unmapping first: there is no moment at which the range is mapped and not registered.
        mapping::unmap(self.base, self.mapped);
        let _ = self.handles.engine.wake(self.base, self.mapped);
    }
}

/// Whole pages for `len` bytes, at least one.
#[must_use]
pub fn mapped_bytes(len: usize) -> usize {
    len.max(1).next_multiple_of(uffd::page_size())
}
