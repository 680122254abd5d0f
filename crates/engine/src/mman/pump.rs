//! The thread that reads the userfaultfds of this room: faults become entries of their descriptor, events become news.
//!
//! A message is read while `news` is locked: who sent an event goes on as soon as it was read, and must not be able to
//! change marks before it is noted.
//!
//! An error in answer to a fault waits until nobody changes marks: it is poison, which must not outlive the registration.
//!
//! *Locks*: `news` around a read, a descriptor's state, the gate and `book` only if they are free. *Threads*: one engine thread.
//! *Blocks on*: epoll, until a message or a deadline.

use crate::cause::Cause;
use crate::error::Error;
use crate::failure::{Failure, record};
use crate::flagged::gate;
use crate::flagged::view::{self, Armed};
use crate::interrupt;
use crate::latch::is_latched;
use crate::looks::{Doing, Looks};
use crate::mapping::is_resident;
use crate::mman::descriptor::{Descriptor, Noted, Phase};
use crate::mman::events::{fork_of, news_of};
use crate::mman::forked::Forked;
use crate::mman::late::{self, TimedOut, Where};
use crate::mman::waiting::Waiting;
use crate::mman::{Mman, News, handover};
use crate::source::SourceError;
use crate::thread::{Place, sigint_pending};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use uffd::{Fault, UffdMsg};

/// Messages taken by one read, and descriptors by one look.
const BATCH: usize = 32;

/// Start it.
///
/// # Errors
/// When no thread can be started.
pub fn start(mman: &'static Mman) -> Result<(), Error> {
    mman.engine.root.spawn("userfault-pump", move || {
        let mut pump = Pump {
            mman,
            deadline: None,
            refused: vec![],
            look: Instant::now(),
            place: Place::default(),
            looks: Looks::default(),
            running: vec![],
        };
        loop {
            pump.round();
        }
    })
}

struct Pump {
    mman: &'static Mman,
    /// Nobody is late before this.
    deadline: Option<Instant>,
    /// To be answered by an error.
    refused: Vec<(Arc<Descriptor>, Waiting, Cause)>,
    /// When to look for children that are gone.
    look: Instant,
    /// On the CPU of whoever faults: waking a thread on another costs ten times as much.
    place: Place,
    /// What threads do.
    looks: Looks,
    /// Threads that wait and that were seen to run: on their way to sleep, or spinning in a system call. To be looked at again.
    running: Vec<(Arc<Descriptor>, Waiting)>,
}

/// Not a descriptor: a child came.
pub const KICK: u64 = u64::MAX;

/// A thread whose system call is interrupted by a signal spins, and sends messages, until its page is there.
const SPINS: u32 = 8;

/// How often that is.
const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Pump {
    fn round(&mut self) {
        let mut ready = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
        let limit = self.deadline.map_or(-1, |at| {
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            i32::try_from(left.as_millis()).unwrap_or(i32::MAX)
        });
        // SAFETY: room for so many events.
        let count = unsafe { libc::epoll_wait(self.mman.epoll, ready.as_mut_ptr(), BATCH as i32, limit) };
        for event in &ready[..usize::try_from(count).unwrap_or(0)] {
            self.drain(event.u64);
        }
        if self.deadline.is_some_and(|at| at <= Instant::now()) {
            self.expire();
        }
        self.ask_who_ran();
        self.refuse();
        self.mman.note_news_if_free();
    }

    /// Read what one userfaultfd has; 0: that of flagged memory, which has events only.
    fn drain(&mut self, id: u64) {
        if id == KICK {
            let mut count = 0u64;
            // SAFETY: room for eight bytes.
            unsafe { libc::read(self.mman.follow.kick().as_raw_fd(), (&raw mut count).cast(), size_of_val(&count)) };
            self.deadline = Some(Instant::now());
            return;
        }
        let descriptor = self.mman.descriptor(id);
        if let Some(forked) = self.mman.follow.child(id) {
            return self.drain_forked(&forked);
        }
        let handle = match (&descriptor, id) {
            (Some(descriptor), _) => descriptor.handles.engine,
            (None, 0) => self.mman.flags.engine,
            // Of a fork that is not over yet: it holds the news.
            (None, _) => return drop(self.mman.news.lock()),
        };
        let mut messages = [UffdMsg::ZERO; BATCH];
        let mut news = self.mman.news.lock().unwrap_or_else(PoisonError::into_inner);
        let count = handle.read_messages(&mut messages).unwrap_or(0);
        let mut children = Vec::new();
        for message in &messages[..count] {
            match fork_of(message) {
                Some(child) => children.push(child),
                None => news.extend(news_of(message)),
            }
        }
        drop(news);
        for child in children {
            self.mman.orphan(id, child);
            self.deadline = Some(Instant::now());
        }
        if let Some(descriptor) = descriptor {
            messages[..count].iter().filter_map(UffdMsg::fault).for_each(|fault| self.fault(&descriptor, &fault));
        }
    }

    /// What a child that follows has: it changes its own mappings as it likes.
    fn drain_forked(&mut self, forked: &Forked) {
        let mut messages = [UffdMsg::ZERO; BATCH];
        let count = forked.handle.read_messages(&mut messages).unwrap_or(0);
        let now = Instant::now();
        for message in &messages[..count] {
            if let Some(fault) = message.fault() {
                forked.note(Waiting::new(fault.address, fault.tid, now, 0));
                self.deadline = self.deadline.into_iter().chain(forked.next_deadline()).min();
            } else if let Some(grandchild) = fork_of(message) {
                self.mman.orphan(forked.parent, grandchild);
            } else if let Some(News::Unmapped(range)) = news_of(message) {
                forked.forget(&range);
                let _ = forked.handle.wake(range.start, range.len());
            }
        }
    }

    fn fault(&mut self, descriptor: &Arc<Descriptor>, fault: &Fault) {
        let now = Instant::now();
        let waiting = Waiting::new(fault.address, fault.tid, now, interrupt::count());
        if descriptor.is_stuck() {
            return self.refused.push((descriptor.clone(), waiting, Cause::Unresolved));
        }
        if descriptor.standing().0 == Phase::Closed {
            return; // who closes it wakes everybody once its ranges are another's
        }
        let page = fault.address / uffd::page_size() * uffd::page_size();
        if is_latched(fault.tid) {
            return self.refused.push((descriptor.clone(), waiting, Cause::Latched));
        }
        match descriptor.note(waiting) {
            Noted::New => {
                self.deadline = self.deadline.into_iter().chain(descriptor.next_deadline()).min();
                self.ask_to_give_way(descriptor, &waiting);
                let _ = self.place.follow(fault.tid); // last: it is for the next fault
            }
            Noted::Answered => {
                let _ = descriptor.handles.engine.wake(page, uffd::page_size());
            }
            Noted::Again(known) => {
                if let Some(cause) = wants_out(fault.tid, known.interrupts) {
                    descriptor.forget(&(page..page + uffd::page_size()));
                    self.refused.push((descriptor.clone(), waiting, cause));
                } else {
                    self.ask_to_give_way(descriptor, &known); // it may have had its page, and lost it before it went on
                }
            }
        }
    }

    /// Unless it does so already: who waits with the language's lock is to give it up. A system call must not be interrupted.
    fn ask_to_give_way(&mut self, descriptor: &Arc<Descriptor>, waiting: &Waiting) {
        if handover::is_giving_way(waiting.thread) {
            return;
        }
        let spins = waiting.repeats > SPINS;
        match if spins { self.looks.at_once(waiting.thread) } else { self.looks.at(waiting.thread) } {
            Doing::Waits(place) => handover::ask(waiting.thread, waiting.address, place),
            Doing::Other => {}
            Doing::Runs => {
                self.running.retain(|(_, known)| known.thread != waiting.thread);
                self.running.push((descriptor.clone(), *waiting));
                self.deadline = Some(Instant::now());
            }
        }
    }

    fn ask_who_ran(&mut self) {
        for (descriptor, waiting) in std::mem::take(&mut self.running) {
            if descriptor.awaits(&waiting) {
                self.ask_to_give_way(&descriptor, &waiting);
            }
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let descriptors: Vec<_> = self.mman.descriptors().values().cloned().collect();
        for descriptor in &descriptors {
            for waiting in descriptor.take_late(now, late::ask_for_lock) {
                self.refused.push((descriptor.clone(), waiting, Cause::Timeout));
            }
        }
        if self.look <= now {
            self.mman.follow.prune();
            self.look = now + LOOK_EVERY;
        }
        let children = self.mman.follow.all();
        children.iter().for_each(|forked| forked.expire(now));
        let faults = descriptors.iter().filter_map(|descriptor| descriptor.next_deadline());
        let forked = children.iter().filter_map(|forked| forked.next_deadline());
        self.deadline = faults.chain(forked).chain((!children.is_empty()).then_some(self.look)).min();
    }

    /// Answer by errors; or soon, if somebody changes marks: whoever does may wait for this thread to read an event.
    fn refuse(&mut self) {
        if self.refused.is_empty() {
            return;
        }
        let Some(inside) = gate::try_enter() else {
            self.deadline = Some(Instant::now()); // one round is a millisecond
            return;
        };
        let late = self.refused.iter().filter(|(.., cause)| *cause == Cause::Timeout);
        late.for_each(|(descriptor, waiting, _)| note_late(self.mman, &mut self.looks, descriptor, waiting));
        // Before the answer: who gets it may be the one who tells, and would have gone on.
        self.mman.tell_late();
        for (descriptor, waiting, cause) in self.refused.drain(..) {
            fail(&descriptor, &waiting, cause);
        }
        drop(inside);
    }
}

fn page_of(waiting: &Waiting) -> usize {
    waiting.address / uffd::page_size() * uffd::page_size()
}

/// What stands behind the page, if the descriptor still has its faults.
fn entry_of(descriptor: &Descriptor, waiting: &Waiting) -> Option<view::Entry> {
    view::find(page_of(waiting)).filter(|entry| {
        let owner = entry.descriptor.map(|owner| owner.engine);
        matches!(entry.armed, Armed::Descriptor) && owner == Some(descriptor.handles.engine)
    })
}

/// Remember a fault that is about to end by the timeout, for people. Not if its page came, or it is another's by now.
fn note_late(mman: &Mman, looks: &mut Looks, descriptor: &Descriptor, waiting: &Waiting) {
    if entry_of(descriptor, waiting).is_some() && !is_resident(page_of(waiting)) {
        let now = Instant::now();
        let timeout = descriptor.timeout.unwrap_or_default();
        let late = TimedOut::of(waiting, now, timeout, place_of(descriptor, looks, waiting, now));
        descriptor.keep_late(late);
        mman.note_late(late);
    }
}

/// Answer a fault by an error: SIGBUS, which becomes `UserFault`; EFAULT in a system call. If the range is not the descriptor's
/// any more, the thread is to ask who has it now. Inside the gate.
fn fail(descriptor: &Descriptor, waiting: &Waiting, cause: Cause) {
    let (address, page_bytes) = (page_of(waiting), uffd::page_size());
    if let Some(entry) = entry_of(descriptor, waiting) {
        let region = &entry.resolver.region;
        let page = region.page_of(address);
        if cause != Cause::Latched {
            record(Failure::of(region, page, SourceError::new((page * page_bytes) as u64, cause)));
        }
        region.poison(page);
    }
    let _ = descriptor.handles.engine.wake(address, page_bytes);
}

/// Ctrl-C while a page is awaited (see `thread.rs`).
fn wants_out(thread: i32, interrupts: u32) -> Option<Cause> {
    // SAFETY: getpid has no preconditions.
    if thread != unsafe { libc::getpid() } || !interrupt::is_expected() {
        return None;
    }
    if interrupt::count() != interrupts {
        return Some(Cause::Interrupted);
    }
    sigint_pending(thread).then_some(Cause::Latched)
}

/// What a late thread does. Looked at while it waits: afterwards the call is over and the lock free.
fn place_of(descriptor: &Descriptor, looks: &mut Looks, waiting: &Waiting, now: Instant) -> Where {
    if descriptor.user_mode_only || !matches!(looks.at(waiting.thread), Doing::Other) {
        Where::UserCode
    } else if late::is_lock_kept(waiting, now) {
        Where::SystemCallWithLock
    } else {
        Where::SystemCall
    }
}

impl Mman {
    /// Has anything happened that is not noted yet?
    pub(super) fn has_news(&self) -> bool {
        !self.news.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Apply what happened to mappings, unless somebody else is about to.
    fn note_news_if_free(&self) {
        if self.has_news()
            && let Some(_closed) = gate::try_close()
        {
            self.publish(&self.book());
        }
    }

    /// Apply what happened to mappings. Not inside the gate.
    pub(super) fn note_news(&self) {
        if self.has_news() {
            let _closed = gate::close();
            self.publish(&self.book());
        }
    }
}
