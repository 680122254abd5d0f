//! Pieces of the file, mapped.
//!
//! *Locks*: none. *Threads*: those whose descriptor table has the file's number, to map; any, afterwards.

use super::{Header, Part, STATES_AT, noted_at, noted_bytes, part_bytes};
use crate::counters::Counters;
use crate::error::Error;
use crate::sync::AtomicU8;
use std::os::fd::RawFd;
use std::sync::atomic::AtomicU64;

/// A mapping of a piece of the file.
pub struct Mapping {
    address: usize,
    bytes: usize,
}

impl Mapping {
    /// Map `bytes` at `offset`, both whole pages. A forked child does not get it.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub fn new(file: RawFd, offset: u64, bytes: usize) -> Result<Self, Error> {
        let at = libc::off_t::try_from(offset).map_err(|_| Error::Invalid("the file is too long".into()))?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping where the kernel likes; the advice is about that mapping.
        unsafe {
            let address = libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, file, at);
            if address == libc::MAP_FAILED {
                return Err(Error::last_os(format!("mapping {bytes} bytes that a pager shares")));
            }
            libc::madvise(address, bytes, libc::MADV_DONTFORK);
            Ok(Self { address: address as usize, bytes })
        }
    }

    /// The header, which stays mapped for good.
    #[must_use]
    pub fn into_header(self) -> &'static Header {
        assert!(self.bytes >= size_of::<Header>(), "whoever maps a header maps all of it");
        let address = self.address;
        std::mem::forget(self);
        // SAFETY: mapped for good, page-aligned and long enough; every bit pattern is a valid header.
        unsafe { &*(address as *const Header) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and the references into it are gone (see their SAFETY).
        unsafe { libc::munmap(self.address as *mut libc::c_void, self.bytes) };
    }
}

/// The part of one region, mapped.
pub struct MappedPart {
    mapping: Mapping,
    units: usize,
    pages: usize,
}

impl MappedPart {
    /// Map that of a region with so many units and pages.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub fn new(file: RawFd, offset: u64, units: usize, pages: usize) -> Result<Self, Error> {
        Ok(Self { mapping: Mapping::new(file, offset, part_bytes(units, pages))?, units, pages })
    }

    fn noted_pages(&self) -> &[AtomicU64] {
        let at = self.mapping.address + noted_at(self.units);
        // SAFETY: mapped and long enough, at a multiple of 64; atomics of any value.
        unsafe { std::slice::from_raw_parts(at as *const AtomicU64, noted_bytes(self.pages) / size_of::<u64>()) }
    }

    /// Pager: this page is poisoned, by now.
    pub fn note_poison(&self, page: usize) {
        self.noted.note(self.noted_pages(), page);
    }

    /// Owner: visit the pages that were since the last time.
    pub fn take_poison(&self, visit: impl FnMut(usize)) {
        self.noted.take(self.noted_pages(), visit);
    }

    /// Owner, at the end of the region: the file need not keep it. Locked memory stays until the file goes.
    pub fn give_back(&self) {
        // SAFETY: pages of our file that nobody reads any more; a pager that still writes a counter gets a page of zeros.
        unsafe { libc::madvise(self.mapping.address as *mut libc::c_void, self.mapping.bytes, libc::MADV_REMOVE) };
    }

    /// A byte a unit, as `states` has them.
    #[must_use]
    pub fn states(&self) -> &[AtomicU8] {
        // SAFETY: mapped and long enough; atomics of any value.
        unsafe { std::slice::from_raw_parts((self.mapping.address + STATES_AT) as *const AtomicU8, self.units) }
    }

    /// The same for a structure that holds this one too, and is dropped as a whole.
    ///
    /// # Safety
    /// The slice must not be used after this was dropped.
    #[must_use]
    pub unsafe fn states_for_owner(&self) -> &'static [AtomicU8] {
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts((self.mapping.address + STATES_AT) as *const AtomicU8, self.units) }
    }

    /// The counters, likewise.
    ///
    /// # Safety
    /// As [`MappedPart::states_for_owner`].
    #[must_use]
    pub unsafe fn counters_for_owner(&self) -> &'static Counters {
        // SAFETY: as the caller promises.
        unsafe { &(*(self.mapping.address as *const Part)).counters }
    }
}

impl std::ops::Deref for MappedPart {
    type Target = Part;
    fn deref(&self) -> &Part {
        // SAFETY: mapped as long as this lives, aligned and long enough; every bit pattern is valid.
        unsafe { &*(self.mapping.address as *const Part) }
    }
}
