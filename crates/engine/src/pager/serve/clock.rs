//! The clock: faults whose time is up, a leader that stays away, threads that do not come back. Asleep while nobody waits.
//!
//! *Threads*: one. *Blocks on*: time.

use super::alarm::{TICK, give_up};
use super::{Server, bulk, hints, lead, opens};
use crate::cause::Cause;
use crate::counters::add;
use crate::error::Error;
use crate::futex::now_ns;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use uffd::Errno;

/// A leader that is busy for longer has lost the lead.
const AWAY_NS: u64 = 2_000_000;
/// Servers at most. Reads of slow sources that run at once.
const MOST_SERVERS: usize = 128;
/// The shortest time that the language's lock may be out of reach, once a read has not come back in its time.
const LOCK_LIMIT: Duration = Duration::from_secs(2);

/// Start it, and what looks after the owner's end.
///
/// # Errors
/// [`Error::Os`].
pub fn start(server: &Arc<Server>) -> Result<(), Error> {
    let ticking = server.clone();
    spawn("userfault-clock", move || tick(&ticking))?;
    let socket = std::os::fd::AsRawFd::as_raw_fd(&server.socket);
    spawn("userfault-owner", move || leave_with_owner(socket))
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let spawned = std::thread::Builder::new().name(name.into()).stack_size(512 << 10).spawn(work);
    spawned.map(|_| ()).map_err(|error| Error::Os {
        what: format!("starting thread {name}"),
        errno: Errno(error.raw_os_error().unwrap_or(libc::EAGAIN)),
    })
}

/// The owner closed its end, or is gone. The main thread sees it too and closes sources; if it does not get there, this does.
fn leave_with_owner(socket: i32) {
    let mut polled = libc::pollfd { fd: socket, events: libc::POLLRDHUP, revents: 0 };
    loop {
        // SAFETY: one structure of ours.
        unsafe { libc::poll(&raw mut polled, 1, -1) };
        if polled.revents & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0 {
            std::thread::sleep(Duration::from_secs(1));
            // SAFETY: ends the process, without waiting for anybody.
            unsafe { libc::_exit(0) };
        }
    }
}

fn tick(server: &Arc<Server>) {
    loop {
        let rung = server.clock.bell.rung();
        if is_quiet(server) {
            server.clock.asleep.store(true, Ordering::SeqCst);
            server.header.alive_ns.store(0, Ordering::SeqCst);
            // Looked at again: whoever came meanwhile may have seen us awake.
            if is_quiet(server) {
                server.clock.bell.wait(rung, None);
            }
            server.clock.asleep.store(false, Ordering::SeqCst);
        }
        let now = now_ns();
        server.header.alive_ns.store(now, Ordering::SeqCst);
        server.lead.take_away(now, AWAY_NS);
        hire(server);
        answer_overdue(server, now);
        std::thread::sleep(TICK);
    }
}

fn is_quiet(server: &Server) -> bool {
    !server.lead.is_away()
        && !server.lead.is_vacant()
        && server.flights.is_empty()
        && !server.work.is_waiting()
        && !server.bulks.is_busy()
        && !server.hints.is_busy()
        && !server.opens.is_busy()
}

/// Nobody is there to lead, or to work: somebody has to.
fn hire(server: &Arc<Server>) {
    let work = &server.work;
    if !server.lead.is_vacant() && !work.is_waiting() && !server.bulks.is_waiting() && !server.hints.is_waiting() {
        return;
    }
    work.ring();
    let servers = work.servers.load(Ordering::SeqCst);
    if work.idle.load(Ordering::SeqCst) > 0 || servers == 0 {
        return;
    }
    let hired = server.clone();
    if servers < MOST_SERVERS {
        // Where no thread is to be had, those there are go on.
        let _ = spawn("userfault-serve", move || lead::serve(&hired));
    } else if !server.clock.only_reads.swap(true, Ordering::SeqCst) {
        let _ = spawn("userfault-read", move || lead::only_read(&hired));
    }
}

fn answer_overdue(server: &Arc<Server>, now: u64) {
    hints::give_up(server, now);
    let opens_late = server.refuse_late(now);
    let mut overdue = bulk::give_up(server, now);
    overdue.extend(server.flights.overdue(now));
    for group in &overdue {
        add(&group.served.part.counters.source_errors, 1);
        for wait in &group.late {
            server.refuse_page(&group.served, wait.page, Cause::Timeout, "");
        }
        for wait in &group.early {
            server.wake_unit(&group.served, group.served.unit_of_page(wait.page));
        }
    }
    if server.flights.hung.load(Ordering::SeqCst) >= MOST_SERVERS {
        give_up(format_args!("userfault pager: {MOST_SERVERS} reads do not come back: another pager shall try\n"));
    }
    if server.opens.over() >= opens::MOST_OVER {
        give_up(format_args!("userfault pager: {} sources do not open: another pager shall try\n", opens::MOST_OVER));
    }
    if (opens_late || !overdue.is_empty()) && !server.clock.probing.swap(true, Ordering::SeqCst) {
        probe(server);
    }
}

/// A read did not come back in its time: is it the source, or does somebody keep the language's lock? Then nothing is served.
fn probe(server: &Arc<Server>) {
    let done = Arc::new(AtomicBool::new(false));
    let (asked, answered) = (server.clone(), done.clone());
    let asked = spawn("userfault-probe", move || {
        asked.language.run();
        answered.store(true, Ordering::SeqCst);
    });
    let asking = server.clone();
    let waiting = spawn("userfault-probed", move || {
        std::thread::sleep(LOCK_LIMIT);
        if !done.load(Ordering::SeqCst) {
            give_up(format_args!("userfault pager: a source keeps Python's lock: another pager shall try\n"));
        }
        asking.clock.probing.store(false, Ordering::SeqCst);
    });
    drop((asked, waiting)); // where no thread is to be had nothing is found out
}
