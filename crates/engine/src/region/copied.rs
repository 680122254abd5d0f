//! Bytes of a region that was populated, copied by the kernel: nothing is touched, so nothing raises.
//!
//! *Locks*: none. *Threads*: application threads that keep the region mapped. *Blocks on*: those who show the error pattern just
//! now, for a few system calls.

use super::{A_LITTLE, Region};
use crate::source::bytes::copy_by_kernel;
use std::ops::Range;

impl Region {
    /// Copy the bytes from `offset` on; false: a page was not there, or shows another thread's error.
    #[must_use]
    pub fn copy_out(&self, offset: usize, out: &mut [u8]) -> bool {
        let before = self.exposures.now();
        let page = uffd::page_size();
        let pages: Range<usize> = offset / page..(offset + out.len()).div_ceil(page);
        if self.shows_pattern_in(pages, A_LITTLE) || copy_by_kernel(self.base + offset, out).is_err() {
            return false;
        }
        !self.exposures.any_since(before) || !may_be_pattern(offset, out)
    }
}

/// May a page of `out`, which was copied from `offset` on, be the error pattern? One that came or went in the middle left an
/// end of it.
fn may_be_pattern(offset: usize, out: &[u8]) -> bool {
    let page = uffd::page_size();
    let (first, rest) = out.split_at((page - offset % page).min(out.len()));
    let ends = |part: &[u8]| part.first() == Some(&0xFF) || part.last() == Some(&0xFF);
    ends(first) || rest.chunks(page).any(ends)
}
