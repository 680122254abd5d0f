//! What stands behind a range: who resolves its faults, and the region that counts its failures.
//!
//! *Locks*: a region's `poisoned`, for a few system calls. *Threads*: the root thread, with the gate closed, and the pump.

use crate::cause::{Cause, Kind};
use crate::flagged::view::{Act, Resolver};
use crate::mman::Mman;
use crate::region::{Delivery, Mode, OnError, Options, Parts, Region};
use crate::source::{Reading, Source, SourceError};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// How long a source behind flagged memory may keep others waiting for the same page.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The source of memory that nothing fills.
struct Nothing {
    start: usize,
    len: u64,
}

impl Source for Nothing {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_into(&self, offset: u64, _out: &mut [u8], _how: &mut Reading<'_>) -> Result<(), SourceError> {
        Err(SourceError::new(offset, Cause::Unresolved))
    }

    fn name(&self) -> String {
        format!("{} bytes of flagged memory at {:#x}", self.len, self.start)
    }

    fn signal_safe(&self) -> bool {
        true
    }
}

impl Mman {
    /// The same resolver for memory that lies elsewhere now.
    pub(super) fn moved_resolver(&self, old: &Resolver, shift: usize) -> Arc<Resolver> {
        let base = old.region.base.wrapping_add(shift);
        self.resolver_at(old.act.clone(), base, old.region.source.clone())
    }

    /// What stands behind a range that nothing else stands behind.
    #[must_use]
    pub fn resolver(&self, act: Act, range: &Range<usize>) -> Arc<Resolver> {
        self.resolver_at(act, range.start, Arc::new(Nothing { start: range.start, len: range.len() as u64 }))
    }

    /// A resolver for memory from `base` on, as long as its source.
    #[must_use]
    pub fn resolver_at(&self, act: Act, base: usize, source: Arc<dyn Source>) -> Arc<Resolver> {
        let unit = uffd::page_size(); // decided page by page, as the proposal says
        let options = Options {
            delivery: Delivery::Signal,
            unit,
            huge: false,
            resident: 0,
            mode: Mode::Change,
            on_error: OnError::Raise,
            timeout: TIMEOUT,
            shared: false,
            kind: Kind::UserFault,
        };
        let region = Region::new(Parts {
            id: self.engine.next_region(),
            base,
            unit,
            options,
            scratch: self.engine.pool(unit, source.needs()),
            source,
            file: None,
            handles: self.flags,
            lane: 0,
            stock: None,
            away: None,
        });
        Arc::new(Resolver::new(act, self.engine.table.insert(0, 0, Box::new(region))))
    }
}

/// Pages of `piece` that show the error pattern, or are poisoned, become holes; they are `shift` bytes further on by now. Who was
/// to turn them back later will not find them: they are not its region's any more.
pub(super) fn give_holes_back(region: &Region, piece: &Range<usize>, shift: usize) {
    let page_bytes = uffd::page_size();
    let drop = |page| {
        let address = region.page_address(page).wrapping_add(shift);
        let _ = crate::mapping::advise(address, page_bytes, libc::MADV_DONTNEED);
    };
    let pages = region.page_of(piece.start)..region.page_of(piece.end - 1) + 1;
    if !region.exposed.is_empty() {
        for page in pages.clone() {
            region.take_pattern(page, || drop(page));
        }
    }
    region.lift_all(pages, |page| {
        if crate::mapping::is_poisoned(region.page_address(page).wrapping_add(shift)) {
            drop(page);
        }
    });
}
