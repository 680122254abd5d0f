//! Which region an address of the owner is of.
//!
//! *Locks*: `regions`, for a few instructions; a region's `live`, while pages are put into it.

use crate::cause::Cause;
use crate::pager::wire::Attach;
use crate::readahead::{Readahead, Shape};
use crate::shared::MappedPart;
use crate::source::{Latency, Source};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// A region of the owner.
pub struct Served {
    /// Its number there.
    pub id: u64,
    /// Its first address there.
    pub base: usize,
    /// Bytes mapped.
    pub mapped: usize,
    /// Bytes of its source, as the owner knows it.
    pub len: usize,
    /// Bytes filled per fault.
    pub unit: usize,
    /// How long a touch may wait.
    pub timeout_ns: u64,
    /// What is shared of it.
    pub part: MappedPart,
    /// Where its pages come from, or why they do not.
    pub source: Result<Arc<dyn Source>, Cause>,
    /// What is read before it is touched: of sources that make their readers wait.
    pub ahead: Readahead,
    /// Servers that fill it for those who wait for that, and for those who do not.
    pub readers: [AtomicUsize; 2],
    /// Said beside that cause.
    pub text: String,
    /// False: nothing may be put into it any more.
    live: RwLock<bool>,
    /// What one unit took lately.
    cost_ns: AtomicU64,
}

impl Served {
    /// As the owner told.
    pub fn new(attach: Attach, part: MappedPart, source: Result<Arc<dyn Source>, Cause>) -> Self {
        let number = |word: u64| usize::try_from(word).unwrap_or(usize::MAX);
        let (mapped, unit) = (number(attach.mapped), number(attach.unit));
        let slow = source.as_ref().is_ok_and(|source| source.latency() == Latency::MayBlock);
        let ahead = Readahead::new(&Shape {
            helps: slow && source.as_ref().is_ok_and(|source| source.readahead_helps()),
            slow,
            unit,
            piece: source.as_ref().map_or(0, |source| source.piece()) / unit.max(1),
            kept: mapped.div_ceil(unit.max(1)),
        });
        Self {
            id: attach.region,
            base: number(attach.base),
            mapped,
            len: number(attach.len),
            unit,
            ahead,
            timeout_ns: attach.timeout_ns,
            part,
            source,
            readers: Default::default(),
            text: String::new(),
            live: RwLock::new(true),
            cost_ns: AtomicU64::new(0),
        }
    }

    /// With words for why it has no source.
    pub fn with_text(self, text: &str) -> Self {
        Self { text: text.into(), ..self }
    }

    /// The page of an address inside.
    pub fn page_of(&self, address: usize) -> usize {
        (address - self.base) / uffd::page_size()
    }

    /// The unit of a page.
    pub fn unit_of_page(&self, page: usize) -> usize {
        page * uffd::page_size() / self.unit
    }

    /// Where a page is.
    pub fn page_address(&self, page: usize) -> usize {
        self.base + page * uffd::page_size()
    }

    /// The mapped bytes of units, as offsets.
    pub fn bytes_of(&self, units: Range<usize>) -> Range<usize> {
        units.start * self.unit..(units.end * self.unit).min(self.mapped)
    }

    /// Do something to its pages; `None`: it was let go, and its addresses may be another region's.
    pub fn while_live<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        live.then(work)
    }

    /// May pages be put into it still? It may end right after.
    pub fn is_live(&self) -> bool {
        self.while_live(|| ()).is_some()
    }

    /// One unit took so long.
    pub fn took(&self, ns: u64) {
        let before = self.cost_ns.load(Ordering::Relaxed);
        let now = if before == 0 { ns } else { (before * 7 + ns) / 8 };
        self.cost_ns.store(now, Ordering::Relaxed);
    }

    /// What one takes, by those of late.
    pub fn takes_ns(&self) -> u64 {
        self.cost_ns.load(Ordering::Relaxed)
    }
}

/// All regions, by their first address.
#[derive(Default)]
pub struct Table {
    regions: RwLock<BTreeMap<usize, Arc<Served>>>,
}

impl Table {
    /// One more, instead of what was there.
    pub fn insert(&self, served: Served) {
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        regions.insert(served.base, Arc::new(served));
    }

    /// The region of an address.
    pub fn find(&self, address: usize) -> Option<Arc<Served>> {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        let (_, served) = regions.range(..=address).next_back()?;
        (address - served.base < served.mapped).then(|| served.clone())
    }

    /// The region with this number.
    pub fn by_id(&self, id: u64) -> Option<Arc<Served>> {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        regions.values().find(|served| served.id == id).cloned()
    }

    /// Let go of it: when this returns no page is put there any more. Its source goes with the last read of it, or with the answer.
    #[must_use]
    pub fn remove(&self, id: u64) -> Option<Arc<Served>> {
        let served = self.by_id(id)?;
        self.regions.write().unwrap_or_else(PoisonError::into_inner).remove(&served.base);
        *served.live.write().unwrap_or_else(PoisonError::into_inner) = false;
        Some(served)
    }
}
