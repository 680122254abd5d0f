//! What is particular to a region that a pager fills, while it is opened.
//!
//! *Threads*: application threads, which must not hold the language's lock here. *Blocks on*: the root thread; [`attach`] for the
//! pager.

use super::owner::Pager;
use super::policy::OnDeath;
use super::wire::Attach;
use crate::engine::Engine;
use crate::error::Error;
use crate::region::{Away, NOT_LOST, Options, Region};
use crate::table::Pin;
use std::sync::Arc;

/// For delivery to a process: the pager, the source as it is sent there, and what if the pager dies.
pub struct Served {
    /// The pager.
    pub pager: Arc<Pager>,
    /// What the pager makes a source of.
    pub source: Vec<u8>,
    /// What becomes of the region.
    pub on_death: OnDeath,
    /// Asked now and then while the pager opens the source: does the caller want it no more?
    pub interrupted: Box<dyn Fn() -> bool + Send>,
}

/// Another process can copy pages in, and nothing else (law 11).
///
/// # Errors
/// [`Error::Invalid`] for options that ask for more, [`Error::Unsupported`] where the kernel cannot poison.
pub fn check(engine: &Engine, options: &Options) -> Result<(), Error> {
    let problem = if options.huge {
        "huge=True: whole huge pages are moved, which another process cannot do"
    } else if options.resident > 0 {
        "resident: what leaves is decided where pages arrive, and they arrive in another process; evict() gives memory back"
    } else if options.shared {
        "shared=True: pages of a memory file can be written by whoever has it; use delivery=\"thread\""
    } else if !engine.abilities.can_poison {
        return Err(Error::Unsupported("delivery=\"process\" needs UFFDIO_POISON (Linux 6.6)".into()));
    } else {
        return Ok(());
    };
    Err(Error::Invalid(format!("not with delivery=\"process\": {problem}")))
}

/// What is shared of a region with so many units and bytes mapped, and where it lies in the file that is.
///
/// # Errors
/// [`Error::Os`].
pub fn away(served: &Served, units: usize, mapped: usize) -> Result<(Away, u64), Error> {
    let (part, at) = served.pager.part(units, mapped / uffd::page_size())?;
    let away = Away { pager: served.pager.place(), part, lost: NOT_LOST.into() };
    Ok((away, at))
}

/// Have the pager serve the region, and wait until it does.
///
/// # Errors
/// As [`Pager::attach`].
pub fn attach(region: &Pin<Region>, served: Served, part_at: u64) -> Result<(), Error> {
    let attach = Attach {
        region: region.id,
        base: region.base as u64,
        mapped: region.mapped as u64,
        len: region.len as u64,
        unit: region.unit as u64,
        timeout_ns: u64::try_from(region.options.timeout.as_nanos()).unwrap_or(u64::MAX),
        part_at,
        lost: 0,
    };
    served.pager.attach(region, attach, served.source, served.on_death, &*served.interrupted)
}
