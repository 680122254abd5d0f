//! Sources that are code of the language above: whoever touches runs them, in the middle of the touch.
//!
//! With signal delivery the SIGBUS handler does. With thread delivery the reader tells the thread that waits, by a directed
//! signal, and goes on reading; the thread's handler gets the page, and its instruction goes on. Who cannot run that code is
//! served by a worker: system calls, threads that do not hold the language's lock (whoever holds it may wait for them), and
//! threads that block the signal. Nobody waits with the lock for somebody who may need it.
//!
//! A signal that comes late finds its thread anywhere: the handler serves only a thread that is where it waited.
//!
//! *Locks*: a region's `waits`, as engine threads do. *Threads*: readers tell; the rest runs in the toucher's handlers.
//! *Blocks on*: the source, and whoever fills the same unit: without the language's lock, and not beyond the region's timeout.

use crate::counters::{Ending, add};
use crate::directed::{self, Interrupted, Receives};
use crate::engine::Engine;
use crate::evict;
use crate::expose::expose;
use crate::failure::Failure;
use crate::fill::{Stop, Who, fill_unit};
use crate::futex::{ATTENTION, now_ns};
use crate::latch::{is_latched, is_this_latched};
use crate::looks::{self, Doing, Looks, blocks_signal};
use crate::nest;
use crate::queue::FaultJob;
use crate::region::{Delivery, Region};
use crate::serve::read_ahead;
use crate::source::{Cause, Patience, SourceError, Table};
use crate::states::State;
use crate::table::Pin;
use crate::threads::thread_id;
use crate::{interrupt, language};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use uffd::Fault;

/// Get ready to tell touchers. False: no signal is free.
pub fn install() -> bool {
    directed::install(Receives::Called, receive)
}

/// A thread that was told, from the message to its handler.
struct Told {
    thread: AtomicI32,
    state: AtomicU32,
    address: AtomicUsize,
    since_ns: AtomicU64,
    /// When it was done with the last touch that it served itself.
    served_ns: AtomicU64,
}

const FREE: u32 = 0;
/// The reader writes the entry.
const WRITING: u32 = 1;
/// The signal is on its way.
const SENT: u32 = 2;
/// The thread cannot run the source: its next message is for a worker.
const DECLINED: u32 = 3;
/// A worker looks at what it does.
const LOOKED_AT: u32 = 4;
/// It has asked once more meanwhile.
const ASKED_AGAIN: u32 = 5;

const ENTRIES: usize = 1024;
/// Entries that a thread's may be in.
const REACH: usize = 8;
static TOLD: [Told; ENTRIES] = [const {
    Told {
        thread: AtomicI32::new(0),
        state: AtomicU32::new(FREE),
        address: AtomicUsize::new(0),
        since_ns: AtomicU64::new(0),
        served_ns: AtomicU64::new(0),
    }
}; ENTRIES];

impl Told {
    fn moves(&self, from: u32, to: u32) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Is a worker looking at the thread? It hears of this message.
    fn asks_again(&self) -> bool {
        self.moves(LOOKED_AT, ASKED_AGAIN) || self.state.load(Ordering::Acquire) == ASKED_AGAIN
    }
}

fn entries(thread: i32) -> impl Iterator<Item = &'static Told> {
    (0..REACH).map(move |step| &TOLD[(thread as usize).wrapping_mul(7).wrapping_add(step) % ENTRIES])
}

fn entry_of(thread: i32) -> Option<&'static Told> {
    entries(thread).find(|told| told.thread.load(Ordering::Acquire) == thread)
}

/// The entry of a thread; `true`: it is new.
fn claim_entry(thread: i32) -> Option<(&'static Told, bool)> {
    if let Some(told) = entry_of(thread) {
        return Some((told, false));
    }
    // One of a thread that was told long ago is free for another.
    let old = |told: &&'static Told| {
        let owner = told.thread.load(Ordering::Acquire);
        told.state.load(Ordering::Acquire) == FREE
            && told.thread.compare_exchange(owner, thread, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    };
    entries(thread).find(old).map(|told| (told, true))
}

/// Who answers a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// Its toucher, which was told, or whoever looks at it already.
    Toucher,
    /// The reader, or a worker for it.
    Reader,
    /// That depends on what the thread does, which a worker has to find out ([`look_again`]).
    Unknown,
}

/// A reader's: have the toucher serve itself, if that can be. `read_ns`: the message had been read by then.
pub fn tell(region: &Region, fault: &Fault, read_ns: u64, looks: &mut Looks) -> Answers {
    let (thread, page) = (fault.tid, region.page_of(fault.address));
    if thread == 0 || region.is_closing() || is_latched(thread) || is_own(region, fault) {
        return Answers::Reader;
    }
    let address = region.page_address(page);
    let Some((told, is_new)) = claim_entry(thread) else { return Answers::Reader };
    if told.address.load(Ordering::Relaxed) == address {
        if told.asks_again() {
            return Answers::Toucher;
        }
        if told.moves(DECLINED, FREE) {
            return Answers::Reader;
        }
    }
    // Also where somebody fills the page and this thread is known to wait for it: its first message may have been read late,
    // when it had gone on and was in a system call, and who fills it may need the lock that it holds now.
    if is_new && blocks_signal(thread) {
        told.thread.store(0, Ordering::Release);
        return Answers::Reader;
    }
    let doing = looks.at(thread);
    // A signal interrupted the wait, and the message is of the moment before the thread served itself: it may wait for another page
    // by now, at the same instruction of a loop.
    if told.served_ns.load(Ordering::Acquire) > read_ns {
        let _ = region.handles.engine.wake(address, uffd::page_size()); // the entry may have been another's: then it asks again
        return Answers::Toucher;
    }
    let place = match doing {
        Doing::Waits(place) => place,
        Doing::Other => {
            told.state.store(FREE, Ordering::Release);
            return Answers::Reader;
        }
        Doing::Runs => {
            told.address.store(address, Ordering::Relaxed);
            told.state.store(LOOKED_AT, Ordering::Release);
            return Answers::Unknown;
        }
    };
    told.state.store(WRITING, Ordering::Relaxed);
    told.address.store(address, Ordering::Relaxed);
    told.since_ns.store(now_ns(), Ordering::Relaxed);
    told.state.store(SENT, Ordering::Release);
    if !directed::send(thread, address, place) {
        told.state.store(FREE, Ordering::Release);
        return Answers::Reader;
    }
    if !WATCHED.swap(true, Ordering::SeqCst) {
        ATTENTION.ring();
    }
    Answers::Toucher
}

/// What a worker found out about a thread that ran when its fault was read.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// It waits in user code by now: it is to ask again, and is told.
    pub in_user_code: bool,
    /// Nobody answers another message of its that came meanwhile.
    pub has_asked_again: bool,
}

/// A worker's: what does a thread do that ran when its fault was read?
#[must_use]
pub fn look_again(fault: &Fault) -> Found {
    let in_user_code = looks::comes_to_wait_in_user_code(fault.tid);
    let undisturbed = entry_of(fault.tid).is_some_and(|told| {
        let undisturbed = told.moves(LOOKED_AT, FREE);
        undisturbed || {
            told.moves(ASKED_AGAIN, FREE);
            false
        }
    });
    Found { in_user_code, has_asked_again: !undisturbed }
}

/// Does a message say that its thread waits for what its own source is there to fill?
#[must_use]
pub fn is_own(region: &Region, fault: &Fault) -> bool {
    region.source.is_called() && nest::resolves(fault.tid, unit_of(region, fault))
}

/// Does it really, or is the message an old one ([`nest::asks_itself`])?
#[must_use]
pub fn waits_for_itself(region: &Region, fault: &Fault) -> bool {
    nest::asks_itself(fault.tid, unit_of(region, fault))
}

fn unit_of(region: &Region, fault: &Fault) -> usize {
    unit_memory(region, region.unit_of_page(region.page_of(fault.address))).start
}

fn unit_memory(region: &Region, unit: usize) -> Range<usize> {
    let bytes = region.unit_range(unit);
    region.base + bytes.start..region.base + bytes.end
}

/// Are there threads on their way to their handlers? The keeper looks after them meanwhile.
static WATCHED: AtomicBool = AtomicBool::new(false);
/// A thread that has not come to its handler by then does not get there: it blocks the signal.
const LOST: Duration = Duration::from_secs(1);
/// How often they are looked after: one that is known to block the signal is not waited for until then, for whoever serves it
/// takes the whole timeout again.
const LOOK: Duration = Duration::from_millis(200);

/// The keeper's: hand threads that do not come to their handler to workers; when to look again.
pub fn look_for_lost(engine: &'static Engine) -> Option<Instant> {
    if !WATCHED.load(Ordering::SeqCst) {
        return None;
    }
    let now = now_ns();
    let mut waiting = false;
    for told in TOLD.iter().filter(|told| told.state.load(Ordering::Acquire) == SENT) {
        let age = Duration::from_nanos(now.saturating_sub(told.since_ns.load(Ordering::Relaxed)));
        let thread = told.thread.load(Ordering::Relaxed);
        if age < LOST && (age < LOOK || !blocks_signal(thread)) {
            waiting = true;
        } else if told.moves(SENT, FREE) {
            hand_to_worker(engine, told.address.load(Ordering::Relaxed), thread);
        }
    }
    if !waiting {
        WATCHED.store(false, Ordering::SeqCst);
        // One that was told just before is seen by the next look, one told after rings.
        waiting = TOLD.iter().any(|told| told.state.load(Ordering::SeqCst) == SENT);
        WATCHED.fetch_or(waiting, Ordering::SeqCst);
    }
    waiting.then(|| Instant::now() + LOOK)
}

fn hand_to_worker(engine: &'static Engine, address: usize, thread: i32) {
    let Some(region) = engine.table.pin(address).filter(|region| region.contains(address)) else { return };
    let page = region.page_of(address);
    let unit = region.unit_of_page(page);
    let state = region.states.get(unit);
    if state == State::Filling || !region.states.claim(unit, state) {
        return; // who fills it wakes everybody
    }
    region.counters.begin();
    engine.queue.push_fault(FaultJob { region, page, thread, after: None, deferrals: 0 });
}

/// In the handler of the signal.
fn receive(address: usize, is_there: bool, interrupted: &Interrupted) -> bool {
    let Some(engine) = Engine::current() else { return false };
    let Some(region) = engine.table.pin(address).filter(|region| region.contains(address)) else { return false };
    let Some(told) = entry_of(thread_id()) else { return true };
    // The message may have been an old one of a touch that this thread serves by now, and the place that of another touch, in code
    // that the source called: its instruction asks for that one again.
    let is_served =
        nest::resolves(thread_id(), unit_memory(&region, region.unit_of_page(region.page_of(address))).start);
    let is_there = is_there && told.address.load(Ordering::Acquire) == address && !is_served;
    let next = if is_there && !language::holds_lock() { DECLINED } else { FREE };
    let is_ours = told.moves(SENT, next);
    if is_ours && is_there && next == FREE {
        serve(engine, &region, region.page_of(address), interrupted);
        told.served_ns.store(now_ns(), Ordering::Release);
    }
    true // else its instruction asks again, if there is anything left to ask for
}

/// In a handler of the thread that touched `page`: get it here and now, or raise.
pub fn serve(engine: &'static Engine, region: &Pin<Region>, page: usize, interrupted: &Interrupted) {
    region.counters.begin();
    let outcome = interrupted.with_its_mask(|| resolve(engine, region, page));
    region.counters.end(*outcome.as_ref().unwrap_or(&Ending::Poisoned));
    if let Err(error) = outcome {
        expose(region, page, Failure::of(region, page, error));
    }
}

/// How long one sleep lasts before it looks around.
const SLICE: Duration = Duration::from_millis(5);

const HERE: Who = Who { table: Table::Application, patience: Patience::Wait };

fn resolve(engine: &'static Engine, region: &Region, page: usize) -> Result<Ending, SourceError> {
    let unit = region.unit_of_page(page);
    let failed = |cause| Err(SourceError::new((page * uffd::page_size()) as u64, cause));
    if is_this_latched() {
        return failed(Cause::Latched);
    }
    let Some(_nested) = nest::begin(thread_id(), &unit_memory(region, unit)) else { return failed(Cause::OwnRegion) };
    let (began, interrupts) = (Instant::now(), interrupt::count());
    loop {
        let state = region.states.get(unit);
        if state == State::Present && region.has_page(page) {
            return Ok(Ending::Coalesced);
        }
        if state != State::Filling {
            if region.states.claim(unit, state) {
                return fill(engine, region, page, unit);
            }
            continue;
        }
        read_ahead(engine, region, unit);
        // Who fills it may need the lock that this thread holds.
        let state = language::without_lock(|| region.states.wait_while_filling(unit, SLICE));
        if state != State::Filling {
            continue;
        }
        if began.elapsed() > region.options.timeout {
            return failed(Cause::Timeout);
        }
        if was_interrupted(interrupts) {
            return failed(Cause::Interrupted);
        }
    }
}

/// Ctrl-C, while another thread runs the source. Only the main thread gets a KeyboardInterrupt.
fn was_interrupted(interrupts: u32) -> bool {
    // SAFETY: getpid has no preconditions.
    let is_main = thread_id() == unsafe { libc::getpid() };
    is_main && interrupt::is_expected() && interrupt::count() != interrupts
}

fn fill(engine: &'static Engine, region: &Region, page: usize, unit: usize) -> Result<Ending, SourceError> {
    read_ahead(engine, region, unit);
    let outcome = fill_unit(region, unit, Some(page), HERE);
    region.settle_from(Table::Application, unit, if outcome == Ok(true) { State::Present } else { State::Absent });
    match outcome {
        Ok(_) => {
            add(&region.counters.demand_units, 1);
            evict::arrived(region, unit, Table::Application);
            Ok(Ending::Resolved)
        }
        Err(Stop::Failed(error)) => {
            add(&region.counters.source_errors, 1);
            Err(error)
        }
        // The kernel gets nowhere at the moment: the instruction asks again.
        Err(_) => Ok(Ending::Coalesced),
    }
}

/// In the SIGBUS handler, with signal delivery: a thread that does not hold the language's lock waits for it here.
pub fn serve_signal(engine: &'static Engine, region: &Pin<Region>, page: usize, interrupted: &Interrupted) {
    debug_assert_eq!(region.options.delivery, Delivery::Signal);
    if is_this_latched() || language::may_have_lock(region.options.timeout) {
        return serve(engine, region, page, interrupted);
    }
    region.counters.begin();
    region.counters.end(Ending::Poisoned);
    let error = SourceError::new((page * uffd::page_size()) as u64, Cause::Timeout);
    expose(region, page, Failure::of(region, page, error));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_of_one_thread_until_it_is_needed() {
        let (told, is_new) = claim_entry(900_001).unwrap();
        assert!(is_new);
        assert!(!claim_entry(900_001).unwrap().1);
        told.state.store(SENT, Ordering::Release);
        let others: Vec<_> = (0..200).filter_map(|step| claim_entry(900_001 + step * ENTRIES as i32)).collect();
        assert!(!others.is_empty());
        assert!(std::ptr::eq(entry_of(900_001).unwrap(), told));
        told.state.store(FREE, Ordering::Release);
    }
}
