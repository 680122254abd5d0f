//! Staging pages for UFFDIO_MOVE, recycled: an evicted unit's pages are moved here, the next unit is decoded straight
//! into them and moved in. Nothing is allocated, charged, zeroed or freed on the way.
//!
//! A slot is *populated* (its pages are there: it may be written) or a *hole* (its pages were moved away: touching it
//! would be a fault of our own, so nobody does; an evicted unit may be moved into it).
//!
//! *Locks*: none, two bit words. *Threads*: any, handlers too (`take_populated`, `put_*` only).

use crate::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use uffd::{Handle, MoveMode, Outcome, RegisterModes};

/// Slots of one unit size, registered with one descriptor.
pub struct Stock {
    base: usize,
    unit: usize,
    huge: bool,
    populated: AtomicU64,
    holes: AtomicU64,
}

/// A slot on loan. Give it back with `put_populated` or `put_hole`.
#[derive(Debug, PartialEq, Eq)]
pub struct StockSlot(u32);

/// How much staging a stock may hold, bytes, and in slots.
const STOCK_BYTES: usize = 32 << 20;
const STOCK_SLOTS: usize = 64;

impl Stock {
    /// Reserve address space for slots of `unit` bytes, to be registered with `handle` (a number of the engine's table,
    /// so call this on an engine thread).
    ///
    /// # Errors
    /// [`Error::Os`] when the reservation or the registration is refused.
    pub fn new(unit: usize, huge: bool, handle: Handle) -> Result<Self, Error> {
        let slots = (STOCK_BYTES / unit).clamp(2, STOCK_SLOTS);
        let base = crate::mapping::map_private(slots * unit, huge)?;
        // SAFETY: the range is a fresh mapping of our own that nobody touches unless its slot is populated.
        unsafe { handle.register(base, slots * unit, RegisterModes::MISSING) }.map_err(|errno| {
            crate::mapping::unmap(base, slots * unit);
            Error::Os { what: "registering staging pages".into(), errno }
        })?;
        let holes = if slots == 64 { u64::MAX } else { (1 << slots) - 1 };
        Ok(Self { base, unit, huge, populated: AtomicU64::new(0), holes: AtomicU64::new(holes) })
    }

    /// The shape regions ask for.
    #[must_use]
    pub fn serves(&self, unit: usize, huge: bool) -> bool {
        (self.unit, self.huge) == (unit, huge)
    }

    /// Where a slot is.
    #[must_use]
    pub fn address(&self, slot: &StockSlot) -> usize {
        self.base + slot.0 as usize * self.unit
    }

    /// A slot that may be written.
    #[must_use]
    pub fn take_populated(&self) -> Option<StockSlot> {
        take(&self.populated)
    }

    /// A slot that something may be moved into.
    #[must_use]
    pub fn take_hole(&self) -> Option<StockSlot> {
        take(&self.holes)
    }

    /// Its pages are there.
    pub fn put_populated(&self, slot: StockSlot) {
        self.populated.fetch_or(1 << slot.0, Ordering::Release);
    }

    /// After a fill: its pages went to their place (`gone`), or something may be left of them: then they are dropped, so
    /// that the slot is what its bit says.
    pub fn put_back(&self, slot: StockSlot, gone: bool) {
        if !gone {
            self.drop_pages(&slot);
        }
        self.put_hole(slot);
    }

    /// Its pages are gone.
    pub fn put_hole(&self, slot: StockSlot) {
        self.holes.fetch_or(1 << slot.0, Ordering::Release);
    }

    /// A hole filled with fresh pages: for huge units, where even that beats copying (docs/facts.md, Filling). The slot leaves
    /// the descriptor while its pages are made, or the making would be a fault of ours. `handle` is the stock's descriptor
    /// as the calling thread numbers it.
    #[must_use]
    pub fn make_fresh(&self, handle: Handle) -> Option<StockSlot> {
        let slot = self.take_hole()?;
        let start = self.address(&slot);
        // SAFETY: the slot is ours alone while it is on loan, and empty.
        let made = unsafe {
            handle.unregister(start, self.unit).is_ok()
                && libc::madvise(start as *mut libc::c_void, self.unit, libc::MADV_POPULATE_WRITE) == 0
        };
        // SAFETY: as above; present pages do not fault.
        let back = unsafe { handle.register(start, self.unit, RegisterModes::MISSING) };
        if made && back.is_ok() {
            return Some(slot);
        }
        if back.is_ok() {
            self.drop_pages(&slot);
            self.put_hole(slot);
        } else {
            // Nothing can be moved into it any more: no bit names it again, and its address space goes with its pages.
            crate::mapping::unmap(start, self.unit);
        }
        None
    }

    /// Move a unit of a region in here; false: it stays where it is, whole or in part. `handle` is the stock's descriptor as
    /// the calling thread numbers it.
    ///
    /// # Safety
    /// The caller owns the unit at `from` and wants its pages gone from there.
    #[must_use]
    pub unsafe fn move_out(&self, from: usize, handle: Handle) -> bool {
        let Some(slot) = self.take_hole() else { return false };
        // SAFETY: by the contract of this function.
        let moved = unsafe { handle.move_pages(self.address(&slot), from, self.unit, MoveMode::DONTWAKE) };
        if moved == Outcome::Done {
            self.put_populated(slot);
            return true;
        }
        self.drop_pages(&slot);
        self.put_hole(slot);
        false
    }

    fn drop_pages(&self, slot: &StockSlot) {
        // SAFETY: the slot is ours alone while it is on loan.
        unsafe { libc::madvise(self.address(slot) as *mut libc::c_void, self.unit, libc::MADV_DONTNEED) };
    }

    /// Slots that are populated, for statistics.
    #[must_use]
    pub fn populated_slots(&self) -> u32 {
        self.populated.load(Ordering::Relaxed).count_ones()
    }
}

fn take(word: &AtomicU64) -> Option<StockSlot> {
    loop {
        let bits = word.load(Ordering::Relaxed);
        if bits == 0 {
            return None;
        }
        let bit = bits.trailing_zeros();
        if word.compare_exchange_weak(bits, bits & !(1 << bit), Ordering::Acquire, Ordering::Relaxed).is_ok() {
            return Some(StockSlot(bit));
        }
    }
}
