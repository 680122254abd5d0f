//! Prefetch and populate: units that the owner wants filled, in pieces, by servers that no fault wants.
//!
//! *Locks*: `list`, for a few instructions. *Threads*: servers. *Blocks on*: sources.

use super::fill::{Bench, Fill};
use super::table::Served;
use super::{Server, clock};
use crate::cause::{Cause, SourceError};
use crate::counters::add;
use crate::fill::Stop;
use crate::pager::wire::{Frame, Kind};
use crate::shared::encode;
use crate::source::Source;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Servers that work at these at once: the others are for faults.
const MOST: usize = 4;
/// One read at most.
const PIECE: usize = 8 << 20;

/// All that are not done.
#[derive(Default)]
pub struct Bulks {
    list: Mutex<VecDeque<Arc<Bulk>>>,
    active: AtomicUsize,
}

struct Bulk {
    ticket: u64,
    served: Arc<Served>,
    end: usize,
    /// Units of one read.
    step: usize,
    awaited: bool,
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
    source.hint(first * served.unit as u64..((end * served.unit) as u64).min(served.len as u64));
    let bulk = Bulk {
        ticket,
        served: served.clone(),
        end,
        step: (piece / served.unit).max(1),
        awaited: awaited != 0,
        next: AtomicUsize::new(number(first)),
        working: AtomicUsize::new(0),
        failed: Mutex::default(),
    };
    server.bulks.list.lock().unwrap_or_else(PoisonError::into_inner).push_back(Arc::new(bulk));
    server.work.ring();
    clock::wake(server);
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

/// Do a piece of the oldest; false: there is none, or enough do.
pub fn work(server: &Server, bench: &mut Bench) -> bool {
    let bulks = &server.bulks;
    if bulks.active.fetch_add(1, Ordering::SeqCst) >= MOST {
        bulks.active.fetch_sub(1, Ordering::SeqCst);
        return false;
    }
    let taken = bulks.take();
    if let Some((bulk, units)) = &taken {
        if let Err(error) = piece(server, bulk, units.clone(), bench) {
            bulk.fail(server, error);
        }
        bulk.leave(server);
    }
    bulks.active.fetch_sub(1, Ordering::SeqCst);
    if taken.is_some() {
        server.work.ring(); // whoever was turned away above may come
    }
    taken.is_some()
}

impl Bulks {
    /// Is there any that is not done?
    pub fn is_busy(&self) -> bool {
        self.active.load(Ordering::SeqCst) > 0 || !self.list.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn take(&self) -> Option<(Arc<Bulk>, Range<usize>)> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let bulk = list.front()?.clone();
            // Before the look for more: its end is told by the last who works at it.
            bulk.working.fetch_add(1, Ordering::SeqCst);
            let first = bulk.next.fetch_add(bulk.step, Ordering::SeqCst);
            let last = first.saturating_add(bulk.step) >= bulk.end;
            if last {
                list.pop_front();
            }
            if first < bulk.end || last {
                let units = first.min(bulk.end)..first.saturating_add(bulk.step).min(bulk.end);
                return Some((bulk, units));
            }
        }
    }
}

impl Bulk {
    fn fail(&self, server: &Server, error: SourceError) {
        let text = server.text_of(error.cause);
        let code = code_of(server, error, &text);
        let words = [error.offset, code[0].into(), code[1].into(), code[2].into()];
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(words);
        if self.awaited {
            self.next.fetch_max(self.end, Ordering::SeqCst);
        }
    }

    /// The last one tells the owner.
    fn leave(&self, server: &Server) {
        if self.working.fetch_sub(1, Ordering::SeqCst) != 1 || self.next.load(Ordering::SeqCst) < self.end {
            return;
        }
        let failed = *self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let words = match failed {
            Some([offset, a, b, c]) => [self.ticket, 1, offset, a, b, c],
            None => [self.ticket, 0, 0, 0, 0, 0],
        };
        server.say(&Frame::new(Kind::Done, self.served.id, &words));
    }
}

/// Fill these units, those that others fill left to them; for who waits: wait for those too.
fn piece(server: &Server, bulk: &Bulk, units: Range<usize>, bench: &mut Bench) -> Result<(), SourceError> {
    let Ok(source) = &bulk.served.source else { return Ok(()) };
    let mut at = units.start;
    while at < units.end {
        let mut claimed = Vec::new();
        while let Some(number) = (at < units.end).then(|| server.flights.claim(&bulk.served, at)).flatten() {
            claimed.push(number);
            at += 1;
        }
        if !claimed.is_empty() {
            run(server, bulk, &**source, at - claimed.len()..at, &claimed, bench)?;
        } else if !bulk.awaited {
            at += 1;
        } else {
            wait_for_other(server, bulk, at)?;
            // It was filled for somebody, or failed for him; a page of it may have been left out. So: once more.
        }
    }
    Ok(())
}

fn run(
    server: &Server,
    bulk: &Bulk,
    source: &dyn Source,
    units: Range<usize>,
    numbers: &[u64],
    bench: &mut Bench,
) -> Result<(), SourceError> {
    let served = &bulk.served;
    let bytes = served.bytes_of(units.clone());
    let mut pause = Duration::from_micros(250);
    let began = Instant::now();
    let outcome = loop {
        match (Fill { server, served, source, bench }).range(bytes.clone()) {
            Err(Stop::Deferred | Stop::WouldBlock) if (began.elapsed().as_nanos() as u64) < served.timeout_ns => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(2));
            }
            outcome => break outcome,
        }
    };
    for (unit, number) in units.clone().zip(numbers) {
        if server.flights.land(served, unit, *number, outcome.is_ok()).joined {
            server.wake_unit(served, unit); // who joined asks again; of a fill that failed he gets the error then
        }
    }
    let counters = &served.part.counters;
    match outcome {
        Ok(()) => {
            add(&counters.prefetched_units, units.len());
            Ok(())
        }
        Err(Stop::Failed(error)) => {
            add(&counters.source_errors, 1);
            Err(error)
        }
        Err(Stop::Gone) => Err(SourceError::new(bytes.start as u64, Cause::Os(libc::ESRCH))),
        Err(_) => Err(SourceError::new(bytes.start as u64, Cause::Timeout)),
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
