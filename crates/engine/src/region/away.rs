//! What a region has that a pager serves.
//!
//! *Locks*: none. *Threads*: any, signal handlers too.

use crate::cause::{Cause, SourceError};
use crate::counters::{Counted, Counters};
use crate::shared::{MappedPart, header_of};
use crate::states::UnitStates;
use std::sync::atomic::{AtomicI32, Ordering};

/// A region that a pager serves.
pub struct Away {
    /// Which of this process's pagers.
    pub pager: u16,
    /// What it shares with us of this region.
    pub part: MappedPart,
    /// It is gone for good: its wait status, and every page that is not there fails.
    pub lost: AtomicI32,
}

/// What [`Away::lost`] is while there is a pager.
pub const NOT_LOST: i32 = i32::MIN;

impl Away {
    /// Why a page failed, if its pager said so. Signal handlers.
    #[must_use]
    pub fn failure(&self, region: u64, page: usize) -> Option<SourceError> {
        match self.lost.load(Ordering::Acquire) {
            NOT_LOST => header_of(self.pager)?.find(self.pager, region, page),
            how => Some(SourceError::new((page * uffd::page_size()) as u64, Cause::PagerLost(how))),
        }
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        self.part.give_back();
    }
}

/// Those of the part that is shared, or ones of its own.
pub(super) fn counters_and_states(away: Option<&Away>, units: usize) -> (Counted, UnitStates) {
    match away {
        None => (Counted::Own(Box::<Counters>::default()), UnitStates::new(units)),
        // SAFETY: the region holds the mapping, and everything in it is dropped together.
        Some(away) => unsafe {
            (Counted::Shared(away.part.counters_for_owner()), UnitStates::shared(away.part.states_for_owner()))
        },
    }
}
