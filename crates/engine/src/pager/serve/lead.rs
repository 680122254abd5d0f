//! Who reads messages: one server at a time, the leader, because the kernel wakes every thread that is in read(2) on the
//! descriptor. It fills what it has read there and then, so that a fault costs one wake-up. While it fills nobody reads; so it
//! gives up the lead before a source that is known to be slow, and the clock takes it away when it stays away for long.
//!
//! *Locks*: `jobs`, for a few instructions. *Threads*: servers. *Blocks on*: read(2), a futex, sources.

use super::answer::{Job, admit, run};
use super::fill::Bench;
use super::{Server, alarm, bulk, hints};
use crate::futex::Bell;
use crate::futex::now_ns;
use crate::thread::Place;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use uffd::{Errno, UffdMsg};

/// Messages taken by one read.
const BATCH: usize = 32;
/// A source that takes longer for a unit is left to another server than the leader.
const SLOW_NS: u64 = 200_000;

/// The lead.
pub struct Lead {
    /// Rises when it changes hands.
    epoch: AtomicU64,
    vacant: AtomicBool,
    /// Since when the leader does something else than read; 0: it reads.
    away_since: AtomicU64,
}

impl Default for Lead {
    fn default() -> Self {
        Self { epoch: AtomicU64::new(1), vacant: AtomicBool::new(true), away_since: AtomicU64::new(0) }
    }
}

impl Lead {
    fn take(&self) -> Option<u64> {
        self.vacant.compare_exchange(true, false, Ordering::SeqCst, Ordering::Relaxed).ok()?;
        self.away_since.store(0, Ordering::SeqCst);
        Some(self.epoch.load(Ordering::SeqCst))
    }

    fn is(&self, mine: u64) -> bool {
        self.epoch.load(Ordering::SeqCst) == mine
    }

    /// Whoever has it under this number has it no more.
    fn vacate(&self, mine: u64) {
        if self.epoch.compare_exchange(mine, mine + 1, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
            self.away_since.store(0, Ordering::SeqCst);
            self.vacant.store(true, Ordering::SeqCst);
        }
    }

    /// Take it away from a leader that has been busy for so long.
    pub fn take_away(&self, now_ns: u64, after_ns: u64) {
        let mine = self.epoch.load(Ordering::SeqCst);
        let since = self.away_since.load(Ordering::SeqCst);
        if since != 0 && now_ns.saturating_sub(since) > after_ns {
            self.vacate(mine);
        }
    }

    /// Does nobody have it?
    pub fn is_vacant(&self) -> bool {
        self.vacant.load(Ordering::SeqCst)
    }

    /// Is the leader busy?
    pub fn is_away(&self) -> bool {
        self.away_since.load(Ordering::SeqCst) != 0
    }
}

/// What servers do besides reading.
#[derive(Default)]
pub struct Work {
    jobs: Mutex<VecDeque<Job>>,
    bell: Bell,
    /// Servers that have nothing to do.
    pub idle: AtomicUsize,
    /// Servers.
    pub servers: AtomicUsize,
}

impl Work {
    fn jobs(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, jobs: impl Iterator<Item = Job>) {
        let mut list = self.jobs();
        let before = list.len();
        list.extend(jobs);
        let more = list.len() > before;
        drop(list);
        if more {
            self.bell.ring_all();
        }
    }

    fn pop(&self) -> Option<Job> {
        self.jobs().pop_front()
    }

    /// Is there something that nobody does yet?
    pub fn is_waiting(&self) -> bool {
        !self.jobs().is_empty()
    }

    /// There is something to do, or to lead.
    pub fn ring(&self) {
        self.bell.ring_all();
    }
}

/// A server, for good.
pub fn serve(server: &Arc<Server>) {
    let work = &server.work;
    work.servers.fetch_add(1, Ordering::SeqCst);
    let (mut bench, mut place) = (Bench::default(), Placed::new(server.owner));
    loop {
        let rung = work.bell.rung();
        if let Some(job) = work.pop() {
            run(server, &job, &mut bench);
        } else if let Some(mine) = server.lead.take() {
            lead(server, mine, &mut bench, &mut place);
            place.leave();
        } else if !hints::work(server) && !bulk::work(server, &mut bench) {
            work.idle.fetch_add(1, Ordering::SeqCst);
            work.bell.wait(rung, None);
            work.idle.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Read and fill until the lead is another's.
fn lead(server: &Arc<Server>, mine: u64, bench: &mut Bench, place: &mut Placed) {
    let mut messages = [UffdMsg::ZERO; BATCH];
    while server.lead.is(mine) {
        let Some(count) = read(server, &mut messages) else { continue };
        // Even if the lead is another's by now: what was read is ours to answer.
        server.lead.away_since.store(now_ns(), Ordering::SeqCst);
        alarm::wake(server);
        let mut jobs = messages[..count].iter().filter_map(UffdMsg::fault).filter_map(|fault| {
            place.0.follow(fault.tid);
            admit(server, &fault)
        });
        let first = jobs.next();
        server.work.push(jobs);
        if let Some(job) = first {
            if job.served.takes_ns() > SLOW_NS {
                server.lead.vacate(mine);
                place.leave();
                server.work.ring();
            }
            run(server, &job, bench);
        }
        if server.lead.is(mine) {
            server.lead.away_since.store(0, Ordering::SeqCst);
        }
    }
}

fn read(server: &Server, messages: &mut [UffdMsg]) -> Option<usize> {
    match server.handle.read_messages(messages) {
        Ok(count) => {
            server.header.reads.fetch_add(count as u64, Ordering::SeqCst);
            Some(count)
        }
        Err(Errno(libc::EINTR | libc::EAGAIN)) => None,
        // The owner sees that we are gone.
        Err(errno) => alarm::give_up(format_args!("userfault pager: reading faults failed ({})\n", errno.0)),
    }
}

/// Only read, for a pager whose servers are all busy: their faults have deadlines too.
pub fn only_read(server: &Arc<Server>) {
    let mut messages = [UffdMsg::ZERO; BATCH];
    loop {
        let mine = if server.work.idle.load(Ordering::SeqCst) == 0 { server.lead.take() } else { None };
        let Some(mine) = mine else {
            std::thread::sleep(alarm::TICK);
            continue;
        };
        while server.lead.is(mine) {
            if let Some(count) = read(server, &mut messages) {
                let faults = messages[..count].iter().filter_map(UffdMsg::fault);
                server.work.push(faults.filter_map(|fault| admit(server, &fault)));
                alarm::wake(server);
            }
            if server.work.idle.load(Ordering::SeqCst) > 0 {
                server.lead.vacate(mine);
                server.work.ring();
            }
        }
    }
}

/// Near who touches while it leads; anywhere when it does not, as the programs that a source may start.
struct Placed(Place, libc::cpu_set_t, i32);

impl Placed {
    fn new(owner: i32) -> Self {
        // SAFETY: the kernel fills our set, which is as long as said.
        let anywhere = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set);
            set
        };
        Self(Place::near(owner), anywhere, owner)
    }

    fn leave(&mut self) {
        // SAFETY: a set that the kernel has given us.
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const self.1) };
        self.0 = Place::near(self.2);
    }
}
