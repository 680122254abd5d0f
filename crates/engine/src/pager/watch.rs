//! The watcher: one engine thread for each pager, between «the pager is lost» and «its faults are answered» (law 1).
//!
//! A message that a dead pager had read is never repeated by itself: only WAKE makes who waits fault again. So: another process,
//! each region told to it again, and a WAKE once it serves the region; or an end of waiting by errors.
//!
//! *Locks*: the pager's state. *Threads*: one engine thread for each pager. *Blocks on*: poll(2), at most a second.

use super::connect::{self, Start};
use super::hang::{Suspicion, hangs, look_every};
use super::mourn;
use super::owner::Pager;
use super::policy::{Limit, OnDeath};
use super::sealed;
use super::spawn::{How, NOT_STARTED};
use super::state::{Answer, Running};
use super::wire::{self, Frame, Kind};
use super::{forget, remember};
use crate::cause::{Cause, SourceError};
use crate::engine::Engine;
use crate::error::Error;
use crate::region::{NOT_LOST, Region};
use crate::say::abort_with;
use crate::shared::decode;
use crate::table::Pin;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Start a pager, and who watches it; it is not waited for.
///
/// # Errors
/// [`Error::Refused`], [`Error::Os`]; [`Error::Invalid`]: there are too many.
pub fn start(engine: &'static Engine, start: Start, settings: Vec<u8>, limit: Limit) -> Result<Arc<Pager>, Error> {
    let pager = Arc::new(Pager::new(engine, start, settings, limit)?);
    let watched = pager.clone();
    engine.root.spawn("userfault-watch", move || watch(&watched))?;
    Ok(pager)
}

/// Until the pager is closed.
fn watch(pager: &Arc<Pager>) {
    let mut seen = Suspicion::default();
    pager.kept.header.alive_ns.store(0, Ordering::SeqCst);
    loop {
        if pager.state().lost.is_some() {
            if mourn::mourn(pager) {
                return pager.put_by();
            }
            continue;
        }
        if !ensure_running(pager) {
            continue;
        }
        let (socket, child, writing, closing) = ends(pager);
        if closing {
            close(pager);
            return pager.put_by();
        }
        let period = look_every(pager);
        poll(socket, child, pager.bell, writing, period);
        pager.state().flush();
        while let Some(frame) = next_frame(socket) {
            heard(pager, &frame);
        }
        note_poison(pager);
        if let Some(how) = ended(pager) {
            died(pager, how);
            seen = Suspicion::default();
        } else if hangs(pager, &mut seen) {
            kill(pager);
        }
    }
}

/// False: it could not be started, which counts as a death.
fn ensure_running(pager: &Arc<Pager>) -> bool {
    let state = pager.state();
    if state.running.is_some() || state.closing && state.regions.is_empty() {
        return true;
    }
    drop(state);
    let Err(error) = launch(pager) else { return true };
    crate::say::say(format_args!("userfault: no pager can be started: {error}\n"));
    let errno = if let Error::Os { errno, .. } = error { errno.0 } else { libc::EINVAL };
    died(pager, NOT_STARTED + errno);
    false
}

fn launch(pager: &Arc<Pager>) -> Result<(), Error> {
    let hello = Frame::new(Kind::Hello, 0, &[]);
    let settings = sealed::seal(&pager.settings)?;
    let descriptors = [pager.kept.file, pager.kept.handle.as_raw_fd(), settings.as_raw_fd()];
    let (child, socket) = connect::start(&pager.start, &hello, &descriptors)?;
    remember(socket.as_raw_fd());
    let mut state = pager.state();
    state.running = Some(Running { started: !child.ours, child, socket, since: Instant::now() });
    let frames: Vec<Frame> = state.regions.iter().map(|entry| entry.attach.frame()).collect();
    let leaving = state.regions.iter().filter(|entry| entry.detaching).map(|entry| entry.attach.region);
    let leaving: Vec<Frame> = leaving.map(|region| Frame::new(Kind::Detach, region, &[])).collect();
    let tickets: Vec<Frame> = state.tickets.iter().map(|ticket| ticket.frame).collect();
    frames.into_iter().chain(leaving).chain(tickets).for_each(|frame| state.post(frame));
    Ok(())
}

/// Socket, child, are there frames to be sent, is it to be closed.
fn ends(pager: &Pager) -> (RawFd, RawFd, bool, bool) {
    let state = pager.state();
    let closing = state.closing && state.regions.is_empty();
    let Some(running) = &state.running else { return (-1, -1, false, closing) };
    (running.socket.as_raw_fd(), running.child.pidfd.as_raw_fd(), !state.outbox.is_empty(), closing)
}

fn poll(socket: RawFd, child: RawFd, bell: RawFd, writing: bool, limit: Duration) {
    let events = if writing { libc::POLLIN | libc::POLLOUT } else { libc::POLLIN };
    let one = |fd, events| libc::pollfd { fd, events, revents: 0 };
    let mut polled = [one(socket, events), one(child, libc::POLLIN), one(bell, libc::POLLIN)];
    let limit = i32::try_from(limit.as_millis()).unwrap_or(1000);
    let mut word = 0u64;
    // SAFETY: the array is ours and as long as said; eight bytes of room.
    unsafe {
        libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, limit);
        libc::read(bell, (&raw mut word).cast(), size_of::<u64>());
    }
}

fn next_frame(socket: RawFd) -> Option<Frame> {
    if socket < 0 {
        return None;
    }
    // A pager that is gone, or talks another language, has no frames: its end is seen elsewhere.
    wire::receive(socket).ok().flatten().map(|(frame, _)| frame)
}

fn heard(pager: &Pager, frame: &Frame) {
    let code = |first: usize| [frame.words[first] as u32, frame.words[first + 1] as u32, frame.words[first + 2] as u32];
    let cause = |first: usize| decode(pager.kept.place, code(first));
    match frame.kind() {
        Some(Kind::Started) => {
            if let Some(running) = &mut pager.state().running {
                running.started = true;
            }
        }
        Some(Kind::Ready) => ready(pager, frame.region, (frame.words[0] != 0).then(|| cause(1))),
        Some(Kind::Detached) => pager.detached(frame.region),
        Some(Kind::Done) => {
            let failed = (frame.words[1] != 0).then(|| SourceError::new(frame.words[2], cause(3)));
            done(pager, frame.words[0], failed);
        }
        _ => {}
    }
    pager.news.ring_all();
}

fn ready(pager: &Pager, region: u64, failed: Option<Cause>) {
    let mut state = pager.state();
    let Some(entry) = state.entry(region) else { return };
    let was_served = entry.answer == Answer::Ready;
    match failed {
        Some(cause) if !was_served => entry.answer = Answer::Refused(cause),
        // It was served before: its pages fail, as those of a source that raises.
        _ => entry.answer = Answer::Ready,
    }
    let (base, mapped) = (entry.attach.base as usize, entry.attach.mapped as usize);
    drop(state);
    // Whoever asked a pager that is dead, or this one before it knew the region, asks again.
    let _ = pager.kept.handle.wake(base, mapped);
}

fn done(pager: &Pager, number: u64, failed: Option<SourceError>) {
    let mut state = pager.state();
    let Some(at) = state.tickets.iter().position(|ticket| ticket.number == number) else { return };
    let ticket = state.tickets.swap_remove(at);
    drop(state);
    if let Some(error) = failed.filter(|_| ticket.bulk.awaited) {
        ticket.bulk.fail(error);
    }
    ticket.bulk.leave();
}

/// Pages that this pager has poisoned since the last look expire as others do.
fn note_poison(pager: &Pager) {
    let bases: Vec<(u64, usize)> =
        pager.state().regions.iter().map(|entry| (entry.attach.region, entry.attach.base as usize)).collect();
    for (id, base) in bases {
        let Some(region) = find(pager, id, base) else { continue };
        if let Some(away) = &region.away {
            away.part.take_poison(|page| region.note_poison(page));
        }
    }
}

/// The region, unless it is being closed.
pub(super) fn find(pager: &Pager, id: u64, base: usize) -> Option<Pin<Region>> {
    pager.engine.table.pin(base).filter(|region| region.id == id)
}

fn ended(pager: &Pager) -> Option<i32> {
    pager.state().running.as_ref().and_then(|running| running.child.ended())
}

fn kill(pager: &Pager) {
    if let Some(running) = &pager.state().running {
        running.child.kill();
    }
}

/// The process is gone, and nobody puts pages there any more.
fn died(pager: &Arc<Pager>, how: i32) {
    let mut state = pager.state();
    state.ended();
    pager.kept.header.alive_ns.store(0, Ordering::SeqCst);
    let regions: Vec<(u64, usize, bool)> =
        state.regions.iter().map(|entry| (entry.attach.region, entry.attach.base as usize, entry.detaching)).collect();
    drop(state);
    for (id, base, detaching) in &regions {
        requeue(pager, *id, *base);
        if *detaching {
            pager.detached(*id);
        }
    }
    pager.news.ring_all();
    decide(pager, how);
}

fn requeue(pager: &Pager, id: u64, base: usize) {
    let Some(region) = find(pager, id, base) else { return };
    let Some(away) = &region.away else { return };
    for unit in away.part.died().into_iter().filter(|unit| *unit < region.states.len()) {
        region.states.settle(unit, crate::states::State::Absent);
    }
}

fn decide(pager: &Arc<Pager>, how: i32) {
    let mut state = pager.state();
    if state.closing && state.regions.is_empty() {
        return;
    }
    let again = state.deaths.note(&pager.limit, Instant::now());
    let mut lost = Vec::new();
    let mut wanted = state.regions.is_empty();
    for entry in &mut state.regions {
        match entry.on_death {
            OnDeath::Abort => abort_with(format_args!(
                "userfault: the pager of a region died ({}); on_pager_death=\"abort\"\n",
                How(how)
            )),
            OnDeath::Poison if entry.attach.lost == 0 => {
                entry.attach.lost = (1 << 32) | u64::from(how as u32);
                lost.push((entry.attach.region, entry.attach.base as usize));
            }
            OnDeath::Poison => {}
            OnDeath::Restart => wanted = true,
        }
    }
    if again && wanted {
        state.restarts += 1;
        drop(state);
        return lost.iter().for_each(|(id, base)| lose(pager, *id, *base, how));
    }
    state.lost = Some(how);
    let all: Vec<_> =
        state.regions.iter().map(|entry| (entry.attach.region, entry.attach.base, entry.attach.mapped)).collect();
    let tickets = std::mem::take(&mut state.tickets);
    drop(state);
    for ticket in tickets {
        let at = ticket.bulk.units.start * ticket.bulk.region.unit;
        ticket.bulk.fail(SourceError::new(at as u64, Cause::PagerLost(how)));
        ticket.bulk.leave();
    }
    for (id, base, mapped) in all {
        lose(pager, id, base as usize, how);
        let _ = pager.kept.handle.wake(base as usize, mapped as usize);
    }
    pager.news.ring_all();
}

/// From now on every page of the region that is not there fails.
fn lose(pager: &Pager, id: u64, base: usize, how: i32) {
    if let Some(away) = find(pager, id, base).as_ref().and_then(|region| region.away.as_ref()) {
        let _ = away.lost.compare_exchange(NOT_LOST, how, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// Nobody needs it: it sees its socket closed, and goes.
fn close(pager: &Pager) {
    let mut state = pager.state();
    let Some(running) = state.running.take() else { return };
    drop(state);
    let Running { child, socket, .. } = running;
    forget(socket.as_raw_fd());
    drop(socket);
    let [gone] = wire::wait_readable([child.pidfd.as_raw_fd()], Some(super::owner::DETACH_LIMIT));
    if !gone {
        child.kill();
        wire::wait_readable([child.pidfd.as_raw_fd()], None);
    }
    let _: Option<i32> = child.ended();
}
