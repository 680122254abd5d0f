//! Staging pages for UFFDIO_MOVE, recycled: an evicted unit's pages are moved here, the next unit is decoded straight
//! into them and moved in. Nothing is allocated, charged, zeroed or freed on the way.
//!
//! A slot is *populated* (its pages are there: it may be written) or a *hole* (its pages were moved away: touching it
//! would be a fault of our own, so nobody does; an evicted unit may be moved into it).
//!
//! *Locks*: none, two bit words. *Threads*: any, handlers too (`take_populated`, `put_*` only).

use crate::error::Error;
use crate::slots::Slots;
use uffd::{Handle, MoveMode, Outcome, RegisterModes};

/// Slots of one unit size, for all regions that have it. They are registered with the SIGBUS descriptor: what touches a hole of
/// theirs (mlockall does, of every page of the process) gets an error at once, where a fault reader's would leave it waiting.
pub struct Stock {
    base: usize,
    unit: usize,
    huge: bool,
    slots: usize,
    populated: Slots,
    holes: Slots,
}

/// A slot on loan. Give it back with `put_populated` or `put_hole`.
#[derive(Debug, PartialEq, Eq)]
pub struct StockSlot(u32);

/// How much staging a stock may hold, bytes, and in slots.
const STOCK_BYTES: usize = 32 << 20;
const STOCK_SLOTS: usize = 64;

impl Stock {
    /// Reserve address space for slots of `unit` bytes, to be registered with `handle`, the SIGBUS descriptor (a number of the
    /// engine's table, so call this on an engine thread).
    ///
    /// # Errors
    /// [`Error::Os`] when the reservation or the registration is refused.
    pub fn new(unit: usize, huge: bool, handle: Handle) -> Result<Self, Error> {
        let slots = (STOCK_BYTES / unit).clamp(2, STOCK_SLOTS);
        let base = crate::mapping::map_private(slots * unit, huge)?;
        // SAFETY: the range is a fresh mapping of our own that nobody touches unless its slot is populated.
        unsafe { handle.register(base, slots * unit, RegisterModes::MISSING) }
            .map_err(|errno| Error::Os { what: "registering staging pages".into(), errno })
            .and_then(|_| crate::mapping::open(base, slots * unit))
            .inspect_err(|_| crate::mapping::unmap(base, slots * unit))?;
        Ok(Self { base, unit, huge, slots, populated: Slots::new(0), holes: Slots::new(slots) })
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
        self.populated.take().map(StockSlot)
    }

    /// A slot that something may be moved into.
    #[must_use]
    pub fn take_hole(&self) -> Option<StockSlot> {
        self.holes.take().map(StockSlot)
    }

    /// Its pages are there.
    pub fn put_populated(&self, slot: StockSlot) {
        self.populated.put(slot.0);
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
        self.holes.put(slot.0);
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
        self.drop_pages(&slot);
        if back.is_ok() {
            self.put_hole(slot);
        } // else nothing can be moved into it any more: no bit names it again
        None
    }

    /// Move a unit of a region in here; false: it stays where it is, whole or in part. `handle` is the stock's descriptor as
    /// the calling thread numbers it.
    ///
    /// # Safety
    /// The caller owns the unit at `from` and wants its pages gone from there.
    #[must_use]
    pub unsafe fn move_out(&self, from: usize, handle: Handle) -> bool {
        // SAFETY: by the contract of this function.
        unsafe { self.move_run_out(from, 1, handle) }
    }

    /// The same of so many units in a row, by one call; all of them or none leave this way.
    ///
    /// # Safety
    /// As for [`Stock::move_out`].
    #[must_use]
    pub unsafe fn move_run_out(&self, from: usize, units: u32, handle: Handle) -> bool {
        let Some(first) = self.holes.take_run(units) else { return false };
        let (start, bytes) = (self.address(&StockSlot(first)), units as usize * self.unit);
        // SAFETY: by the contract of this function.
        let moved = unsafe { handle.move_pages(start, from, bytes, MoveMode::DONTWAKE) } == Outcome::Done;
        for slot in (first..first + units).map(StockSlot) {
            if moved {
                self.put_populated(slot);
            } else {
                self.put_back(slot, false);
            }
        }
        moved
    }

    fn drop_pages(&self, slot: &StockSlot) {
        let _ = crate::mapping::advise(self.address(slot), self.unit, libc::MADV_DONTNEED);
    }

    /// Slots that are populated, for statistics.
    #[must_use]
    pub fn populated_slots(&self) -> u32 {
        self.populated.count()
    }
}

impl Drop for Stock {
    /// The last region that used it is gone: so is its memory. Any thread.
    fn drop(&mut self) {
        crate::mapping::unmap(self.base, self.slots * self.unit);
    }
}
