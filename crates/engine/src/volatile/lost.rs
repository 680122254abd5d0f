//! Lost pages become pages again. Whoever does that claims them first: a claimed page (`Pinning`) is touched in vain, and nobody
//! else drops what stands there.
//!
//! *Locks*: the gate, held by the caller. *Threads*: application threads. *Blocks on*: the refill.

use super::{Memory, TRIES, joined};
use crate::error::Error;
use crate::nest;
use crate::source::volatile::Page;
use crate::source::{Cause, Reading, Source, SourceError, Table};
use crate::threads::thread_id;
use std::ops::Range;
use std::time::{Duration, Instant};
use uffd::{CopyMode, Errno, Outcome, Wake};

/// How often a long refill asks whether it shall go on.
const LOOK_UP: Duration = Duration::from_millis(50);

impl Memory<'_> {
    /// Make the pages in one of the states ours alone: `Pinning`.
    pub(super) fn claim(self, pages: Range<usize>, states: &[Page]) -> Vec<Range<usize>> {
        let mut claimed = vec![];
        for (_, run) in self.runs(pages).into_iter().filter(|(state, _)| states.contains(state)) {
            claimed.extend(run.filter(|page| self.claim_page(*page, states)).map(|page| page..page + 1));
        }
        joined(claimed)
    }

    /// A page that is just being rid of the error pattern is waited for.
    fn claim_page(self, page: usize, states: &[Page]) -> bool {
        loop {
            match self.offers.get(page) {
                state if !states.contains(&state) => return false,
                Page::Dropping => std::thread::yield_now(),
                state if self.offers.swap(page, state, Page::Pinning) => return true,
                _ => {}
            }
        }
    }

    /// Claimed pages that have no contents go on being lost: nothing may stand there that looks like contents.
    pub(super) fn leave_lost(self, runs: &[Range<usize>]) {
        for page in runs.iter().cloned().flatten().filter(|page| self.offers.get(*page) == Page::Pinning) {
            let _ = self.drop_pages(page..page + 1);
            self.offers.set(page, Page::Lost);
        }
    }

    /// Lost pages become pages again: zeros, or what the refill says.
    pub(super) fn renew(self, runs: &[Range<usize>], interrupted: &mut dyn FnMut() -> bool) -> Result<(), Error> {
        let mut looked = Instant::now();
        for run in runs {
            self.drop_pages(run.clone())?;
            let Some(refill) = &self.offers.refill else {
                self.zero(run.clone())?;
                continue; // not settled yet: if another run fails, none of them was told
            };
            for page in run.clone() {
                self.read_again(&**refill, page)?;
                self.answered(page, Page::Refilled);
                if looked.elapsed() > LOOK_UP {
                    looked = Instant::now();
                    if interrupted() {
                        let offset = (page * uffd::page_size()) as u64;
                        return Err(self.failed(SourceError::new(offset, Cause::Interrupted)));
                    }
                }
            }
        }
        if self.offers.refill.is_none() {
            runs.iter().cloned().flatten().for_each(|page| self.answered(page, Page::Untouched));
        }
        Ok(())
    }

    fn failed(self, error: SourceError) -> Error {
        Error::Page { source_name: self.region.source_name.clone(), error }
    }

    fn read_again(self, refill: &dyn Source, page: usize) -> Result<(), Error> {
        let size = uffd::page_size();
        let offset = page * size;
        // A refill that touches the page would be called for it again, and then find the error pattern there.
        let address = self.region.page_address(page);
        let nested = nest::begin(thread_id(), &(address..address + size));
        let _own = nested.ok_or_else(|| self.failed(SourceError::new(offset as u64, Cause::OwnRegion)))?;
        let mut scratch = self.region.scratch.take_or_make(true);
        let from = scratch.unit.address();
        // SAFETY: the scratch is this call's own, and a page long at least.
        let out = unsafe { std::slice::from_raw_parts_mut(from as *mut u8, size) };
        let wanted = size.min(self.region.len - offset);
        let mut how = Reading::plain(&mut scratch);
        refill.read_into(offset as u64, &mut out[..wanted], &mut how).map_err(|error| self.failed(error))?;
        out[wanted..].fill(0);
        let handle = self.region.handle(Table::Application);
        self.install(page..page + 1, |start, bytes| handle.copy(start, from, bytes, CopyMode::NONE))
    }

    pub(super) fn zero(self, pages: Range<usize>) -> Result<(), Error> {
        let handle = self.region.handle(Table::Application);
        self.install(pages, |start, bytes| handle.zeropage(start, bytes, Wake::Yes))
    }

    /// Fill holes of claimed pages. What stands there nevertheless is an error pattern that came just now, or its marker.
    fn install(self, pages: Range<usize>, step: impl Fn(usize, usize) -> Outcome) -> Result<(), Error> {
        let size = uffd::page_size();
        let mut at = pages.start;
        let mut tries = 0;
        while at < pages.end {
            let bytes = (pages.end - at) * size;
            match step(self.region.page_address(at), bytes) {
                Outcome::Exists if tries < TRIES => self.drop_pages(at..at + 1)?,
                Outcome::Retry if tries < TRIES => std::thread::yield_now(),
                outcome => match outcome.bytes(bytes) {
                    0 => {
                        let errno = outcome.errno().unwrap_or(Errno(libc::EIO));
                        return Err(Error::Os { what: format!("filling {} volatile pages", pages.len()), errno });
                    }
                    done => {
                        at += done / size;
                        tries = 0;
                    }
                },
            }
            tries += 1;
        }
        Ok(())
    }

    pub(super) fn drop_pages(self, run: Range<usize>) -> Result<(), Error> {
        self.advise(run.clone(), libc::MADV_DONTNEED)
            .map_err(|errno| Error::Os { what: format!("dropping {} lost pages", run.len()), errno })
    }

    /// A claimed page has its contents.
    pub(super) fn answered(self, page: usize, now: Page) {
        self.region.exposed.remove(page);
        self.region.forget_poison(page..page + 1);
        self.offers.set(page, now);
        self.settled(page);
    }
}
