//! Delivery to threads: one reader for each lane, blocked in read(2), moving itself to the CPU of the thread that
//! faults (waking a handler on another CPU costs ten times as much: docs/facts.md, Delivery).
//!
//! Fast sources are served here; what has to wait goes to the worker pool, so a reader is always about to read.
//!
//! *Locks*: a region's `waits` and `poisoned`, for faults that wait or fail only. *Threads*: engine threads.
//! *Blocks on*: read(2) on the lane's userfaultfd.

use crate::called::{self, Answers};
use crate::counters::Ending;
use crate::cpus;
use crate::engine::Engine;
use crate::error::Error;
use crate::fill::Stop;
use crate::futex::now_ns;
use crate::interrupt;
use crate::latch::is_latched;
use crate::looks::Looks;
use crate::proc;
use crate::queue::Look;
use crate::region::{Region, waits::Wait};
use crate::say::abort_with;
use crate::serve::{demand, dispatch, engine_thread, help, read_ahead, refuse};
use crate::source::{Cause, Latency, Patience, SourceError};
use crate::spread::Mode;
use crate::states::State;
use crate::table::Pin;
use std::os::fd::OwnedFd;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use uffd::{Errno, Fault, UffdMsg};

/// Messages taken by one read.
const BATCH: usize = 32;

/// Start the reader of a lane, if it does not run yet.
///
/// # Errors
/// When no thread can be started.
pub fn start(engine: &'static Engine, index: usize) -> Result<(), Error> {
    let mut started = engine.lanes[index].started.lock().unwrap_or_else(PoisonError::into_inner);
    if !*started {
        engine.root.spawn("userfault-read", move || read_faults(engine, index, None))?;
        *started = true;
    }
    Ok(())
}

/// Readers on each CPU, on this many CPUs at most.
const MOST_READERS: usize = 8;

/// The reader of a CPU, or without one the reader that follows.
fn read_faults(engine: &'static Engine, index: usize, cpu: Option<usize>) -> ! {
    let lane = &engine.lanes[index];
    let mut messages = [UffdMsg::ZERO; BATCH];
    let mut place = Place::default();
    let mut looks = Looks::default();
    // One that serves a CPU takes one fault at a time: the next may be another CPU's.
    let batch = if cpu.is_some_and(cpus::pin_to) { 1 } else { BATCH };
    loop {
        lane.spread.wait_for(if cpu.is_some() { Mode::PerCpu } else { Mode::Follow });
        match lane.handle.read_messages(&mut messages[..batch]) {
            Ok(count) => {
                let read_ns = now_ns(); // not before: a thread that was served since does not wait as these say
                for fault in messages[..count].iter().filter_map(UffdMsg::fault) {
                    if let Some(cpu) = cpu.map_or_else(|| place.follow(fault.tid), |_| None) {
                        lane.cpu.store(cpu as u32, Ordering::Relaxed);
                    }
                    serve(engine, &fault, read_ns, &mut looks);
                    if let Some(mode) = lane.spread.note(fault.tid) {
                        change_readers(engine, index, mode);
                    }
                }
            }
            Err(Errno(libc::EINTR | libc::EAGAIN)) => {}
            Err(errno) => abort_with(format_args!(
                "userfault: reading faults failed ({}): was the library's descriptor closed, as by os.closerange? \
                 Stopping, because the alternative is a hang or zeros\n",
                errno.0
            )),
        }
    }
}

/// Change who reads. Threads are started by a worker: starting one allocates, and who faults may hold the allocator's lock.
fn change_readers(engine: &'static Engine, index: usize, mode: Mode) {
    let lane = &engine.lanes[index];
    if mode == Mode::Follow || lane.has_many.load(Ordering::Acquire) {
        lane.spread.change(mode);
    } else {
        engine.queue.want_readers(index);
    }
}

/// Start a reader on each CPU and let them read: where there are several CPUs, and threads to be had. Workers.
pub fn spread_out(engine: &'static Engine, index: usize) {
    let lane = &engine.lanes[index];
    let cpus = cpus::of_process(MOST_READERS);
    if cpus.len() < 2 || lane.has_many.load(Ordering::Acquire) {
        return;
    }
    let start = |cpu: usize| engine.root.spawn("userfault-read", move || read_faults(engine, index, Some(cpu))).is_ok();
    if cpus.into_iter().filter(|cpu| start(*cpu)).count() > 0 {
        lane.has_many.store(true, Ordering::Release);
        lane.spread.change(Mode::PerCpu);
    }
}

fn serve(engine: &'static Engine, fault: &Fault, read_ns: u64, looks: &mut Looks) {
    // A fault outside every region: its region was closed, and munmap plus WAKE answered it.
    let Some(region) = engine.table.pin(fault.address).filter(|region| region.contains(fault.address)) else { return };
    let answers =
        if region.source.is_called() { called::tell(&region, fault, read_ns, looks) } else { Answers::Reader };
    if answers == Answers::Toucher {
        return; // which counts it
    }
    region.counters.begin();
    if answers == Answers::Unknown {
        if engine.queue.push_look(Look { region, fault: *fault }) {
            (engine.start_worker)(engine);
        }
        return;
    }
    if let Some(ending) = answer(engine, &region, fault) {
        region.counters.end(ending);
    }
}

/// `None`: a worker ends it. Readers and workers.
pub fn answer(engine: &'static Engine, region: &Pin<Region>, fault: &Fault) -> Option<Ending> {
    let page = region.page_of(fault.address);
    let unit = region.unit_of_page(page);
    if region.is_closing() {
        return Some(Ending::TornDown);
    }
    if is_latched(fault.tid) {
        return Some(refuse(region, page, SourceError::new((page * uffd::page_size()) as u64, Cause::Latched)));
    }
    if called::is_own(region, fault) {
        if !called::waits_for_itself(region, fault) {
            let _ = region.handles.engine.wake(region.page_address(page), uffd::page_size());
            return Some(Ending::Coalesced);
        }
        return Some(refuse(region, page, SourceError::new((page * uffd::page_size()) as u64, Cause::OwnRegion)));
    }
    loop {
        let state = region.states.get(unit);
        match state {
            State::Filling => match wait_for_other(region, page, unit, fault.tid) {
                Some(ending) => {
                    read_ahead(engine, region, unit);
                    if region.source.latency() == Latency::Fast {
                        help(region, unit, engine_thread(Patience::NoWait));
                    }
                    return Some(ending);
                }
                None => continue,
            },
            State::Present if region.has_page(page) => {
                let _ = region.handles.engine.wake(region.page_address(page), uffd::page_size());
                return Some(Ending::Coalesced);
            }
            _ => {}
        }
        if region.states.claim(unit, state) {
            return fill(engine, region, page, fault.tid);
        }
    }
}

fn fill(engine: &'static Engine, region: &Pin<Region>, page: usize, thread: i32) -> Option<Ending> {
    read_ahead(engine, region, region.unit_of_page(page));
    let stop = if region.source.latency() == Latency::Fast {
        match demand(region, page, engine_thread(Patience::NoWait)) {
            Ok(ending) => return Some(ending),
            Err(stop) => stop,
        }
    } else {
        Stop::WouldBlock
    };
    region.waits.note(wait(region, page, thread));
    dispatch(engine, region, page, thread, stop, 0);
    None
}

fn wait(region: &Region, page: usize, thread: i32) -> Wait {
    let now = Instant::now();
    Wait { thread, page, deadline: now + region.options.timeout, interrupts: interrupt::count(), looked: now }
}

/// Somebody fills this unit already. `None`: not any more, look again.
fn wait_for_other(region: &Region, page: usize, unit: usize, thread: i32) -> Option<Ending> {
    let known = region.waits.note(wait(region, page, thread));
    if region.states.get(unit) != State::Filling {
        region.waits.over(page..page + 1);
        return None;
    }
    // The same thread asks for the same page again: a signal interrupted its wait. Was it Ctrl-C?
    if let Some(cause) = known.and_then(|known| wants_out(region, &known)) {
        region.waits.over(page..page + 1);
        return Some(refuse(region, page, SourceError::new((page * uffd::page_size()) as u64, cause)));
    }
    Some(Ending::Coalesced)
}

/// How often /proc is asked about a thread that repeats itself.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Only the main thread gets a KeyboardInterrupt. A fault in user code shows that its handler ran (the count rose); one in
/// a system call repeats itself with the signal still pending. Its EFAULT leaves the poison behind, without a record that
/// would let a later touch pass quietly: that one raises.
fn wants_out(region: &Region, known: &Wait) -> Option<Cause> {
    // SAFETY: getpid has no preconditions.
    if known.thread != unsafe { libc::getpid() } || !interrupt::is_expected() {
        return None;
    }
    if interrupt::count() != known.interrupts {
        return Some(Cause::Interrupted);
    }
    let now = Instant::now();
    if now.duration_since(known.looked) < LOOK_AGAIN {
        return None;
    }
    region.waits.looked_at(known.thread, now);
    sigint_pending(known.thread).then_some(Cause::Latched)
}

/// Has Ctrl-C been sent to this thread or process and not been handled yet?
#[must_use]
pub fn sigint_pending(thread: i32) -> bool {
    is_pending(proc::open(format_args!("/proc/self/task/{thread}/status")))
}

/// The same, read of a status file in /proc.
#[must_use]
pub fn is_pending(status: Option<OwnedFd>) -> bool {
    let Some(file) = status else { return false };
    let mut room = [0; 4096];
    let status = proc::read(&file, &mut room).unwrap_or_default();
    let bit = 1u64 << (libc::SIGINT - 1);
    status.split(|byte| *byte == b'\n').any(|line| {
        let pending = line.strip_prefix(b"SigPnd:").or_else(|| line.strip_prefix(b"ShdPnd:"));
        let mask = pending.and_then(|mask| std::str::from_utf8(mask.trim_ascii()).ok());
        mask.and_then(|mask| u64::from_str_radix(mask, 16).ok()).is_some_and(|mask| mask & bit != 0)
    })
}

/// Where the toucher runs, asked every few faults, and this reader's own place.
#[derive(Default)]
pub struct Place {
    /// Whose threads touch; 0: ours.
    process: i32,
    thread: i32,
    stat: Option<OwnedFd>,
    faults: u32,
    cpu: Option<usize>,
}

/// Faults between two looks at the toucher's CPU.
const LOOK_EVERY: u32 = 16;

impl Place {
    /// Near threads of another process.
    #[must_use]
    pub fn near(process: i32) -> Self {
        Self { process, ..Self::default() }
    }

    /// Move the calling thread to where `thread` runs; answers the CPU if it is a new one.
    pub fn follow(&mut self, thread: i32) -> Option<usize> {
        if thread == 0 {
            return None;
        }
        if thread != self.thread {
            // Between touchers that take turns it stays where it is: moving costs more than waking it from afar.
            (self.thread, self.stat, self.faults) = (thread, None, 0);
            return None;
        }
        self.faults += 1;
        if self.stat.is_none() {
            self.stat = match self.process {
                0 => proc::open(format_args!("/proc/self/task/{thread}/stat")),
                process => proc::open(format_args!("/proc/{process}/task/{thread}/stat")),
            };
        } else if !self.faults.is_multiple_of(LOOK_EVERY) {
            return None;
        }
        let cpu = self.stat.as_ref().and_then(cpu_of)?;
        if self.cpu == Some(cpu) || !cpus::pin_to(cpu) {
            return None;
        }
        self.cpu = Some(cpu);
        self.cpu
    }
}

/// Field 39 of /proc/PID/stat: the CPU a thread ran on last (proc(5)).
fn cpu_of(stat: &OwnedFd) -> Option<usize> {
    let mut room = [0; 512];
    let text = proc::read(stat, &mut room)?;
    let rest = text.get(text.iter().rposition(|byte| *byte == b')')? + 2..)?;
    let field = rest.split(|byte| *byte == b' ').nth(39 - 3)?;
    std::str::from_utf8(field).ok()?.parse().ok()
}
