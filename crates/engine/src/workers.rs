//! The worker pool: slow reads, deferred faults, prefetch, populate, readahead. Two to begin with, more while all of them
//! wait for slow sources.
//!
//! *Threads*: engine threads. *Blocks on*: sources, and the queue.

use crate::called;
use crate::counters::{Ending, add};
use crate::cpus::{self, Elsewhere};
use crate::engine::Engine;
use crate::error::Error;
use crate::evict;
use crate::fill::{Stop, fill_unit, fill_units};
use crate::queue::{Ahead, Bulk, FaultJob, Job, Look, MOST_WORKERS};
use crate::region::Region;
use crate::serve::{demand, dispatch, engine_thread};
use crate::source::{Cause, Latency, Patience, SourceError, Table};
use crate::states::State;
use crate::thread;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Start a worker. Any thread.
///
/// # Errors
/// When no thread can be started.
pub fn start(engine: &'static Engine) -> Result<(), Error> {
    engine.queue.workers.fetch_add(1, Ordering::SeqCst);
    let started = engine.root.spawn("userfault-work", move || work(engine));
    if started.is_err() {
        engine.queue.workers.fetch_sub(1, Ordering::SeqCst);
    }
    started
}

/// Start one more if that can be; those there are do the work otherwise.
pub fn start_another(engine: &'static Engine) {
    let _ = start(engine);
}

fn work(engine: &'static Engine) -> ! {
    loop {
        match engine.queue.next() {
            Job::Fault(job) => fault(engine, job),
            Job::Look(look) => look_again(engine, &look),
            Job::Bulk(bulk) => share(engine, &bulk),
            Job::Ahead(job) => ahead(engine, job),
            Job::Readers(lane) => thread::spread_out(engine, lane),
        }
    }
}

fn fault(engine: &'static Engine, job: FaultJob) {
    let region = job.region;
    if region.is_closing() {
        region.settle(region.unit_of_page(job.page), State::Absent);
        return region.counters.end(crate::counters::Ending::TornDown);
    }
    match demand(&region, job.page, engine_thread(Patience::Wait)) {
        Ok(ending) => region.counters.end(ending),
        Err(stop) => dispatch(engine, &region, job.page, job.thread, stop, job.deferrals + 1),
    }
}

/// A thread that waits in user code asks again, and is told to serve itself; for any other somebody has to.
fn look_again(engine: &'static Engine, look: &Look) {
    let (region, found) = (&look.region, called::look_again(&look.fault));
    let ending = if found.in_user_code { Some(Ending::Coalesced) } else { thread::answer(engine, region, &look.fault) };
    if found.in_user_code || found.has_asked_again {
        let _ = region.handles.engine.wake(region.page_address(region.page_of(look.fault.address)), uffd::page_size());
    }
    if let Some(ending) = ending {
        region.counters.end(ending);
    }
}

/// Take units of a bulk until none is left; demand faults in between.
fn share(engine: &'static Engine, bulk: &Bulk) {
    bulk.join();
    let piece = (bulk.region.source.piece() / bulk.region.unit).max(1);
    while let Some(units) = bulk.take(piece) {
        while let Some(job) = engine.queue.next_fault() {
            fault(engine, job);
        }
        if let Err(error) = fill_all_ahead(&bulk.region, units, bulk.awaited)
            && bulk.awaited
        {
            bulk.fail(error);
        }
    }
    bulk.leave();
}

/// Away from the CPU of whoever scans: the kernel likes to run who is woken where its waker runs.
fn ahead(engine: &'static Engine, job: Ahead) {
    let Some(region) = engine.table.pin(job.base).filter(|region| job.is_of(region)) else { return };
    let (ahead, stream) = (&region.readahead, job.stream);
    let mut elsewhere = Elsewhere::than(ahead.cpu(stream));
    while let Some(units) = ahead.next(stream) {
        have_others_read(engine, &region, stream);
        if elsewhere.cpu != ahead.cpu(stream) {
            drop(elsewhere);
            elsewhere = Elsewhere::than(ahead.cpu(stream));
        }
        while let Some(job) = engine.queue.next_fault() {
            fault(engine, job);
        }
        if region.is_closing() {
            return ahead.part(stream);
        }
        if fill_all_ahead(&region, units, false).is_err() {
            return ahead.failed(stream);
        }
    }
}

/// Several read a slow source at once; and another stream is not to wait until this one has been read.
fn have_others_read(engine: &'static Engine, region: &Region, stream: usize) {
    if region.readahead.wants_another(stream) && !engine.queue.push_ahead(region, stream) {
        region.readahead.part(stream);
    }
    let slow = region.source.latency() == Latency::MayBlock;
    let most = || if slow { MOST_WORKERS } else { cpus::of_process(MOST_WORKERS).len() };
    if engine.queue.lacks_for_ahead() && engine.queue.workers.load(Ordering::SeqCst) < most() {
        start_another(engine);
    }
}

/// Fill units that nobody may be waiting for: those that are absent in one read, as far as they lie together.
fn fill_all_ahead(region: &Region, units: Range<usize>, must: bool) -> Result<(), SourceError> {
    let mut unit = units.start;
    while unit < units.end {
        let free = |unit: &usize| region.states.claim(*unit, State::Absent);
        let run = if units.len() > 1 { unit..unit + (unit..units.end).take_while(free).count() } else { unit..unit };
        if run.len() > 1 && fill_run(region, run.clone()) {
            unit = run.end;
            let pages = pages_of(region, run.start).start..pages_of(region, run.end - 1).end;
            if must && region.shows_pattern_in(pages, region.options.timeout) {
                // A page that failed in between looked as if it was there.
                run.into_iter().try_for_each(|unit| fill_ahead(region, unit, must))?;
            }
            continue;
        }
        run.clone().for_each(|unit| region.settle(unit, State::Absent));
        for unit in unit..run.end.max(unit + 1) {
            fill_ahead(region, unit, must)?;
        }
        unit = run.end.max(unit + 1);
    }
    Ok(())
}

/// Fill units that the caller owns by one read, and give them up. False: that failed, so each has to be tried by itself, and
/// the caller still owns them.
fn fill_run(region: &Region, units: Range<usize>) -> bool {
    if fill_units(region, units.clone(), engine_thread(Patience::Wait)).is_err() {
        return false;
    }
    for unit in units.clone() {
        region.settle(unit, State::Present);
        evict::arrived(region, unit, Table::Engine);
    }
    add(&region.counters.prefetched_units, units.len());
    true
}

/// Fill a unit that nobody may be waiting for. A failure is the caller's to tell: no page is poisoned for it.
fn fill_ahead(region: &Region, unit: usize, must: bool) -> Result<(), SourceError> {
    let start = Instant::now();
    let here = (unit * region.unit) as u64;
    // Nothing else would tell of a pattern that is shown just now: its page would pass for one that is there.
    let left = || region.options.timeout.saturating_sub(start.elapsed());
    loop {
        let state = region.states.get(unit);
        match state {
            State::Present if !must || !has_hole(region, unit, left()) => return Ok(()),
            State::Filling if !must => return Ok(()),
            State::Filling => {
                region.states.wait_while_filling(unit, Duration::from_millis(50));
                if start.elapsed() > region.options.timeout {
                    return Err(SourceError::new(here, Cause::Timeout));
                }
                continue;
            }
            _ => {}
        }
        if !region.states.claim(unit, state) {
            continue;
        }
        let outcome = fill_unit(region, unit, None, engine_thread(Patience::Wait));
        region.settle(unit, if outcome == Ok(true) { State::Present } else { State::Absent });
        if outcome.is_ok() {
            evict::arrived(region, unit, Table::Engine);
        }
        match outcome {
            Ok(_) => {
                add(&region.counters.prefetched_units, 1);
                // A page of it that failed a moment before looked as if it was there.
                if !must || left().is_zero() || !region.shows_pattern_in(pages_of(region, unit), left()) {
                    return Ok(());
                }
            }
            Err(Stop::Failed(error)) => {
                add(&region.counters.source_errors, 1);
                return Err(error);
            }
            Err(Stop::Gone) => return Err(SourceError::new(here, Cause::Os(libc::ESRCH))),
            Err(_) if start.elapsed() > region.options.timeout => return Err(SourceError::new(here, Cause::Timeout)),
            Err(_) => std::thread::sleep(Duration::from_micros(250)),
        }
    }
}

fn pages_of(region: &Region, unit: usize) -> std::ops::Range<usize> {
    let range = region.unit_range(unit);
    range.start / uffd::page_size()..range.end / uffd::page_size()
}

/// The units among these that lack a page, or as far as is known were never filled; in runs. For who fills them elsewhere.
#[must_use]
pub fn runs_without(region: &Region, units: std::ops::Range<usize>, must: bool) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    let lacks = |unit: &usize| {
        if must { has_hole(region, *unit, region.options.timeout) } else { region.states.get(*unit) != State::Present }
    };
    for unit in units.filter(lacks) {
        match runs.last_mut() {
            Some(run) if run.end == unit => run.end += 1,
            _ => runs.push(unit..unit + 1),
        }
    }
    runs
}

/// Does a unit that was filled once lack a page now: dropped, or showing the error pattern? Waits for those who show one just now.
fn has_hole(region: &Region, unit: usize, limit: Duration) -> bool {
    if region.shows_pattern_in(pages_of(region, unit), limit) {
        return true;
    }
    let range = region.unit_range(unit);
    let pages = range.len() / uffd::page_size();
    if region.file.is_some() {
        return !crate::mapping::is_mapped(region.base + range.start, pages);
    }
    let mut answers = [0u8; 512];
    (0..pages).step_by(answers.len()).any(|first| {
        let count = (pages - first).min(answers.len());
        let address = region.base + range.start + first * uffd::page_size();
        // SAFETY: `count` pages of our own mapping, `count` bytes of answers.
        let asked =
            unsafe { libc::mincore(address as *mut libc::c_void, count * uffd::page_size(), answers.as_mut_ptr()) };
        asked != 0 || answers[..count].iter().any(|answer| answer & 1 == 0)
    })
}
