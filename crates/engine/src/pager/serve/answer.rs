//! One fault, from message to ending.
//!
//! *Threads*: servers, and the clock for those whose time is up.

use super::Server;
use super::bulk;
use super::fill::{Bench, Fill};
use super::flight::{Admitted, Wait};
use super::table::Served;
use crate::cause::{Cause, SourceError};
use crate::counters::{Ending, add};
use crate::fill::Stop;
use crate::futex::now_ns;
use crate::latch::LATCH_LIFE;
use crate::proc;
use crate::source::Source;
use crate::thread::is_pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use uffd::{Fault, Outcome, Wake};

/// A unit to be filled for a fault.
pub struct Job {
    /// Where.
    pub served: Arc<Served>,
    /// Which.
    pub unit: usize,
    /// The page that was touched.
    pub page: usize,
    /// Of the flight.
    pub number: u64,
    /// After this it is of no use.
    deadline_ns: u64,
}

/// How often /proc is asked about a thread that repeats itself.
const LOOK_AGAIN_NS: u64 = 5_000_000;

/// Look at a fault. `Some`: the unit is to be filled; `None`: it has ended.
pub fn admit(server: &Server, fault: &Fault) -> Option<Job> {
    // Of a region that was let go: it is about to be unmapped. Or of one that is not known yet: its owner wakes it then.
    let served = server.table.find(fault.address)?;
    let counters = &served.part.counters;
    counters.begin();
    let (page, now) = (served.page_of(fault.address), now_ns());
    let unit = served.unit_of_page(page);
    if server.header.is_latched(fault.tid, now, LATCH_LIFE.as_nanos() as u64) {
        counters.end(server.refuse_page(&served, page, Cause::Latched, ""));
        return None;
    }
    if let Err(cause) = served.source {
        counters.end(server.refuse_page(&served, page, cause, &served.text));
        return None;
    }
    let deadline_ns = now.saturating_add(served.timeout_ns);
    let interrupts = server.header.interrupts.load(Ordering::SeqCst);
    let wait = Wait { thread: fault.tid, page, deadline_ns, interrupts, looked_ns: now };
    let admitted = server.flights.admit(&served, unit, wait);
    if !matches!(admitted, Admitted::Repeats(_)) {
        bulk::read_ahead(server, &served, unit);
    }
    match admitted {
        Admitted::Ours(number) => return Some(Job { served, unit, page, number, deadline_ns }),
        Admitted::Joined => counters.end(Ending::Coalesced),
        Admitted::Repeats(known) => counters.end(match server.wants_out(&served, unit, &known, now) {
            Some(cause) => {
                server.flights.forget(&served, unit, known.thread);
                server.refuse_page(&served, page, cause, "")
            }
            None => Ending::Coalesced,
        }),
    }
    None
}

/// Fill the unit of a fault, and end it.
pub fn run(server: &Server, job: &Job, bench: &mut Bench) {
    let served = &job.served;
    let Ok(source) = &served.source else { return };
    let began = now_ns();
    let outcome = fill(server, job, &**source, bench);
    served.took(now_ns() - began);
    let landed = server.flights.land(served, job.unit, job.number, outcome == Ok(true));
    let counters = &served.part.counters;
    counters.end(match outcome {
        Ok(_) => {
            add(&counters.demand_units, 1);
            if landed.joined {
                server.wake_unit(served, job.unit);
            }
            Ending::Resolved
        }
        Err(Stop::Failed(error)) => {
            add(&counters.source_errors, 1);
            // Where the time was up the page has been answered, and is another touch's by now.
            let ending =
                if landed.was_abandoned { Ending::Poisoned } else { server.refuse_page_for(served, job.page, error) };
            server.wake_unit(served, job.unit);
            ending
        }
        Err(_) => Ending::TornDown,
    });
}

fn fill(server: &Server, job: &Job, source: &dyn Source, bench: &mut Bench) -> Result<bool, Stop> {
    let mut pause = Duration::from_micros(250);
    loop {
        match fill_once(server, job, source, bench) {
            // An event of the owner's is on its way (law 10); ours have none, those of others may.
            Err(Stop::Deferred | Stop::WouldBlock) if now_ns() < job.deadline_ns => {
                add(&job.served.part.counters.deferred, 1);
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(2));
            }
            Err(Stop::Deferred | Stop::WouldBlock) => {
                let at = (job.page * uffd::page_size()) as u64;
                return Err(Stop::Failed(SourceError::new(at, Cause::Os(libc::EAGAIN))));
            }
            outcome => return outcome,
        }
    }
}

/// The whole unit; or, if that fails and the source can give single pages, the one that was touched: `Ok(false)`.
fn fill_once(server: &Server, job: &Job, source: &dyn Source, bench: &mut Bench) -> Result<bool, Stop> {
    let served = &*job.served;
    let mut fill = Fill { server, served, source, bench };
    let bytes = served.bytes_of(job.unit..job.unit + 1);
    let is_one_page = bytes.len() == uffd::page_size();
    let outcome = fill.range(bytes);
    if !matches!(outcome, Err(Stop::Failed(_))) || is_one_page || !source.page_granular() {
        return outcome.map(|()| true);
    }
    add(&served.part.counters.source_errors, 1);
    let at = job.page * uffd::page_size();
    fill.range(at..at + uffd::page_size()).map(|()| false)
}

impl Server {
    /// Make all who wait for a unit ask again.
    pub(super) fn wake_unit(&self, served: &Served, unit: usize) {
        let bytes = served.bytes_of(unit..unit + 1);
        let _ = served.while_live(|| self.handle.wake(served.base + bytes.start, bytes.len()));
    }

    /// Answer a page by the error of its source.
    fn refuse_page_for(&self, served: &Served, page: usize, error: SourceError) -> Ending {
        let text = self.text_of(error.cause);
        self.poison(served, page, error, &text)
    }

    /// What the language above says of a cause of its own.
    pub(super) fn text_of(&self, cause: Cause) -> String {
        match cause {
            Cause::Raised(_) => {
                let text = self.language.describe(cause);
                if text.is_empty() { "Exception\0\0".into() } else { text }
            }
            _ => String::new(),
        }
    }

    /// Answer a page by an error.
    pub(super) fn refuse_page(&self, served: &Served, page: usize, cause: Cause, text: &str) -> Ending {
        self.poison(served, page, SourceError::new((page * uffd::page_size()) as u64, cause), text)
    }

    fn poison(&self, served: &Served, page: usize, error: SourceError, text: &str) -> Ending {
        // Before, for the handler of who touched it, which has an error already where it is latched.
        if error.cause != Cause::Latched {
            let _: [u32; 3] = self.header.record(served.id, page as u64, error, text);
        }
        let address = served.page_address(page);
        let poisoned = served.while_live(|| {
            let outcome = self.handle.poison(address, uffd::page_size(), Wake::Yes);
            if outcome == Outcome::Done {
                served.part.note_poison(page); // after, for the owner, which looks whether it is so
            } else {
                let _ = self.handle.wake(address, uffd::page_size());
            }
            outcome
        });
        match poisoned {
            None => Ending::TornDown,
            Some(Outcome::Done) => Ending::Poisoned,
            Some(_) => Ending::Coalesced, // it is there after all
        }
    }

    /// As `thread.rs` does: only the main thread gets a KeyboardInterrupt. In user code its handler has run, and the count rose;
    /// a system call repeats itself with the signal pending.
    fn wants_out(&self, served: &Served, unit: usize, known: &Wait, now: u64) -> Option<Cause> {
        if known.thread != self.header.owner.load(Ordering::Acquire) {
            return None;
        }
        if self.header.interrupts.load(Ordering::SeqCst) != known.interrupts {
            return Some(Cause::Interrupted);
        }
        let asked = now.saturating_sub(known.looked_ns) < LOOK_AGAIN_NS;
        if asked || self.owner == 0 || self.header.raises.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.flights.looked_at(served, unit, known.thread, now);
        let status = proc::open(format_args!("/proc/{}/task/{}/status", self.owner, known.thread));
        is_pending(status).then_some(Cause::Latched)
    }
}
