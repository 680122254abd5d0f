//! Pinning and unpinning (facts: docs/facts.md, Volatile pages). To unpin is MADV_FREE: the kernel may take a page as long as nobody
//! writes to it, and says nothing when it does. To pin is MADV_POPULATE_WRITE: its verdict is per page and final, for a
//! page that it found there is dirty from then on.
//!
//! What may stand in an absent page's place besides data is the error pattern. A pin therefore first makes sure of the
//! pages that are there, then waits until everybody who has put the pattern somewhere has noted it, and then looks which of them
//! are noted as lost.
//!
//! *Locks*: the gate of the region, but not while a refill is read (that is somebody's code, and may be slow) nor while anybody is
//! waited for. *Threads*: application threads, which must not hold the GIL here. *Blocks on*: the refill.

mod lost;
mod wait;

use crate::error::Error;
use crate::mapping::advise;
use crate::region::{Delivery, Region};
use crate::source::volatile::{Offers, Page};
use crate::states::State;
use std::ops::Range;
use std::sync::Arc;
use uffd::{Categories, Errno, PagemapScan, ScanFlags, ScanQuery};
use wait::Wait;

/// Repetitions without progress before an operation gives up.
const TRIES: usize = 10_000;
/// In memory, in swap, or a marker that looks like swap. Without either, a page is absent.
const THERE: Categories = Categories::PRESENT.union(Categories::SWAPPED);

/// What the kernel may take.
const OFFERED: [Page; 2] = [Page::Offered, Page::Again];
/// Pages that are absent.
const ABSENT: ScanQuery = query(THERE, Categories::NONE);
/// Pages that are there and not the shared zero page.
const OWN: ScanQuery = query(Categories::PFNZERO, THERE);

const fn query(none_of: Categories, any_of: Categories) -> ScanQuery {
    ScanQuery {
        flags: ScanFlags::NONE,
        inverted: none_of,
        all_of: none_of,
        any_of,
        report: Categories::NONE,
        max_pages: 0,
    }
}

/// A region and its offers: everything here is about both.
#[derive(Clone, Copy)]
struct Memory<'a> {
    region: &'a Region,
    offers: &'a Offers,
}

fn memory(region: &Region) -> Result<Memory<'_>, Error> {
    let offers: Option<&Arc<Offers>> = region.offers.as_ref();
    offers.map(|offers| Memory { region, offers }).ok_or_else(|| Error::Invalid("this is no volatile memory".into()))
}

/// Put zeros everywhere: they cost page tables and no memory, and from now on only pages that the kernel took are absent.
///
/// # Errors
/// [`Error::Os`]: no memory for page tables.
pub fn begin(region: &Region) -> Result<(), Error> {
    let memory = memory(region)?;
    let _gate = memory.offers.gate();
    let pages = 0..region.states.len();
    memory.zero(pages.clone())?;
    pages.for_each(|page| memory.settled(page));
    Ok(())
}

/// Let the kernel take the whole pages inside `bytes` when it wants to.
///
/// # Errors
/// [`Error::Os`]: EINVAL when the memory is locked.
pub fn unpin(region: &Region, bytes: Range<usize>) -> Result<(), Error> {
    let memory = memory(region)?;
    let page = uffd::page_size();
    // The last page is whole: nobody else has a part of it.
    let stop = if bytes.end >= region.len { region.states.len() } else { bytes.end / page };
    let pages = bytes.start.div_ceil(page)..stop;
    let _gate = memory.offers.gate();
    memory.note_written(pages.clone())?;
    for (state, run) in memory.runs(pages) {
        match state {
            Page::Pinned | Page::Offered => memory.offer(run, state, Page::Offered)?,
            Page::Refilled | Page::Again => memory.offer(run, state, Page::Again)?,
            _ => {}
        }
    }
    Ok(())
}

/// What a pin found, as runs of pages.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pinned {
    /// Taken by the kernel since they were unpinned.
    pub lost: Vec<Range<usize>>,
    /// Volatile before, the lost ones included.
    pub were_volatile: Vec<Range<usize>>,
}

/// Keep all pages that `bytes` touches; tells which of them were lost.
///
/// # Errors
/// [`Error::Page`]: the refill failed, or the caller is part of it; what is lost stays so, and the next pin says it again.
/// [`Error::Closed`]: the region was closed while the refill was read. [`Error::Os`].
pub fn pin(region: &Region, bytes: Range<usize>, interrupted: &mut dyn FnMut() -> bool) -> Result<Pinned, Error> {
    let memory = memory(region)?;
    let pages = memory.touched(bytes);
    let mut wait = Wait::new(region, interrupted);
    let (gate, before) = loop {
        let gate = memory.gate_for(&pages, &mut wait)?;
        let before = memory.runs(pages.clone());
        memory.keep(pages.clone())?;
        if memory.patterns_are_noted() {
            break (gate, before);
        }
        drop(gate);
        wait.pause(pages.start, "waiting for threads that touch the same volatile memory")?;
    };
    let absent = memory.claim(pages.clone(), &[Page::Lost]);
    let offered = OFFERED.map(|state| memory.all_in(pages.clone(), state));
    let mut lost = memory.all_in(pages.clone(), Page::Refilled);
    offered.iter().flatten().for_each(|page| memory.offers.settle(*page, Page::Pinned));
    let (mut gate, renewed) = memory.renew(gate, &pages, &absent, &mut wait);
    if let Err(error) = renewed {
        // Before anybody else may pin any of them.
        memory.leave_lost(&absent);
        OFFERED.iter().zip(&offered).for_each(|(state, pages)| memory.swap_all(pages, Page::Pinned, *state));
        lost::renewed(&mut gate, &pages);
        return Err(error);
    }
    let [_, again] = offered;
    lost.extend(absent.into_iter().flatten());
    // One that was unpinned while the refill was read stays so: the last word counts.
    memory.swap_all(&lost, Page::Refilled, Page::Pinned);
    memory.swap_all(&lost, Page::Again, Page::Offered);
    lost::renewed(&mut gate, &pages);
    drop(gate);
    lost.extend(again);
    lost.sort_unstable();
    let were_kept = |state: Page| matches!(state, Page::Untouched | Page::Pinned);
    let were_volatile = before.into_iter().filter(|(state, _)| !were_kept(*state)).map(|(_, run)| run);
    Ok(Pinned { lost: joined(lost.into_iter().map(|page| page..page + 1)), were_volatile: joined(were_volatile) })
}

/// Zeros again in the pages that `bytes` touches, whatever was there; they cost no memory then.
///
/// # Errors
/// [`Error::Os`].
pub fn discard(region: &Region, bytes: Range<usize>) -> Result<(), Error> {
    let memory = memory(region)?;
    let pages = memory.touched(bytes);
    let _gate = memory.gate_for(&pages, &mut Wait::new(region, &mut || false))?;
    let all = [Page::Untouched, Page::Pinned, Page::Offered, Page::Again, Page::Lost, Page::Refilled];
    let runs = memory.claim(pages, &all);
    let empty = |run: &Range<usize>| memory.drop_pages(run.clone()).and_then(|()| memory.zero(run.clone()));
    if let Err(error) = runs.iter().try_for_each(empty) {
        memory.leave_lost(&runs);
        return Err(error);
    }
    runs.into_iter().flatten().for_each(|page| memory.answered(page, Page::Untouched));
    Ok(())
}

/// One byte a page: 0 untouched, 1 pinned, 2 volatile, 3 lost, 4 lost and refilled.
///
/// # Errors
/// [`Error::Os`]: the page tables cannot be read.
pub fn page_states(region: &Region) -> Result<Vec<u8>, Error> {
    let memory = memory(region)?;
    let _gate = memory.offers.gate();
    let pages = 0..region.states.len();
    memory.note_written(pages.clone())?;
    memory.note_holes(pages.clone())?;
    region.settle_poison();
    let told = |page| match memory.offers.get_quiet(page) {
        Page::Untouched => 0,
        Page::Pinned => 1,
        Page::Offered | Page::Again => 2,
        Page::Refilled => 4,
        _ => 3,
    };
    Ok(pages.map(told).collect())
}

impl Memory<'_> {
    fn touched(self, bytes: Range<usize>) -> Range<usize> {
        self.region.units_touching(bytes) // the unit is a page
    }

    /// Runs of pages in the same state.
    fn runs(self, pages: Range<usize>) -> Vec<(Page, Range<usize>)> {
        let mut runs: Vec<(Page, Range<usize>)> = vec![];
        let mut start = pages.start;
        while start < pages.end {
            let (state, stop) = self.offers.run(start..pages.end);
            runs.push((state, start..stop));
            start = stop;
        }
        runs
    }

    fn all_in(self, pages: Range<usize>, state: Page) -> Vec<usize> {
        self.runs(pages).into_iter().filter(|(found, _)| *found == state).flat_map(|(_, run)| run).collect()
    }

    /// Those that are still in the first of the two states.
    fn swap_all(self, pages: &[usize], from: Page, to: Page) {
        for page in pages {
            self.offers.swap_quiet(*page, from, to);
        }
    }

    /// From the first to the last page in one state.
    fn span(self, pages: Range<usize>, state: Page) -> Option<Range<usize>> {
        let runs = self.runs(pages);
        let mut those = runs.into_iter().filter(|(found, _)| *found == state).map(|(_, run)| run);
        let first = those.next()?;
        Some(first.start..those.next_back().map_or(first.end, |last| last.end))
    }

    /// Pages of which we only knew that zeros stood there: who has a page of his own by now was written to.
    fn note_written(self, pages: Range<usize>) -> Result<(), Error> {
        let untouched = self.span(pages, Page::Untouched);
        for page in untouched.map_or(Ok(vec![]), |span| self.scan(span, &OWN))?.into_iter().flatten() {
            self.offers.swap(page, Page::Untouched, Page::Pinned);
        }
        Ok(())
    }

    /// Offered pages that are absent are lost.
    fn note_holes(self, pages: Range<usize>) -> Result<(), Error> {
        for state in OFFERED {
            let offered = self.span(pages.clone(), state);
            for page in offered.map_or(Ok(vec![]), |span| self.scan(span, &ABSENT))?.into_iter().flatten() {
                self.offers.swap(page, state, Page::Lost);
            }
        }
        Ok(())
    }

    /// The runs of pages that match.
    fn scan(self, pages: Range<usize>, query: &ScanQuery) -> Result<Vec<Range<usize>>, Error> {
        let start = self.region.page_address(pages.start);
        let stop = self.region.page_address(pages.end);
        let found = PagemapScan::open_self().and_then(|pagemap| pagemap.collect(start..stop, query));
        let found = found.map_err(|errno| match errno.0 {
            libc::ENOTTY => Error::Unsupported("volatile memory needs PAGEMAP_SCAN (Linux 6.7)".into()),
            _ => Error::Os { what: "looking which pages are there (PAGEMAP_SCAN)".into(), errno },
        })?;
        let page_of = |address: u64| self.region.page_of(address as usize);
        Ok(found.iter().map(|run| page_of(run.start)..page_of(run.end)).collect())
    }

    fn offer(self, run: Range<usize>, from: Page, to: Page) -> Result<(), Error> {
        for page in run.clone() {
            match from {
                Page::Pinned => self.offers.settle(page, to),
                _ => drop(self.offers.swap(page, from, to)), // unless it was lost just now
            }
            self.settled(page);
        }
        self.advise(run.clone(), libc::MADV_FREE).map_err(|errno| {
            for page in run.clone() {
                self.offers.swap(page, to, from);
            }
            let why =
                if errno.0 == libc::EINVAL { ": is it locked (mlock, mlockall)? Locked memory cannot be" } else { "" };
            Error::Os { what: format!("making {} pages volatile{why}", run.len()), errno }
        })
    }

    /// Dirty every offered page that is there, and note those that are not.
    fn keep(self, pages: Range<usize>) -> Result<(), Error> {
        if self.region.options.delivery == Delivery::Thread {
            self.note_holes(pages.clone())?; // else a reader would be asked for each of them
        }
        let mut fruitless = 0;
        let mut at = pages.start;
        while let Some(run) = self.next_run(at..pages.end) {
            match self.advise(run.clone(), libc::MADV_POPULATE_WRITE) {
                Ok(()) => {
                    at = run.end;
                    fruitless = 0;
                }
                Err(Errno(libc::EFAULT | libc::EHWPOISON | libc::EINTR | libc::EAGAIN)) if fruitless < TRIES => {
                    self.note_holes(run)?;
                    self.region.settle_poison();
                    fruitless += 1;
                }
                Err(errno) => return Err(Error::Os { what: format!("pinning {} pages", run.len()), errno }),
            }
        }
        Ok(())
    }

    fn next_run(self, pages: Range<usize>) -> Option<Range<usize>> {
        let mut start = pages.start;
        while start < pages.end {
            let (state, stop) = self.offers.run(start..pages.end);
            if OFFERED.contains(&state) {
                return Some(start..stop);
            }
            start = stop;
        }
        None
    }

    /// Is every error pattern that stands in a page noted? Thread delivery notes it before anybody may put it there, a signal
    /// handler while its exposure is under way.
    fn patterns_are_noted(self) -> bool {
        if self.region.options.delivery == Delivery::Thread {
            self.region.settle_poison();
            return true;
        }
        !self.region.exposures.is_busy()
    }

    fn advise(self, run: Range<usize>, advice: libc::c_int) -> Result<(), Errno> {
        match advise(self.region.page_address(run.start), run.len() * uffd::page_size(), advice) {
            Err(Error::Os { errno, .. }) => Err(errno),
            _ => Ok(()),
        }
    }

    /// The engine, too, knows that the page is there; whoever fills it says so himself.
    fn settled(self, page: usize) {
        let states = &self.region.states;
        if states.get(page) == State::Absent && states.claim(page, State::Absent) {
            states.settle(page, State::Present);
        }
    }
}

/// Neighbouring runs become one.
fn joined(runs: impl IntoIterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut joined: Vec<Range<usize>> = vec![];
    for run in runs {
        match joined.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => joined.push(run),
        }
    }
    joined
}
