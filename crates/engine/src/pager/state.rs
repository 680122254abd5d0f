//! What changes in a pager, as its owner knows it.

use super::forget;
use super::policy::{Deaths, OnDeath};
use super::sealed;
use super::spawn::Child;
use super::wire::{self, Attach, Frame, Kind};
use crate::cause::Cause;
use crate::queue::Bulk;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;
use uffd::Errno;

/// What changes.
#[derive(Default)]
pub(super) struct State {
    pub running: Option<Running>,
    pub regions: Vec<Entry>,
    pub tickets: Vec<Ticket>,
    /// Frames that found no room in the socket.
    pub outbox: VecDeque<Frame>,
    pub deaths: Deaths,
    pub restarts: u64,
    /// It is gone for good: its wait status.
    pub lost: Option<i32>,
    pub closing: bool,
    pub closed: bool,
    /// The first free byte of the file.
    pub end: u64,
}

/// The process.
pub(super) struct Running {
    pub child: Child,
    pub socket: OwnedFd,
    pub since: Instant,
    pub started: bool,
}

/// One region.
pub(super) struct Entry {
    pub attach: Attach,
    /// What a pager makes a source of; each is given a copy that it cannot change.
    pub source: Vec<u8>,
    pub on_death: OnDeath,
    pub answer: Answer,
    pub detaching: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Pending,
    Ready,
    Refused(Cause),
}

/// A part of a bulk that the pager fills.
pub(super) struct Ticket {
    pub number: u64,
    pub frame: Frame,
    pub bulk: Arc<Bulk>,
}

impl State {
    /// The entry of a region.
    pub fn entry(&mut self, region: u64) -> Option<&mut Entry> {
        self.regions.iter_mut().find(|entry| entry.attach.region == region)
    }

    /// Does a call of the owner's wait for an answer?
    pub fn is_waiting(&self) -> bool {
        let waits = |entry: &Entry| entry.detaching || entry.answer == Answer::Pending;
        !self.tickets.is_empty() || self.regions.iter().any(waits)
    }

    /// Send a frame now, or when there is room. Whoever has no process gets it told when there is one again.
    pub fn post(&mut self, frame: Frame) {
        if self.running.is_some() && (!self.outbox.is_empty() || !self.send(&frame)) {
            self.outbox.push_back(frame);
        }
    }

    /// False: there is no room now. A process that is gone needs no frames.
    fn send(&self, frame: &Frame) -> bool {
        let Some(running) = &self.running else { return true };
        // Where it cannot be had the pager gets none, and refuses the region: an answer.
        let told = self.source_for(frame).and_then(|source| sealed::seal(source).ok());
        let told = told.as_ref().map(AsRawFd::as_raw_fd);
        let sent = wire::send(running.socket.as_raw_fd(), frame, told.as_slice());
        // The second: so many descriptors are under way already.
        !matches!(sent, Err(Errno(libc::EAGAIN | libc::ETOOMANYREFS)))
    }

    fn source_for(&self, frame: &Frame) -> Option<&[u8]> {
        let is_wanted = |entry: &&Entry| entry.attach.region == frame.region && entry.attach.lost == 0;
        let attaches = frame.kind() == Some(Kind::Attach);
        self.regions.iter().filter(|_| attaches).find(is_wanted).map(|entry| &*entry.source)
    }

    /// Frames that found no room before.
    pub fn flush(&mut self) {
        while self.outbox.front().is_some_and(|frame| self.send(frame)) {
            self.outbox.pop_front();
        }
    }

    /// The process is gone.
    pub fn ended(&mut self) {
        if let Some(running) = self.running.take() {
            forget(running.socket.as_raw_fd());
        }
        self.outbox.clear();
    }
}
