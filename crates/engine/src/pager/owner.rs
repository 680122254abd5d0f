//! The owner's side of a pager: its descriptor, its memory file, and the regions that it serves.
//!
//! *Locks*: `state`, for a few system calls that do not wait. *Threads*: application threads without the language's lock, by way of
//! the root thread where descriptors are used; the watcher. *Blocks on*: [`Pager::attach`], [`Pager::detach`] for the pager.

use super::connect::Start;
use super::policy::{Limit, OnDeath};
use super::remember;
use super::serve;
use super::spawn::How;
use super::state::{Answer, Entry, State, Ticket};
use super::wire::{Attach, Frame, Kind};
use crate::cause::{Cause, SourceError};
use crate::engine::Engine;
use crate::error::Error;
use crate::futex::Bell;
use crate::interrupt;
use crate::queue::Bulk;
use crate::region::{NOT_LOST, Region};
use crate::shared::{self, Header, MappedPart, Mapping, header_bytes, part_bytes};
use crate::table::Pin;
use crate::threads::process_id;
use std::ops::Range;
use std::os::fd::{IntoRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use uffd::{Features, Handle, OpenOptions, Userfaultfd};

/// A pager as its owner has it.
pub struct Pager {
    /// The engine.
    pub engine: &'static Engine,
    pub(super) start: Start,
    pub(super) limit: Limit,
    pub(super) kept: Kept,
    /// What each process is told first. In memory of ours: what a pager can write, the next one must not believe.
    pub(super) settings: Vec<u8>,
    /// Wakes the watcher: an eventfd of the engine's table.
    pub(super) bell: RawFd,
    /// Rings when a region is served, refused or let go.
    pub(super) news: Bell,
    state: Mutex<State>,
    next_ticket: AtomicU64,
}

/// What a closed pager leaves to the next one: they are few, and handlers may still look at the header.
#[derive(Clone, Copy)]
pub struct Kept {
    /// Which of this process's pagers.
    pub place: u16,
    /// Mapped for good.
    pub header: &'static Header,
    /// The file, in the engine's table.
    pub file: RawFd,
    /// The userfaultfd, in the engine's table.
    pub handle: Handle,
    /// Its first free byte.
    end: u64,
    /// Whose it is: a forked child finds its parent's here.
    process: i32,
}

static SPARE: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

/// How long a region may wait for a pager that does not say how opening its source went, beyond the time that this may take.
const ATTACH_LIMIT: Duration = Duration::from_secs(60);
/// How long closing a region waits for its pager's word; after that somebody else waits.
pub const DETACH_LIMIT: Duration = Duration::from_secs(2);
/// The same for a region whose source is not open yet.
const NEW_LIMIT: Duration = Duration::from_millis(200);
/// An [`Instant`] can be so much later: a hundred years.
const MOST_NS: u64 = 100 * 366 * 86400 * 1_000_000_000;

impl Pager {
    /// Put one together; nothing is started yet.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Os`]; [`Error::Invalid`]: there are too many.
    pub(super) fn new(engine: &'static Engine, start: Start, settings: Vec<u8>, limit: Limit) -> Result<Self, Error> {
        let user_mode_only = !engine.abilities.kernel_faults;
        let (kept, bell) = engine.root.run(move || {
            let spare = take_spare();
            // SAFETY: makes a descriptor of the engine's table.
            let bell = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
            spare.map_or_else(|| keep(user_mode_only), Ok).map(|kept| (kept, bell))
        })?;
        let state = Mutex::new(State { end: kept.end, ..State::default() });
        Ok(Self {
            engine,
            start,
            limit,
            kept,
            settings,
            bell,
            news: Bell::new(),
            state,
            next_ticket: AtomicU64::new(1),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which of this process's pagers.
    #[must_use]
    pub fn place(&self) -> u16 {
        self.kept.place
    }

    /// Its userfaultfd, for the engine's threads.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.kept.handle
    }

    /// Process number (0: none runs), regions, restarts, and the wait status if it is gone for good.
    #[must_use]
    pub fn facts(&self) -> (i32, usize, u64, Option<i32>) {
        let state = self.state();
        let pid = state.running.as_ref().map_or(0, |running| running.child.pid);
        (pid, state.regions.len(), state.restarts, state.lost)
    }

    /// Room in the file; whole pages.
    fn room(&self, bytes: usize) -> Result<u64, Error> {
        let mut state = self.state();
        let (at, bytes) = (state.end, bytes.next_multiple_of(uffd::page_size()) as u64);
        state.end = at + bytes;
        drop(state);
        let file = self.kept.file;
        self.engine.root.run(move || grow(file, at + bytes)).map(|()| at)
    }

    /// What is shared of a region with so many units and pages.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub fn part(&self, units: usize, pages: usize) -> Result<(MappedPart, u64), Error> {
        let at = self.room(part_bytes(units, pages))?;
        let file = self.kept.file;
        Ok((self.engine.root.run(move || MappedPart::new(file, at, units, pages))?, at))
    }

    /// Have the region served, and wait until it is. `source`: what each pager makes a source of.
    ///
    /// # Errors
    /// [`Error::Page`]: its source cannot be had there, and why. [`Error::Closed`]: the pager is gone.
    pub fn attach(
        self: &Arc<Self>,
        region: &Pin<Region>,
        attach: Attach,
        source: Vec<u8>,
        on_death: OnDeath,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        let this = self.clone();
        let accepted = self.engine.root.run(move || {
            let mut state = this.state();
            if state.lost.is_some() || state.closing {
                return false;
            }
            state.regions.push(Entry { attach, source, on_death, answer: Answer::Pending, detaching: false });
            state.post(attach.frame());
            true
        });
        if !accepted {
            return Err(self.gone());
        }
        self.ring();
        let until = Instant::now() + ATTACH_LIMIT + Duration::from_nanos(serve::limit_ns(&attach).min(MOST_NS));
        loop {
            let rung = self.news.rung();
            let answer = self.state().entry(attach.region).map(|entry| entry.answer);
            let lost = region.away.as_ref().is_some_and(|away| away.lost.load(Ordering::Acquire) != NOT_LOST);
            match answer {
                Some(Answer::Ready) => return Ok(()),
                Some(Answer::Refused(cause)) => {
                    let error = SourceError::new(0, cause);
                    return Err(Error::Page { source_name: region.source_name.clone(), error });
                }
                Some(Answer::Pending) if !lost && Instant::now() < until => {}
                _ => return Err(self.gone()),
            }
            self.news.wait(rung, Some(Duration::from_millis(100)));
            if interrupted() {
                return Err(Error::Closed("interrupted".into()));
            }
        }
    }

    fn gone(&self) -> Error {
        match self.state().lost {
            Some(how) => Error::Closed(format!("this pager is gone ({}); another one can be made", How(how))),
            None => Error::Closed("this pager was closed, or did not answer; another one can be made".into()),
        }
    }

    /// No page shall be put into the region any more; true: none will be.
    pub fn detach(self: &Arc<Self>, region: &Region) -> bool {
        let (this, id) = (self.clone(), region.id);
        let is_new = self.engine.root.run(move || {
            let mut state = this.state();
            let Some(entry) = state.entry(id) else { return false };
            entry.detaching = true;
            let is_new = entry.answer == Answer::Pending;
            state.post(Frame::new(Kind::Detach, id, &[]));
            is_new
        });
        self.ring();
        // Who gave up opening it is not kept by a pager that has not even begun to hear.
        self.wait_detached(region, if is_new { NEW_LIMIT } else { DETACH_LIMIT })
    }

    /// Nobody puts a page into it any more.
    pub(super) fn detached(&self, region: u64) {
        let mut state = self.state();
        let Some(at) = state.regions.iter().position(|entry| entry.attach.region == region) else { return };
        state.regions.swap_remove(at);
        let of_it = |ticket: &Ticket| ticket.frame.region == region;
        let (over, kept): (Vec<_>, _) = std::mem::take(&mut state.tickets).into_iter().partition(of_it);
        state.tickets = kept;
        drop(state);
        over.iter().for_each(|ticket| ticket.bulk.leave());
    }

    /// Wait for what [`Pager::detach`] asked for.
    pub fn wait_detached(&self, region: &Region, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            let rung = self.news.rung();
            if self.state().entry(region.id).is_none() {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.news.wait(rung, Some(left));
        }
    }

    /// Have `runs` of units filled; the bulk is over when they are.
    pub fn fill(self: &Arc<Self>, bulk: &Arc<Bulk>, runs: Vec<Range<usize>>) {
        let (this, bulk, region) = (self.clone(), bulk.clone(), bulk.region.id);
        bulk.join(); // over when all parts are, not before
        bulk.give_out();
        self.engine.root.run(move || {
            let mut state = this.state();
            if let Some(how) = state.lost.filter(|_| !runs.is_empty()) {
                bulk.fail(SourceError::new((bulk.units.start * bulk.region.unit) as u64, Cause::PagerLost(how)));
                return bulk.leave();
            }
            for run in runs {
                let number = this.next_ticket.fetch_add(1, Ordering::Relaxed);
                let words = [number, run.start as u64, run.len() as u64, u64::from(bulk.awaited)];
                let frame = Frame::new(Kind::Fill, region, &words);
                bulk.join();
                state.tickets.push(Ticket { number, frame, bulk: bulk.clone() });
                state.post(frame);
            }
            bulk.leave();
        });
        self.ring();
    }

    /// End the process, if it serves no region; false: it does.
    pub fn close(&self) -> bool {
        let mut state = self.state();
        if !state.regions.is_empty() {
            return false;
        }
        let was = std::mem::replace(&mut state.closing, true);
        drop(state);
        if !was {
            self.ring();
        }
        let until = Instant::now() + DETACH_LIMIT * 2;
        while !self.state().closed && Instant::now() < until {
            let rung = self.news.rung();
            if !self.state().closed {
                self.news.wait(rung, Some(Duration::from_millis(100)));
            }
        }
        true
    }

    /// Nobody wants it any more: it ends with its last region.
    pub fn let_go(&self) {
        self.state().closing = true;
        self.ring();
    }

    /// Have the watcher look.
    pub(super) fn ring(&self) {
        let bell = self.bell;
        self.engine.root.run(move || ring(bell));
    }

    /// The watcher ends: what can be used again is put by.
    pub(super) fn put_by(&self) {
        let kept = Kept { end: self.state().end, ..self.kept };
        // SAFETY: the flag of a userfaultfd that nobody reads now; a descriptor of ours, closed once.
        unsafe {
            libc::fcntl(kept.handle.as_raw_fd(), libc::F_SETFL, 0);
            libc::close(self.bell);
        }
        SPARE.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
        let mut state = self.state();
        (state.closed, state.lost) = (true, state.lost.or(Some(0)));
        drop(state);
        self.news.ring_all();
    }
}

/// One of this process. In a forked child another thread of its parent may have held the lock for good.
fn take_spare() -> Option<Kept> {
    let mut spare = SPARE.try_lock().ok()?;
    spare.retain(|kept| kept.process == process_id());
    spare.pop()
}

pub(super) fn ring(bell: RawFd) {
    let one = 1u64;
    // SAFETY: writes eight bytes of ours.
    unsafe { libc::write(bell, (&raw const one).cast(), size_of::<u64>()) };
}

/// On the root thread.
fn keep(user_mode_only: bool) -> Result<Kept, Error> {
    // SAFETY: the name is a C string; the result is checked.
    let file = unsafe { libc::memfd_create(c"userfault-pager".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if file < 0 {
        return Err(Error::last_os("creating the memory file of a pager"));
    }
    grow(file, header_bytes() as u64)?;
    // A pager that looks at what we have cut off would die by SIGBUS.
    // SAFETY: a seal of our own file.
    unsafe { libc::fcntl(file, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) };
    let header = Mapping::new(file, 0, header_bytes())?.into_header();
    header.version.store(shared::VERSION, Ordering::Release);
    header.owner.store(process_id(), Ordering::Release);
    header.raises.store(u32::from(interrupt::raises()), Ordering::Release);
    let options = OpenOptions { user_mode_only, ..OpenOptions::default() };
    let fd = Userfaultfd::open_with(options, Features::THREAD_ID).map_err(Error::of_open)?;
    let Some(place) = shared::enlist(header) else {
        return Err(Error::Invalid(format!("a process has {} pagers at most", shared::PAGERS)));
    };
    let handle = Handle::from_raw(fd.into_owned().into_raw_fd());
    remember(handle.as_raw_fd());
    Ok(Kept { place, header, file, handle, end: header_bytes() as u64, process: process_id() })
}

/// On the root thread, so one at a time: two threads with a piece each may come in any order, and the file never shrinks.
fn grow(file: RawFd, bytes: u64) -> Result<(), Error> {
    let bytes = libc::off_t::try_from(bytes).map_err(|_| Error::Invalid("the file is too long".into()))?;
    // SAFETY: fills our structure; sets the length of our own file.
    let failed = unsafe {
        let mut about: libc::stat = std::mem::zeroed();
        libc::fstat(file, &raw mut about) != 0 || about.st_size < bytes && libc::ftruncate(file, bytes) != 0
    };
    if failed { Err(Error::last_os("growing the memory file of a pager")) } else { Ok(()) }
}
