//! Lost pages become pages again. Whoever does that claims them first: a claimed page (`Pinning`) is touched in vain, and nobody
//! else drops what stands there.
//!
//! *Locks*: the gate, held by the caller, and given up while a refill is read. *Threads*: application threads. *Blocks on*: the
//! refill.

use super::wait::Wait;
use super::{Memory, TRIES, joined};
use crate::error::Error;
use crate::nest;
use crate::source::volatile::{Page, Renewal};
use crate::source::{Cause, Reading, Source, SourceError, Table};
use crate::threads::thread_id;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard};
use uffd::{CopyMode, Errno, Outcome, Wake};

/// The gate, closed.
type Gate<'a> = MutexGuard<'a, Vec<Renewal>>;

/// The calling thread no longer pins these pages.
pub(super) fn renewed(gate: &mut Gate<'_>, pages: &Range<usize>) {
    let thread = thread_id();
    gate.retain(|renewal| renewal.thread != thread || renewal.pages != *pages);
}

impl<'a> Memory<'a> {
    /// The gate, once nobody reads a refill for any of these pages. As long as those who do make progress it waits.
    ///
    /// # Errors
    /// [`Error::Os`]: EDEADLK: the calling thread does, and would wait for itself; ETIMEDOUT. [`Error::Page`]: interrupted.
    pub(super) fn gate_for(self, pages: &Range<usize>, wait: &mut Wait<'_>) -> Result<Gate<'a>, Error> {
        let mut seen = None;
        loop {
            let gate = self.offers.gate();
            let overlaps = |renewal: &&Renewal| renewal.pages.start < pages.end && pages.start < renewal.pages.end;
            let Some(renewal) = gate.iter().find(overlaps) else { return Ok(gate) };
            if renewal.thread == thread_id() {
                let what = "pinning pages that this thread is in the middle of pinning: not from their refill, nor from a \
                            signal handler that comes in between";
                return Err(Error::Os { what: what.into(), errno: Errno(libc::EDEADLK) });
            }
            let progress = Some((renewal.thread, renewal.read.load(Ordering::Relaxed)));
            drop(gate);
            if seen != progress {
                seen = progress;
                wait.begin_again();
            }
            wait.pause(pages.start, "waiting for another thread's refill of the same volatile memory")?;
        }
    }

    /// Make the pages in one of the states ours alone: `Pinning`.
    pub(super) fn claim(self, pages: Range<usize>, states: &[Page]) -> Vec<Range<usize>> {
        let mut claimed = vec![];
        for (_, run) in self.runs(pages).into_iter().filter(|(state, _)| states.contains(state)) {
            claimed.extend(run.filter(|page| self.claim_page(*page, states)).map(|page| page..page + 1));
        }
        joined(claimed)
    }

    fn claim_page(self, page: usize, states: &[Page]) -> bool {
        loop {
            match self.offers.get_quiet(page) {
                state if !states.contains(&state) => return false,
                state if self.offers.swap(page, state, Page::Pinning) => return true,
                _ => {}
            }
        }
    }

    /// Claimed pages that have no contents go on being lost: nothing may stand there that looks like contents. Those that a touch
    /// brought meanwhile have them.
    pub(super) fn leave_lost(self, runs: &[Range<usize>]) {
        for page in runs.iter().cloned().flatten() {
            self.offers.swap(page, Page::Placing, Page::Pinning); // where it failed, or other pages did
            if self.offers.swap_quiet(page, Page::Pinning, Page::Dropping) {
                let _ = self.drop_pages(page..page + 1);
                self.offers.set(page, Page::Lost);
            } else if self.offers.get(page) == Page::Arrived {
                self.answered(page, Page::Refilled);
            }
        }
    }

    /// Lost pages become pages again: zeros, or what the refill says. That is read without the gate, and noted there until
    /// [`renewed`]. An error: as the refill says; what was read by then is there, `Refilled`.
    pub(super) fn renew(
        self,
        mut gate: Gate<'a>,
        pages: &Range<usize>,
        runs: &[Range<usize>],
        wait: &mut Wait<'_>,
    ) -> (Gate<'a>, Result<(), Error>) {
        let Some(refill) = self.offers.refill.as_ref().filter(|_| !runs.is_empty()) else {
            return (gate, self.zero_all(runs));
        };
        let read = Arc::new(AtomicUsize::new(0));
        gate.push(Renewal { thread: thread_id(), pages: pages.clone(), read: read.clone() });
        drop(gate);
        let outcome = self.read_all(&**refill, runs, &read, wait);
        (self.offers.gate(), outcome)
    }

    fn zero_all(self, runs: &[Range<usize>]) -> Result<(), Error> {
        runs.iter().try_for_each(|run| self.drop_pages(run.clone()))?;
        // Not settled one by one: if a run fails, none of them was told.
        runs.iter().try_for_each(|run| self.zero(run.clone()))?;
        runs.iter().cloned().flatten().for_each(|page| self.answered(page, Page::Untouched));
        Ok(())
    }

    fn read_all(
        self,
        refill: &dyn Source,
        runs: &[Range<usize>],
        read: &AtomicUsize,
        wait: &mut Wait<'_>,
    ) -> Result<(), Error> {
        for page in runs.iter().cloned().flatten() {
            wait.look_up(page)?;
            self.read_again(refill, page)?;
            self.answered(page, Page::Refilled);
            read.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    pub(super) fn failed(self, error: SourceError) -> Error {
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
        if !self.offers.swap_quiet(page, Page::Pinning, Page::Placing) {
            return Ok(()); // a touch has brought the same bytes meanwhile, and perhaps written to them since
        }
        let handle = self.region.handle(Table::Application);
        let installed = self.install(page..page + 1, |start, bytes| handle.copy(start, from, bytes, CopyMode::NONE));
        installed.inspect_err(|_| self.offers.set(page, Page::Pinning))
    }

    /// Zeros in pages that are claimed, or nobody's yet.
    pub(super) fn zero(self, pages: Range<usize>) -> Result<(), Error> {
        for page in pages.clone() {
            let claimed = [Page::Pinning, Page::Arrived];
            let _ = claimed.iter().any(|state| self.offers.swap_quiet(page, *state, Page::Placing));
        }
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
                Outcome::Exists if tries < TRIES => {
                    self.region.wait_until_noted(); // what is noted later would be said of the page's contents
                    self.drop_pages(at..at + 1)?;
                }
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

    /// A claimed page has its contents. Noted first: who has the lock of the poisoned pages may wait for that.
    pub(super) fn answered(self, page: usize, now: Page) {
        self.offers.set(page, now);
        self.region.exposed.remove(page);
        self.region.forget_poison(page..page + 1);
        self.settled(page);
    }
}
