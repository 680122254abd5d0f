//! `PAGEMAP_SCAN`: which pages of a range are present, written, zero, huge; and write-protecting them in the same walk.
//!
//! *Blocks on*: the lock of the scanned address space; a scan walks page tables, O(pages) but about a nanosecond each.

use crate::abi::{PAGEMAP_SCAN, PageRegion, PmScanArg};
use crate::flags::bit_set;
use crate::{Errno, Handle};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

/// One answer of a scan: neighbouring pages of the same categories.
pub type PagemapRegion = PageRegion;

bit_set!(
    /// What can be known of a page.
    Categories {
        /// Its mapping can be write-protected asynchronously.
        WPALLOWED = 1,
        /// Written since it was last protected. Memory that was never protected counts as written.
        WRITTEN = 2,
        /// Backed by a file.
        FILE = 4,
        /// In memory.
        PRESENT = 8,
        /// In swap, or a marker (poison, guard, write-protect) that looks like it.
        SWAPPED = 16,
        /// The shared zero page.
        PFNZERO = 32,
        /// Part of a huge mapping.
        HUGE = 64,
        /// Soft-dirty, where the kernel keeps that bit.
        SOFT_DIRTY = 128,
        /// A guard page (Linux 6.15).
        GUARD = 256,
    }
);

bit_set!(
    /// What a scan does besides looking.
    ScanFlags {
        /// Write-protect the pages that match, atomically with reporting them.
        WP_MATCHING = 1,
        /// Fail with EPERM unless every mapping is registered with a WP_ASYNC userfaultfd.
        CHECK_WPASYNC = 2,
    }
);

/// Which pages match, and what is told of them. The default matches every page and reports every known category.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScanQuery {
    /// What to do besides looking.
    pub flags: ScanFlags,
    /// Categories whose sense is turned round in the two masks below.
    pub inverted: Categories,
    /// A page must have all of these.
    pub all_of: Categories,
    /// A page must have one of these, unless the set is empty.
    pub any_of: Categories,
    /// What is reported of a page that matches.
    pub report: Categories,
    /// Stop after so many pages that match; 0 means no limit.
    pub max_pages: usize,
}

impl Default for ScanQuery {
    fn default() -> Self {
        Self {
            flags: ScanFlags::NONE,
            inverted: Categories::NONE,
            all_of: Categories::NONE,
            any_of: Categories::NONE,
            report: Categories(0xff),
            max_pages: 0,
        }
    }
}

/// How far one scan came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scanned {
    /// Entries of the caller's array that were filled.
    pub regions: usize,
    /// Address where the walk stopped: the end of the range, unless the array or `max_pages` ran out first.
    pub walk_end: usize,
}

/// An open `pagemap` file.
#[derive(Debug)]
pub struct PagemapScan(OwnedFd);

impl PagemapScan {
    /// Opens the pagemap of this process.
    ///
    /// # Errors
    /// ENOENT without /proc; EMFILE.
    pub fn open_self() -> Result<Self, Errno> {
        Self::open("/proc/self/pagemap")
    }

    /// Opens the pagemap of another process.
    ///
    /// # Errors
    /// ENOENT: no such process. EACCES: it may not be traced by us.
    pub fn open_pid(pid: i32) -> Result<Self, Errno> {
        Self::open(&format!("/proc/{pid}/pagemap"))
    }

    fn open(path: &str) -> Result<Self, Errno> {
        let file = std::fs::File::open(path).map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EIO)))?;
        Ok(Self(file.into()))
    }

    /// One `PAGEMAP_SCAN` into the caller's array. Allocates nothing.
    ///
    /// An empty array with `WP_MATCHING` protects without reporting.
    ///
    /// # Errors
    /// EINVAL: unaligned start, or a flag or category this kernel does not know. EPERM: `CHECK_WPASYNC`.
    /// ENOTTY: no PAGEMAP_SCAN here (before Linux 6.7).
    pub fn scan(
        &self,
        range: Range<usize>,
        query: &ScanQuery,
        regions: &mut [PagemapRegion],
    ) -> Result<Scanned, Errno> {
        let mut argument = PmScanArg {
            size: size_of::<PmScanArg>() as u64,
            flags: query.flags.0,
            start: range.start as u64,
            end: range.end as u64,
            walk_end: 0,
            vec: if regions.is_empty() { 0 } else { regions.as_mut_ptr() as u64 },
            vec_len: regions.len() as u64,
            max_pages: query.max_pages as u64,
            category_inverted: query.inverted.0,
            category_mask: query.all_of.0,
            category_anyof_mask: query.any_of.0,
            return_mask: query.report.0,
        };
        let count = Handle::from_raw(self.0.as_raw_fd()).ioctl_count(PAGEMAP_SCAN, &mut argument)?;
        Ok(Scanned { regions: count, walk_end: argument.walk_end as usize })
    }

    /// Scans the whole range, in as many calls as it takes; `max_pages` bounds the sum.
    ///
    /// # Errors
    /// As [`PagemapScan::scan`]. With `WP_MATCHING`, pages of earlier calls have been protected by then.
    pub fn collect(&self, range: Range<usize>, query: &ScanQuery) -> Result<Vec<PagemapRegion>, Errno> {
        let mut found = Vec::new();
        let mut chunk = vec![PagemapRegion::default(); 512];
        let (mut start, mut query) = (range.start, *query);
        while start < range.end {
            let scanned = self.scan(start..range.end, &query, &mut chunk)?;
            let fresh = &chunk[..scanned.regions];
            append_merging(&mut found, fresh);
            if query.max_pages != 0 {
                let pages: u64 = fresh.iter().map(|region| region.end - region.start).sum();
                query.max_pages = query.max_pages.saturating_sub(pages as usize / crate::page_size());
                if query.max_pages == 0 {
                    break;
                }
            }
            if scanned.walk_end <= start {
                break;
            }
            start = scanned.walk_end;
        }
        Ok(found)
    }
}

/// Appends, joining the seam where the last call stopped in the middle of a run.
fn append_merging(found: &mut Vec<PagemapRegion>, fresh: &[PagemapRegion]) {
    for region in fresh {
        match found.last_mut() {
            Some(last) if last.end == region.start && last.categories == region.categories => last.end = region.end,
            _ => found.push(*region),
        }
    }
}

impl Handle {
    /// As `ioctl`, for the one request whose result is a count and whose structure holds a pointer.
    fn ioctl_count(self, request: u32, argument: &mut PmScanArg) -> Result<usize, Errno> {
        // SAFETY: the structure is ours and of the size in `request`; `vec` points to `vec_len` regions that the caller
        // of `scan` lent us exclusively for the time of this call, or is null with length 0.
        let result = unsafe { libc::ioctl(self.as_raw_fd(), request as libc::Ioctl, argument as *mut PmScanArg) };
        if result < 0 { Err(Errno::last()) } else { Ok(result as usize) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn append_merging_joins_equal_neighbours_only() {
        let region = |start, end, categories| PagemapRegion { start, end, categories };
        let mut found = vec![region(0, 4096, 1)];
        append_merging(&mut found, &[region(4096, 8192, 1), region(8192, 12288, 2), region(16384, 20480, 2)]);
        assert_eq!(found, [region(0, 8192, 1), region(8192, 12288, 2), region(16384, 20480, 2)]);
    }
}
