//! Pinning and unpinning (facts: docs/facts.md, Volatile pages). To unpin is MADV_FREE: the kernel may take a page as long as nobody
//! writes to it, and says nothing when it does. To pin is MADV_POPULATE_WRITE: its verdict is per page and final, for a
//! page that it found there is dirty from then on.
//!
//! What may stand in an absent page's place besides data is the error pattern. A pin therefore first makes sure of the
//! pages that are there, then waits until everybody who was answering a fault has noted that he did, and then looks which of them
//! are noted as lost.
//!
//! *Locks*: the gate of the region. *Threads*: application threads, which must not hold the GIL here. *Blocks on*: faults
//! of this region being answered (signal delivery); the refill.

use crate::error::Error;
use crate::mapping::advise;
use crate::region::{Delivery, Region};
use crate::source::volatile::{Offers, Page};
use crate::source::{Cause, Patience, Reading, Source, SourceError, Table};
use crate::states::State;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use uffd::{Categories, CopyMode, Errno, Outcome, PagemapScan, ScanFlags, ScanQuery, Wake};

/// Repetitions without progress before an operation gives up.
const TRIES: usize = 10_000;
/// How often a long refill asks whether it shall go on.
const LOOK_UP: Duration = Duration::from_millis(50);
/// In memory, in swap, or a marker that looks like swap. Without either, a page is absent.
const THERE: Categories = Categories::PRESENT.union(Categories::SWAPPED);

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
    for from in [Page::Pinned, Page::Refilled, Page::Offered] {
        for run in memory.runs(pages.clone(), from) {
            memory.offer(run, from)?;
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
/// [`Error::Page`]: the refill failed; what is lost stays so, and the next pin says it again. [`Error::Os`].
pub fn pin(region: &Region, bytes: Range<usize>, interrupted: &mut dyn FnMut() -> bool) -> Result<Pinned, Error> {
    let memory = memory(region)?;
    let pages = memory.touched(bytes);
    let _gate = memory.offers.gate();
    let kept = |page: &usize| matches!(memory.offers.get(*page), Page::Untouched | Page::Pinned);
    let were_volatile = joined_pages(pages.clone().filter(|page| !kept(page)));
    memory.keep(pages.clone())?;
    memory.await_answers()?;
    memory.note_half_filled(pages.clone())?;
    let mut lost = vec![];
    let absent = memory.claim(pages.clone(), &[Page::Lost, Page::Dropping]);
    if let Err(error) = memory.renew(&absent, interrupted) {
        absent.iter().cloned().flatten().for_each(|page| memory.offers.set(page, Page::Lost));
        return Err(error);
    }
    let now = if memory.offers.refill.is_some() { Page::Pinned } else { Page::Untouched };
    absent.iter().cloned().flatten().for_each(|page| memory.answered(page, now));
    for page in pages {
        if memory.offers.swap(page, Page::Refilled, Page::Pinned) {
            lost.push(page..page + 1);
        }
        memory.offers.swap(page, Page::Offered, Page::Pinned);
    }
    lost.extend(absent);
    lost.sort_by_key(|run| run.start);
    Ok(Pinned { lost: joined_pages(lost.into_iter().flatten()), were_volatile })
}

/// Zeros again in the pages that `bytes` touches, whatever was there; they cost no memory then.
///
/// # Errors
/// [`Error::Os`].
pub fn discard(region: &Region, bytes: Range<usize>) -> Result<(), Error> {
    let memory = memory(region)?;
    let pages = memory.touched(bytes);
    let _gate = memory.offers.gate();
    let all = [Page::Untouched, Page::Pinned, Page::Offered, Page::Lost, Page::Dropping, Page::Refilled];
    let runs = memory.claim(pages, &all);
    for run in &runs {
        memory.drop_pages(run.clone())?;
        memory.zero(run.clone())?;
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
    let told = |page| match memory.offers.get(page) {
        Page::Untouched => 0,
        Page::Pinned => 1,
        Page::Offered => 2,
        Page::Lost | Page::Dropping | Page::Pinning => 3,
        Page::Refilled => 4,
    };
    Ok(pages.map(told).collect())
}

impl Memory<'_> {
    fn touched(self, bytes: Range<usize>) -> Range<usize> {
        self.region.units_touching(bytes) // the unit is a page
    }

    /// The runs of pages in one state.
    fn runs(self, pages: Range<usize>, state: Page) -> Vec<Range<usize>> {
        joined_pages(pages.filter(|page| self.offers.get(*page) == state))
    }

    /// Pages of which we only knew that zeros stood there: who has a page of his own by now was written to.
    fn note_written(self, pages: Range<usize>) -> Result<(), Error> {
        let untouched = bounds(&self.runs(pages, Page::Untouched));
        for page in untouched.map_or(Ok(vec![]), |span| self.scan(span, &OWN))? {
            self.offers.swap(page, Page::Untouched, Page::Pinned);
        }
        Ok(())
    }

    /// Offered pages that are absent are lost; how many.
    fn note_holes(self, pages: Range<usize>) -> Result<usize, Error> {
        let holes = bounds(&self.runs(pages, Page::Offered)).map_or(Ok(vec![]), |span| self.scan(span, &ABSENT))?;
        Ok(holes.into_iter().filter(|page| self.offers.get(*page) == Page::Offered && self.offers.lose(*page)).count())
    }

    fn scan(self, pages: Range<usize>, query: &ScanQuery) -> Result<Vec<usize>, Error> {
        let start = self.region.page_address(pages.start);
        let stop = self.region.page_address(pages.end);
        let found = PagemapScan::open_self().and_then(|pagemap| pagemap.collect(start..stop, query));
        let found = found.map_err(|errno| match errno.0 {
            libc::ENOTTY => Error::Unsupported("volatile memory needs PAGEMAP_SCAN (Linux 6.7)".into()),
            _ => Error::Os { what: "looking which pages are there (PAGEMAP_SCAN)".into(), errno },
        })?;
        let page_of = |address: u64| self.region.page_of(address as usize);
        Ok(found.iter().flat_map(|run| page_of(run.start)..page_of(run.end)).collect())
    }

    fn offer(self, run: Range<usize>, from: Page) -> Result<(), Error> {
        for page in run.clone() {
            self.offers.swap(page, from, Page::Offered);
            self.settled(page);
        }
        self.advise(run.clone(), libc::MADV_FREE).map_err(|errno| {
            for page in run.clone() {
                self.offers.swap(page, Page::Offered, from);
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
        let stop = pages.end;
        let offered = |page: &usize| self.offers.get(*page) == Page::Offered;
        let start = pages.into_iter().find(offered)?;
        Some(start..(start..stop).find(|page| !offered(page)).unwrap_or(stop))
    }

    /// Until every error pattern that stands in a page is noted. Thread delivery notes it before anybody may put it there;
    /// a signal handler notes it before its fault is over.
    fn await_answers(self) -> Result<(), Error> {
        if self.region.options.delivery == Delivery::Thread {
            self.region.settle_poison();
            return Ok(());
        }
        let patience = Instant::now() + self.region.options.timeout;
        let mut looks = 0;
        while self.region.counters.in_flight.load(Ordering::SeqCst) > 0 {
            if Instant::now() > patience {
                let what = "waiting for threads that touch the same volatile memory".into();
                return Err(Error::Os { what, errno: Errno(libc::ETIMEDOUT) });
            }
            looks += 1;
            if looks % 64 == 0 { std::thread::sleep(Duration::from_micros(50)) } else { std::thread::yield_now() }
        }
        Ok(())
    }

    /// Refilled pages that are absent, because their fill is not over or failed, are lost as others are.
    fn note_half_filled(self, pages: Range<usize>) -> Result<(), Error> {
        let refilled = bounds(&self.runs(pages, Page::Refilled));
        for page in refilled.map_or(Ok(vec![]), |span| self.scan(span, &ABSENT))? {
            self.offers.swap(page, Page::Refilled, Page::Lost);
        }
        Ok(())
    }

    /// Make the pages in one of the states ours alone: `Pinning`.
    fn claim(self, pages: Range<usize>, states: &[Page]) -> Vec<Range<usize>> {
        let claimed = pages.filter(|page| {
            loop {
                match self.offers.get(*page) {
                    state if !states.contains(&state) => return false,
                    Page::Dropping => std::thread::yield_now(),
                    state if self.offers.swap(*page, state, Page::Pinning) => return true,
                    _ => {}
                }
            }
        });
        joined_pages(claimed)
    }

    /// Lost pages become pages again: zeros, or what the refill says.
    fn renew(self, runs: &[Range<usize>], interrupted: &mut dyn FnMut() -> bool) -> Result<(), Error> {
        let mut looked = Instant::now();
        for run in runs {
            self.drop_pages(run.clone())?;
            let Some(refill) = &self.offers.refill else {
                self.zero(run.clone())?;
                continue;
            };
            for page in run.clone() {
                self.read_again(&**refill, page)?;
                if looked.elapsed() > LOOK_UP {
                    looked = Instant::now();
                    if interrupted() {
                        let offset = (page * uffd::page_size()) as u64;
                        return Err(self.failed(SourceError::new(offset, Cause::Interrupted)));
                    }
                }
            }
        }
        Ok(())
    }

    fn failed(self, error: SourceError) -> Error {
        Error::Page { source_name: self.region.source_name.clone(), error }
    }

    fn read_again(self, refill: &dyn Source, page: usize) -> Result<(), Error> {
        let size = uffd::page_size();
        let offset = page * size;
        let mut scratch = self.region.scratch.take_or_make(true);
        let from = scratch.unit.address();
        // SAFETY: the scratch is this call's own, and a page long at least.
        let out = unsafe { std::slice::from_raw_parts_mut(from as *mut u8, size) };
        let wanted = size.min(self.region.len - offset);
        let mut how = Reading { patience: Patience::Wait, table: Table::Application, scratch: &mut scratch };
        refill.read_into(offset as u64, &mut out[..wanted], &mut how).map_err(|error| self.failed(error))?;
        out[wanted..].fill(0);
        let handle = self.region.handle(Table::Application);
        self.install(page..page + 1, |start, bytes| handle.copy(start, from, bytes, CopyMode::NONE))
    }

    fn zero(self, pages: Range<usize>) -> Result<(), Error> {
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

    fn drop_pages(self, run: Range<usize>) -> Result<(), Error> {
        self.advise(run.clone(), libc::MADV_DONTNEED)
            .map_err(|errno| Error::Os { what: format!("dropping {} lost pages", run.len()), errno })
    }

    fn advise(self, run: Range<usize>, advice: libc::c_int) -> Result<(), Errno> {
        match advise(self.region.page_address(run.start), run.len() * uffd::page_size(), advice) {
            Err(Error::Os { errno, .. }) => Err(errno),
            _ => Ok(()),
        }
    }

    /// A claimed page has its contents.
    fn answered(self, page: usize, now: Page) {
        self.region.exposed.remove(page);
        self.region.forget_poison(page..page + 1);
        self.offers.set(page, now);
        self.settled(page);
    }

    /// The engine, too, knows that the page is there; whoever fills it says so himself.
    fn settled(self, page: usize) {
        let states = &self.region.states;
        if states.get(page) == State::Absent && states.claim(page, State::Absent) {
            states.settle(page, State::Present);
        }
    }
}

/// From the first to the last page of some runs.
fn bounds(runs: &[Range<usize>]) -> Option<Range<usize>> {
    Some(runs.first()?.start..runs.last()?.end)
}

fn joined_pages(pages: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = vec![];
    for page in pages {
        match runs.last_mut() {
            Some(last) if last.end == page => last.end += 1,
            _ => runs.push(page..page + 1),
        }
    }
    runs
}
