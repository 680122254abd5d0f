//! Prefetch, populate and reading ahead of scans: units that are wanted filled, in pieces, by servers that no fault wants. A read
//! that takes longer than a touch may wait is given up by the clock, with all that is left of its bulk or planned for its scan.
//! Who waits for one has servers that no prefetch takes, and no region has all of them.
//!
//! *Locks*: `list` and `reads`, for a few instructions; the flights' map inside `reads`. *Threads*: servers; the clock.
//! *Blocks on*: sources.

use super::fill::{Bench, Fill};
use super::flight::Overdue;
use super::table::Served;
use super::{Server, alarm, hints};
use crate::cause::{Cause, SourceError};
use crate::counters::add;
use crate::fill::Stop;
use crate::futex::now_ns;
use crate::pager::wire::{Frame, Kind};
use crate::shared::encode;
use crate::source::Source;
use crate::states::State;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Servers that work at these at once, for those who wait and for those who do not: the others are for faults.
const MOST: [usize; 2] = [32, 8];
/// Of them for one region: its source may hang.
pub const MOST_OF_ONE: usize = 4;
/// One read at most.
const PIECE: usize = 8 << 20;

/// All that are not done.
#[derive(Default)]
pub struct Bulks {
    list: Mutex<Lists>,
    /// Those that have not come back. Whoever takes one out, its server or the clock, ends it.
    reads: Mutex<Vec<Read>>,
}

/// Those that are waited for, and those that are not; and how many servers work at each.
#[derive(Default)]
struct Lists {
    of: [VecDeque<Arc<Bulk>>; 2],
    active: [usize; 2],
}

/// One read of a source.
#[derive(Clone)]
struct Read {
    bulk: Arc<Bulk>,
    first: usize,
    /// Of its flights, from the first unit on.
    numbers: Vec<u64>,
    deadline_ns: u64,
}

/// Why a piece is not done.
enum Over {
    Failed(SourceError),
    /// The clock has told, and nobody counts on this thread any more.
    GivenUp,
}

pub struct Bulk {
    /// The owner's; `Err`: it is for this scan of the region, and nobody hears how it went.
    ticket: Result<u64, usize>,
    pub(super) served: Arc<Served>,
    first: usize,
    end: usize,
    /// Units of one read.
    step: usize,
    awaited: bool,
    /// When nobody waits any longer for it to begin.
    begin_by_ns: u64,
    next: AtomicUsize,
    working: AtomicUsize,
    failed: Mutex<Option<[u64; 4]>>,
}

/// The owner wants these units.
pub fn begin(server: &Server, frame: &Frame) {
    let number = |word: u64| usize::try_from(word).unwrap_or(usize::MAX);
    let [ticket, first, count, awaited, ..] = frame.words;
    let served = server.table.by_id(frame.region);
    let Some((served, source)) = served.as_ref().and_then(|served| Some((served, served.source.as_ref().ok()?))) else {
        return refuse(server, served.as_deref(), frame);
    };
    let piece = source.piece().clamp(served.unit, PIECE.max(served.unit));
    let units = served.mapped.div_ceil(served.unit);
    let end = number(first).saturating_add(number(count)).min(units);
    let bulk = Bulk {
        ticket: Ok(ticket),
        served: served.clone(),
        first: number(first),
        end,
        step: (piece / served.unit).max(1),
        awaited: awaited != 0,
        begin_by_ns: now_ns().saturating_add(served.timeout_ns),
        next: AtomicUsize::new(number(first)),
        working: AtomicUsize::new(0),
        failed: Mutex::default(),
    };
    hints::begin(server, Arc::new(bulk));
}

/// A unit is touched that was not there: what follows it, if that is a scan.
pub fn read_ahead(server: &Server, served: &Arc<Served>, unit: usize) {
    let Some(stream) = served.ahead.note(unit, served.mapped.div_ceil(served.unit)) else { return };
    while let Some(units) = served.ahead.next(stream) {
        let bulk = Bulk {
            ticket: Err(stream),
            served: served.clone(),
            first: units.start,
            end: units.end,
            step: units.len(),
            awaited: false,
            begin_by_ns: u64::MAX,
            next: AtomicUsize::new(units.start),
            working: AtomicUsize::new(0),
            failed: Mutex::default(),
        };
        server.push(Arc::new(bulk));
    }
}

/// There is no source, and the owner hears why, in words where there are some.
fn refuse(server: &Server, served: Option<&Served>, frame: &Frame) {
    let [ticket, first, ..] = frame.words;
    let cause = served.and_then(|served| served.source.as_ref().err().copied()).unwrap_or(Cause::Os(libc::ESRCH));
    let offset = first.saturating_mul(served.map_or(0, |served| served.unit as u64));
    let text = served.map_or("", |served| &served.text);
    let code = code_of(server, SourceError::new(offset, cause), text);
    let words = [ticket, 1, offset, code[0].into(), code[1].into(), code[2].into()];
    server.say(&Frame::new(Kind::Done, frame.region, &words));
}

/// A failure of no page.
fn code_of(server: &Server, error: SourceError, text: &str) -> [u32; 3] {
    if text.is_empty() { encode(error.cause) } else { server.header.record(0, u64::MAX, error, text) }
}

/// Do a piece of one; false: there is none, or enough do.
pub fn work(server: &Server, bench: &mut Bench) -> bool {
    let Some((bulk, units)) = server.bulks.take() else { return false };
    match piece(server, &bulk, units, bench) {
        Ok(()) => {}
        Err(Over::Failed(error)) => bulk.fail(server, error),
        Err(Over::GivenUp) => return true,
    }
    bulk.leave(server);
    true
}

/// The clock: end the reads that did not come back in time, as if they had failed; who waits for their units beside.
pub fn give_up(server: &Server, now_ns: u64) -> Vec<Overdue> {
    let late: Vec<(Read, Overdue)> = {
        let mut reads = server.bulks.reads();
        // Counted before its server can see that it is gone.
        let end = |read: Read| (server.flights.give_up(&read.bulk.served, read.first, &read.numbers), read);
        reads.extract_if(.., |read| read.deadline_ns <= now_ns).map(end).map(|(waits, read)| (read, waits)).collect()
    };
    let end = |(read, waits): (Read, Overdue)| {
        let bulk = &read.bulk;
        bulk.next.fetch_max(bulk.end, Ordering::SeqCst); // a prefetch too: its other reads would hang as well
        bulk.fail(server, SourceError::new((read.first * bulk.served.unit) as u64, Cause::Timeout));
        bulk.leave(server);
        waits
    };
    let overdue = late.into_iter().map(end).collect();
    for bulk in server.bulks.never_begun(now_ns) {
        let first = bulk.next.swap(bulk.end, Ordering::SeqCst);
        bulk.fail(server, SourceError::new((first * bulk.served.unit) as u64, Cause::Timeout));
        bulk.leave(server);
    }
    overdue
}

impl Bulks {
    fn list(&self) -> MutexGuard<'_, Lists> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reads(&self) -> MutexGuard<'_, Vec<Read>> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is there any that is not done?
    pub fn is_busy(&self) -> bool {
        let list = self.list();
        list.active != [0, 0] || list.of.iter().any(|bulks| !bulks.is_empty())
    }

    /// Is there any that more servers could work at?
    pub fn is_waiting(&self) -> bool {
        self.list().next().is_some()
    }

    /// Those that wait for their turn longer than a touch may: their own region's other reads hang. As if one worked at each.
    fn never_begun(&self, now_ns: u64) -> Vec<Arc<Bulk>> {
        let mut list = self.list();
        let is_late = |bulk: &Arc<Bulk>| bulk.begin_by_ns <= now_ns && bulk.is_new();
        let (late, rest): (Vec<_>, Vec<_>) = list.of[0].drain(..).partition(is_late);
        list.of[0] = rest.into();
        late.iter().for_each(|bulk| list.begin(bulk));
        late
    }

    /// The read of these flights is over; false: it was given up.
    fn is_back(&self, first_number: u64) -> bool {
        let mut reads = self.reads();
        let at = reads.iter().position(|read| read.numbers[0] == first_number);
        at.map(|at| reads.swap_remove(at)).is_some()
    }

    fn take(&self) -> Option<(Arc<Bulk>, Range<usize>)> {
        let mut list = self.list();
        let (kind, at) = list.next()?;
        let bulk = list.of[kind][at].clone();
        // Before the look for more: its end is told by the last who works at it.
        list.begin(&bulk);
        let first = bulk.next.fetch_add(bulk.step, Ordering::SeqCst);
        let stop = first.saturating_add(bulk.step);
        if stop >= bulk.end {
            list.of[kind].remove(at);
        }
        Some((bulk.clone(), first.min(bulk.end)..stop.min(bulk.end)))
    }
}

impl Lists {
    /// The oldest of whose region not enough are worked at: who waits comes first.
    fn next(&self) -> Option<(usize, usize)> {
        let is_free = |bulk: &Arc<Bulk>| bulk.served.readers[bulk.kind()].load(Ordering::SeqCst) < MOST_OF_ONE;
        let kinds = (0..2).filter(|kind| self.active[*kind] < MOST[*kind]);
        kinds.filter_map(|kind| Some((kind, self.of[kind].iter().position(is_free)?))).next()
    }

    /// A server works at it.
    fn begin(&mut self, bulk: &Bulk) {
        self.active[bulk.kind()] += 1;
        bulk.served.readers[bulk.kind()].fetch_add(1, Ordering::SeqCst);
        bulk.working.fetch_add(1, Ordering::SeqCst);
    }
}

impl Server {
    /// Have a bulk read.
    pub(super) fn push(&self, bulk: Arc<Bulk>) {
        self.bulks.list().of[bulk.kind()].push_back(bulk);
        self.work.ring();
        alarm::wake(self);
    }
}

impl Bulk {
    /// Which list it is on: does anybody wait?
    fn kind(&self) -> usize {
        usize::from(!self.awaited)
    }

    /// Has nobody worked at it?
    fn is_new(&self) -> bool {
        self.next.load(Ordering::SeqCst) == self.first
    }

    /// The bytes of a whole one that nobody has begun, as offsets.
    pub(super) fn hinted(&self) -> Range<u64> {
        let at = |unit: usize| (unit.saturating_mul(self.served.unit) as u64).min(self.served.len as u64);
        at(self.next.load(Ordering::SeqCst))..at(self.end)
    }

    fn fail(&self, server: &Server, error: SourceError) {
        if let Err(stream) = self.ticket {
            self.served.ahead.stop(stream); // a touch of it shows why
            // Planned at the same time: were each of them to hang for as long, all other regions would wait for them.
            return server.bulks.list().of[self.kind()].retain(|other| !other.is_like(self));
        }
        let text = server.text_of(error.cause);
        let code = code_of(server, error, &text);
        let words = [error.offset, code[0].into(), code[1].into(), code[2].into()];
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(words);
        if self.awaited {
            self.next.fetch_max(self.end, Ordering::SeqCst);
        }
    }

    /// Is it for the same scan?
    fn is_like(&self, other: &Self) -> bool {
        self.ticket == other.ticket && Arc::ptr_eq(&self.served, &other.served)
    }

    /// Is this unit to be read? What is there already is not, unless somebody waits: he asked because it is not.
    fn wants(&self, unit: usize) -> bool {
        self.awaited || self.served.part.states()[unit].load(Ordering::Relaxed) != State::Present as u8
    }

    /// A server has done its piece; the last one tells the owner.
    fn leave(&self, server: &Server) {
        self.served.readers[self.kind()].fetch_sub(1, Ordering::SeqCst);
        server.bulks.list().active[self.kind()] -= 1;
        server.work.ring(); // whoever was turned away may come
        if self.working.fetch_sub(1, Ordering::SeqCst) != 1 || self.next.load(Ordering::SeqCst) < self.end {
            return;
        }
        let Ok(ticket) = self.ticket else { return };
        let failed = *self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let words = match failed {
            Some([offset, a, b, c]) => [ticket, 1, offset, a, b, c],
            None => [ticket, 0, 0, 0, 0, 0],
        };
        server.say(&Frame::new(Kind::Done, self.served.id, &words));
    }
}

/// Fill these units, those that others fill left to them; for who waits: wait for those too.
fn piece(server: &Server, bulk: &Arc<Bulk>, units: Range<usize>, bench: &mut Bench) -> Result<(), Over> {
    let Ok(source) = &bulk.served.source else { return Ok(()) };
    let mut at = units.start;
    while at < units.end {
        if !bulk.served.is_live() {
            bulk.next.fetch_max(bulk.end, Ordering::SeqCst); // its source is waited for, to be closed
            break;
        }
        let first = at;
        let mut numbers = Vec::new();
        let claim = |at| (at < units.end && bulk.wants(at)).then(|| server.flights.claim(&bulk.served, at)).flatten();
        while let Some(number) = claim(at) {
            numbers.push(number);
            at += 1;
        }
        if !numbers.is_empty() {
            let deadline_ns = now_ns().saturating_add(bulk.served.timeout_ns);
            run(server, &Read { bulk: bulk.clone(), first, numbers, deadline_ns }, &**source, bench)?;
        } else if !bulk.awaited {
            at += 1;
        } else {
            wait_for_other(server, bulk, at).map_err(Over::Failed)?;
            // It was filled for somebody, or failed for him; a page of it may have been left out. So: once more.
        }
    }
    Ok(())
}

fn run(server: &Server, read: &Read, source: &dyn Source, bench: &mut Bench) -> Result<(), Over> {
    let served = &*read.bulk.served;
    let units = read.first..read.first + read.numbers.len();
    let bytes = served.bytes_of(units.clone());
    server.bulks.reads().push(read.clone());
    let outcome = fill(Fill { server, served, source, bench }, &bytes, read.deadline_ns);
    if !server.bulks.is_back(read.numbers[0]) {
        server.flights.hung.fetch_sub(1, Ordering::SeqCst);
        return Err(Over::GivenUp);
    }
    for (unit, number) in units.clone().zip(&read.numbers) {
        if server.flights.land(served, unit, *number, outcome.is_ok()).joined {
            server.wake_unit(served, unit); // who joined asks again; of a fill that failed he gets the error then
        }
    }
    let counters = &served.part.counters;
    let cause = match outcome {
        Ok(()) => {
            add(&counters.prefetched_units, units.len());
            return Ok(());
        }
        Err(Stop::Failed(error)) => {
            add(&counters.source_errors, 1);
            return Err(Over::Failed(error));
        }
        Err(Stop::Gone) => Cause::Os(libc::ESRCH),
        Err(_) => Cause::Timeout,
    };
    Err(Over::Failed(SourceError::new(bytes.start as u64, cause)))
}

fn fill(mut fill: Fill, bytes: &Range<usize>, deadline_ns: u64) -> Result<(), Stop> {
    let mut pause = Duration::from_micros(250);
    loop {
        match fill.range(bytes.clone()) {
            Err(Stop::Deferred | Stop::WouldBlock) if now_ns() < deadline_ns => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(2));
            }
            outcome => return outcome,
        }
    }
}

fn wait_for_other(server: &Server, bulk: &Bulk, unit: usize) -> Result<(), SourceError> {
    let began = Instant::now();
    while server.flights.is_filling(&bulk.served, unit) {
        if began.elapsed().as_nanos() as u64 > bulk.served.timeout_ns {
            return Err(SourceError::new((unit * bulk.served.unit) as u64, Cause::Timeout));
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(())
}
