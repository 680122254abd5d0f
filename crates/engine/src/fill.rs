//! One unit, from source to page. The same code serves readers, workers and signal handlers: it allocates nothing and
//! takes no lock that an interrupted thread may hold.
//!
//! The caller owns the unit (`states.claim`) and settles it afterwards.

use crate::counters::{add, counted};
use crate::mapping::{self, advise};
use crate::policy::Method;
use crate::region::Region;
use crate::scratch::{Loan, Tally};
use crate::source::volatile::Offers;
use crate::source::{Cause, Extent, Latency, Patience, Reading, Scratch, SourceError, Table};
use crate::stock::{Stock, StockSlot};
use std::time::{Duration, Instant};
use uffd::{ContinueMode, CopyMode, Errno, MoveMode, Outcome, Wake};

/// Why a unit is not filled (yet).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It would have to wait, and `NoWait` was asked.
    WouldBlock,
    /// The kernel says EAGAIN and gets nowhere: put it on the timer queue.
    Deferred,
    /// The process is going away.
    Gone,
    /// The bytes cannot be had, or the kernel cannot take them.
    Failed(SourceError),
}

impl From<SourceError> for Stop {
    fn from(error: SourceError) -> Self {
        if error.cause == Cause::WouldBlock { Stop::WouldBlock } else { Stop::Failed(error) }
    }
}

/// Who fills: which descriptor table, with what patience.
#[derive(Clone, Copy, Debug)]
pub struct Who {
    /// The thread's descriptor table.
    pub table: Table,
    /// May it wait?
    pub patience: Patience,
}

/// Repetitions without progress before a fault goes to the timer queue, or a MOVE becomes a COPY.
const TRIES: usize = 64;

/// Fill all holes of `unit`. If that fails and the source can give single pages, fill `page` alone: then the unit is
/// `Ok(false)`, not whole, unless that page is all of it.
///
/// # Errors
/// See [`Stop`]. What was installed stays.
pub fn fill_unit(region: &Region, unit: usize, page: Option<usize>, who: Who) -> Result<bool, Stop> {
    let mut scratch = match who.table {
        _ if region.source.is_called() => region.scratch.take_or_make(false),
        Table::Application => Loan::Pooled(region.scratch.take()),
        Table::Engine => region.scratch.take_or_make(region.source.latency() == Latency::MayBlock),
    };
    let range = region.unit_range(unit);
    if let Some(offers) = &region.offers
        && offers.is_here(unit, || region.has_page(unit), || put_zeros(region, unit, who))
    {
        let _ = region.handle(who.table).wake(region.page_address(unit), uffd::page_size());
        return Ok(true); // it was pinned since it was asked for
    }
    drop_exposed(region, range.clone());
    let began = region.policy.is_watching().then(Instant::now);
    let own = (region.base + range.start, region.base + range.end);
    let mut fill = Fill { region, who, scratch: &mut scratch, began, reading: Duration::ZERO, own, used: None };
    let outcome = fill.range(range.start, range.len()).map(|()| true);
    let pages = range.start / uffd::page_size()..range.end / uffd::page_size();
    let is_one_page = pages.len() == 1;
    if outcome.is_ok() {
        if let Some(method) = fill.used {
            region.policy.filled(method, began.map(|began| began.elapsed().saturating_sub(fill.reading)));
        }
        region.forget_poison(pages);
        return outcome;
    }
    if let (Err(Stop::Failed(_)), Some(page)) = (&outcome, page)
        && came_before_the_failure(region, page)
    {
        add(&region.counters.source_errors, 1);
        let _ = region.handle(who.table).wake(region.page_address(page), uffd::page_size());
        return Ok(is_one_page);
    }
    let (Err(Stop::Failed(_)), Some(page), true) = (&outcome, page, region.source.page_granular()) else {
        drop_part(region, range, &outcome);
        return outcome;
    };
    add(&region.counters.source_errors, 1);
    let alone = fill.range(page * uffd::page_size(), uffd::page_size()).map(|()| true);
    drop_part(region, range, &alone);
    alone?;
    region.forget_poison(page..page + 1);
    Ok(is_one_page)
}

/// Fill all holes of several units by one read of the source, in memory made for it.
///
/// # Errors
/// See [`Stop`]. What was installed stays.
pub fn fill_units(region: &Region, units: std::ops::Range<usize>, who: Who) -> Result<(), Stop> {
    let bytes = region.unit_range(units.start).start..region.unit_range(units.end - 1).end;
    drop_exposed(region, bytes.clone());
    let mut scratch = Scratch::new(bytes.len(), region.source.needs());
    let own = (region.base + bytes.start, region.base + bytes.end);
    let mut fill = Fill { region, who, scratch: &mut scratch, began: None, reading: Duration::ZERO, own, used: None };
    let outcome = fill.range(bytes.start, bytes.len());
    if outcome.is_ok() {
        region.forget_poison(bytes.start / uffd::page_size()..bytes.end / uffd::page_size());
    }
    drop_part(region, bytes, &outcome.map(|()| true));
    outcome
}

/// Is the page there, with the part of its unit that was installed? Asked for alone, a COPY would not say so but ENOMEM, where
/// memory is what there is none of; and answered by an error it would use up what is put by for those that are missing.
fn came_before_the_failure(region: &Region, page: usize) -> bool {
    // Of poison mincore says that it is there; opening a file to know better may want memory, so only then.
    region.has_page(page)
        && !region.exposed.contains(page)
        && (!region.has_poison() || mapping::is_mapped(region.page_address(page), 1))
}

/// A part of a unit that failed would stay beyond a resident budget: nobody would know that it has to leave.
fn drop_part(region: &Region, bytes: std::ops::Range<usize>, outcome: &Result<bool, Stop>) {
    if region.residence.is_some() && matches!(outcome, Err(Stop::Failed(_) | Stop::Gone)) {
        let _ = advise(region.base + bytes.start, bytes.len(), libc::MADV_DONTNEED);
    }
}

/// Zeros in one page, if it is a hole.
fn put_zeros(region: &Region, page: usize, who: Who) {
    let _ = region.handle(who.table).zeropage(region.page_address(page), uffd::page_size(), Wake::Yes);
}

/// Pages that show the error pattern become holes: they are filled now.
fn drop_exposed(region: &Region, bytes: std::ops::Range<usize>) {
    if !region.exposed.is_empty() {
        let pages = bytes.start / uffd::page_size()..bytes.end / uffd::page_size();
        pages.for_each(|page| {
            region.take_pattern(page, || region.drop_page(page));
        });
    }
}

struct Fill<'a> {
    region: &'a Region,
    who: Who,
    scratch: &'a mut Scratch,
    /// Set if the policy wants to know what this fill costs.
    began: Option<Instant>,
    /// Of that, the source's time: it is the same for every method.
    reading: Duration,
    /// The memory that is being filled.
    own: (usize, usize),
    /// How the bytes of a whole unit got there; zeros have a way of their own.
    used: Option<Method>,
}

impl Fill<'_> {
    /// Fill `len` mapped bytes from `start`, both whole pages; the source may end inside the last one.
    fn range(&mut self, start: usize, len: usize) -> Result<(), Stop> {
        let end = (start + len).min(self.region.len);
        let mut at = start;
        while at < end {
            at += self.extent(at, end - at)?;
        }
        if end <= start && len > 0 {
            self.install_zero(start, len)?; // a region of an empty source still has its one page
        }
        Ok(())
    }

    fn reading(&mut self) -> Reading<'_> {
        Reading {
            patience: self.who.patience,
            table: self.who.table,
            limit: self.region.options.timeout,
            own: self.own,
            scratch: self.scratch,
        }
    }

    /// Fill what lies at `at`; returns how many bytes, whole pages unless the source ends there.
    fn extent(&mut self, at: usize, left: usize) -> Result<usize, Stop> {
        let page = uffd::page_size();
        let region = self.region;
        let extent = region.source.extent(at as u64, left, &mut self.reading());
        let whole = |bytes: usize| if bytes >= left { left } else { bytes / page * page };
        // A huge page is filled as one, zeros among its bytes and all: several pieces would be small pages.
        let in_pieces = self.region.options.huge && left == self.region.unit;
        match extent {
            Extent::Zero(bytes) | Extent::Memory(_, bytes) | Extent::Data(bytes) if in_pieces && bytes < left => {
                self.data(at, left)?;
                Ok(left)
            }
            Extent::Zero(bytes) if whole(bytes) > 0 => {
                let bytes = whole(bytes);
                self.install_zero(at, bytes.next_multiple_of(page))?;
                Ok(bytes)
            }
            Extent::Memory(address, bytes) if whole(bytes) >= page => {
                self.memory(at, address, whole(bytes) / page * page)
            }
            Extent::Zero(bytes) | Extent::Memory(_, bytes) | Extent::Data(bytes) => {
                let bytes = bytes.max(1).next_multiple_of(page).min(left);
                self.data(at, bytes)?;
                Ok(bytes)
            }
        }
    }

    /// Bytes in memory: the kernel copies them straight to their place, unless staging is faster.
    fn memory(&mut self, at: usize, address: usize, bytes: usize) -> Result<usize, Stop> {
        if self.method(bytes) == Method::Copy {
            self.used = (bytes == self.region.unit).then_some(Method::Copy);
            self.install(at, address, bytes)?;
        } else {
            self.data(at, bytes)?;
            self.reading = Duration::ZERO; // a copy of memory that COPY does not need
        }
        Ok(bytes)
    }

    /// MOVE needs the whole unit: a short last one is copied.
    fn method(&self, bytes: usize) -> Method {
        match self.region.policy.method() {
            Method::Move if bytes != self.region.unit => Method::Copy,
            method => method,
        }
    }

    /// Read bytes into staging or a buffer and install them; a last page that the source does not fill ends in zeros.
    fn data(&mut self, at: usize, bytes: usize) -> Result<(), Stop> {
        let method = self.method(bytes);
        let slot = if method == Method::Move { self.staging() } else { None };
        if let (Some(stock), Some(slot)) = (&self.region.stock, slot) {
            return self.data_by_move(at, bytes, stock, slot);
        }
        let padded = bytes.next_multiple_of(uffd::page_size());
        let buffer = self.scratch.unit.address();
        self.read(at, bytes, buffer)?;
        self.used = (bytes == self.region.unit).then_some(Method::Copy);
        if method == Method::Continue {
            return self.install_shared(at, buffer, padded);
        }
        match &self.region.offers {
            Some(offers) => self.install_volatile(at, buffer, padded, offers),
            None => self.install(at, buffer, padded),
        }
    }

    /// Recycled staging pages; fresh ones for huge units, where making them still beats copying.
    fn staging(&self) -> Option<StockSlot> {
        let stock = self.region.stock.as_ref()?;
        stock.take_populated().or_else(|| {
            if self.region.options.huge { stock.make_fresh(self.region.handles.staging(self.who.table)) } else { None }
        })
    }

    fn data_by_move(&mut self, at: usize, bytes: usize, stock: &Stock, slot: StockSlot) -> Result<(), Stop> {
        let from = stock.address(&slot);
        if let Err(stop) = self.read(at, bytes, from) {
            stock.put_populated(slot);
            return Err(stop);
        }
        self.used = Some(Method::Move);
        let moved = self.install_by_move(at, from, bytes);
        stock.put_back(slot, moved == Ok(true));
        moved.map(|_| ())
    }

    /// Read `bytes` of the source into memory of ours at `buffer`, zeros after the source's end up to a whole page.
    fn read(&mut self, at: usize, bytes: usize, buffer: usize) -> Result<(), Stop> {
        let padded = bytes.next_multiple_of(uffd::page_size());
        // SAFETY: `buffer` is this thread's scratch or a staging slot on loan: at least `padded` bytes, populated or
        // fresh anonymous memory, and reached by nobody else meanwhile.
        let out = unsafe { std::slice::from_raw_parts_mut(buffer as *mut u8, padded) };
        let region = self.region;
        let began = self.began.map(|_| Instant::now());
        let outcome = region.source.read_into(at as u64, &mut out[..bytes], &mut self.reading());
        self.reading += began.map_or(Duration::ZERO, |began| began.elapsed());
        let tally = std::mem::take(&mut self.scratch.tally);
        if tally != Tally::default() {
            add(&self.region.counters.frames_decoded, tally.decoded);
            add(&self.region.counters.frames_found, tally.found);
            add(&self.region.counters.source_retries, tally.repeated);
        }
        outcome?;
        out[bytes..].fill(0);
        Ok(())
    }

    fn install_zero(&mut self, at: usize, bytes: usize) -> Result<(), Stop> {
        let handle = self.region.handle(self.who.table);
        let counter = &self.region.counters.zero_bytes;
        self.each_hole(at, bytes, |dst, _, left| counted(counter, left, || handle.zeropage(dst, left, Wake::Yes)))
    }

    /// Install pages by COPY.
    fn install(&mut self, at: usize, from: usize, bytes: usize) -> Result<(), Stop> {
        let handle = self.region.handle(self.who.table);
        let counter = &self.region.counters.copied_bytes;
        self.each_hole(at, bytes, |dst, done, left| {
            counted(counter, left, || handle.copy(dst, from + done, left, CopyMode::NONE))
        })
    }

    /// The same for the one page of volatile memory, of which is noted what stands there.
    fn install_volatile(&mut self, at: usize, from: usize, bytes: usize, offers: &Offers) -> Result<(), Stop> {
        let page = at / uffd::page_size();
        if !offers.bring(page, || self.region.has_page(page), || put_zeros(self.region, page, self.who)) {
            let _ = self.region.handle(self.who.table).wake(self.region.page_address(page), bytes);
            return Ok(());
        }
        let installed = self.install(at, from, bytes);
        offers.brought(page, installed.is_ok());
        installed
    }

    /// Install staging pages by MOVE, and by COPY from the first that MOVE refuses; true: all of them went.
    fn install_by_move(&mut self, at: usize, from: usize, bytes: usize) -> Result<bool, Stop> {
        let handle = self.region.handle(self.who.table);
        let counters = &self.region.counters;
        // SAFETY: `from` is a staging slot on loan to this thread; its pages may go.
        let moved = self.each_hole(at, bytes, |dst, done, left| unsafe {
            counted(&counters.moved_bytes, left, || handle.move_pages(dst, from + done, left, MoveMode::NONE))
        });
        match moved {
            Err(Stop::Failed(SourceError { cause: Cause::Os(libc::EBUSY | libc::EINVAL), offset })) => {
                // Pinned, shared with a fork, or on their way to read-only memory: their bytes can still be copied. Those
                // before them are gone from staging: a COPY of them would be a fault of our own, which nobody answers.
                let gone = offset as usize - at;
                add(&counters.move_fallbacks, 1);
                self.install(at + gone, from + gone, bytes - gone).map(|()| false)
            }
            outcome => outcome.map(|()| true),
        }
    }

    /// Pages that the memory file lacks are copied in; those that it has already (written by another process, or ours and
    /// unmapped since) are mapped as they are: what was written is never overwritten.
    fn install_shared(&mut self, at: usize, from: usize, bytes: usize) -> Result<(), Stop> {
        let handle = self.region.handle(self.who.table);
        let (page, counters) = (uffd::page_size(), &self.region.counters);
        self.each_hole(at, bytes, |dst, done, left| {
            match counted(&counters.copied_bytes, left, || handle.copy(dst, from + done, left, CopyMode::NONE)) {
                Outcome::Exists => {
                    match counted(&counters.continued_bytes, page, || handle.continue_(dst, page, ContinueMode::NONE)) {
                        Outcome::Done => Outcome::Partial(page),
                        other => other,
                    }
                }
                other => other,
            }
        })
    }

    /// Drive one resolving operation over a range: go on after partial success, step over pages that are there (and wake
    /// whoever waits for them: the kernel does not), lift poison, repeat what is transient.
    fn each_hole(&self, at: usize, bytes: usize, step: impl Fn(usize, usize, usize) -> Outcome) -> Result<(), Stop> {
        let region = self.region;
        let page = uffd::page_size();
        let (mut done, mut tries, mut most) = (0, 0, bytes);
        while done < bytes {
            let address = region.base + at + done;
            let size = most.min(bytes - done);
            match step(address, done, size) {
                Outcome::Done => done += size,
                Outcome::Partial(more) => {
                    done += more;
                    tries = 0;
                }
                Outcome::Exists => {
                    let there = (at + done) / page;
                    // Exposed since this fill began: a timeout, or Ctrl-C. Else it is there, or poisoned.
                    let hidden = region.make_way(there);
                    if !hidden && (region.has_page(there) || !region.lift_poison(there)) {
                        // There; or the pattern, of which its toucher is about to make a note.
                        let _ = region.handle(self.who.table).wake(address, page);
                        done += page;
                    }
                }
                Outcome::Retry => again(&mut tries, &region.counters.retries, Stop::Deferred)?,
                Outcome::Failed(errno @ Errno(libc::EBUSY)) => {
                    // O_DIRECT reads drop their pin a moment after they are done (docs/facts.md, Filling).
                    again(&mut tries, &region.counters.retries, failed(at + done, errno))?;
                }
                Outcome::Failed(Errno(libc::EBADF))
                    if self.who.table == Table::Application && region.handles.restore() => {}
                // The range spans mappings, because somebody changed the protection of a part (mprotect).
                Outcome::Failed(Errno(libc::ENOENT)) if size > page => most = page,
                Outcome::Gone => return Err(Stop::Gone),
                Outcome::Failed(errno) => return Err(failed(at + done, errno)),
            }
        }
        Ok(())
    }
}

fn again(tries: &mut usize, counter: &std::sync::atomic::AtomicU64, at_last: Stop) -> Result<(), Stop> {
    *tries += 1;
    add(counter, 1);
    if *tries > TRIES {
        return Err(at_last);
    }
    // SAFETY: sched_yield has no preconditions.
    unsafe { libc::sched_yield() };
    Ok(())
}

fn failed(at: usize, errno: Errno) -> Stop {
    Stop::Failed(SourceError::new(at as u64, Cause::Os(errno.0)))
}
