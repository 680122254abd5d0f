//! The interface of the proposal of October 2014, on today's kernel. A module names those above it in this list, none below.
//!
//! ```text
//! ledger      which range has which marks: pure bookkeeping
//! outcome     an errno, and what was wrong in words
//! protocol    what is written to a descriptor
//! events      what a message says
//! poll        a descriptor number with chosen poll bits
//! retries     how long to try again what is refused for a moment
//! waiting     who waits at a userfaultfd
//! late        faults that ended by a timeout, for people
//! forked      the userfaultfd of a forked child
//! descriptor  the state machine of the descriptor, and who waits
//! switch      changing who gets the faults of a range, without a gap
//! resolvers   what stands behind a range
//! probe       what the kernel has registered where
//! change      marks become registrations, one mapping after the other
//! remap       remap_anon_pages
//! why         which rule a failed call broke
//! calls       madvise, mprotect, on_sigbus, policies
//! handover    a thread that keeps the language's lock gives it up at its touch
//! commands    calls on a descriptor: open, register, unregister, wake, close
//! follow      forked children whose faults come here
//! forking     what fork(2) does about them
//! pump        the thread that reads all userfaultfds of this room
//! ```
//!
//! *Locks*, in this order: the gate (`flagged::gate`), `book`, `news`, `descriptors`, a descriptor's state.
//! *Threads*: changes run on the root thread, which needs no lock of the caller's; `remap` on any.

pub mod calls;
pub mod commands;
pub mod change;
pub mod descriptor;
pub mod events;
pub mod follow;
pub mod forked;
pub mod forking;
pub mod handover;
pub mod late;
pub mod ledger;
pub mod outcome;
pub mod poll;
pub mod probe;
pub mod protocol;
pub mod pump;
pub mod remap;
pub mod resolvers;
pub mod retries;
pub mod switch;
pub mod waiting;
pub mod why;

use crate::engine::Engine;
use crate::error::Error;
use crate::flagged::{self, gate, view};
use crate::identity::{Identity, identity};
use crate::mman::descriptor::Descriptor;
pub use crate::mman::events::News;
use crate::mman::ledger::{Ledger, Policy};
use crate::region::Handles;
use crate::threads::Root;
use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use uffd::{Errno, Features, Handle, OpenOptions, Userfaultfd};

/// The marks and the policy.
#[derive(Default)]
pub struct Book {
    /// Who has which range.
    pub ledger: Ledger,
    /// How marks become faults.
    pub policy: Policy,
}

/// Everything there is one of.
pub struct Mman {
    /// The engine below.
    pub engine: &'static Engine,
    /// The userfaultfd of flagged memory (SIGBUS), in both tables.
    pub flags: Handles,
    /// Keeps the application's copy open.
    _application: Userfaultfd,
    /// The pump's, in the engine's table.
    epoll: RawFd,
    book: Mutex<Book>,
    /// Read by the pump and not applied yet.
    news: Mutex<Vec<News>>,
    descriptors: Mutex<BTreeMap<u64, Arc<Descriptor>>>,
    /// Of whose end nobody has been told.
    late: Mutex<Vec<late::TimedOut>>,
    /// With which file its number was.
    bridge: Mutex<Option<(Userfaultfd, Option<Identity>)>>,
    /// Children.
    pub follow: follow::Follow,
    next: AtomicU64,
}

static CURRENT: AtomicPtr<Mman> = AtomicPtr::new(std::ptr::null_mut());

/// Numbers like these are rarely given out, so the application seldom opens a file under one that it closed by mistake.
const HIGH_NUMBER: RawFd = 500;

/// This process's; `None` before the first call, and in a forked child.
#[must_use]
pub fn current() -> Option<&'static Mman> {
    // SAFETY: null or a leaked box.
    unsafe { CURRENT.load(Ordering::Acquire).as_ref() }
}

/// This process's, started if need be.
///
/// # Errors
/// [`Error::Refused`] when this process may not have a userfaultfd.
pub fn get() -> Result<&'static Mman, Error> {
    if let Some(mman) = current() {
        return Ok(mman);
    }
    let engine = crate::open::engine()?;
    let _starting = crate::fork::STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(mman) = current() {
        return Ok(mman);
    }
    let mman: &'static Mman = Box::leak(Box::new(Mman::new(engine)?));
    pump::start(mman)?;
    mman.watch(0, mman.flags.engine)?;
    mman.watch(pump::KICK, mman.follow.kick())?;
    flagged::set_look(look);
    flagged::set_still_there(still_there);
    flagged::fork::set_forget(forget);
    flagged::fork::set_settle(settle);
    crate::signal::ensure_front();
    CURRENT.store(std::ptr::from_ref(mman).cast_mut(), Ordering::Release);
    Ok(mman)
}

/// Is any of these addresses flagged, as it is now?
#[must_use]
pub fn is_flagged(range: &Range<usize>) -> bool {
    let Some(mman) = current() else { return false };
    if view::read(|view| view.within(range).is_empty()) {
        return false;
    }
    // Perhaps the mapping is gone: its end is noted a moment after munmap has returned, so the kernel is asked too.
    mman.note_news();
    let _inside = gate::enter();
    view::read(|view| view.within(range).iter().any(|entry| mman.is_registered(entry.range.start.max(range.start))))
}

/// Before a fork, which keeps everybody from changing anything: note what has happened so far.
fn settle() {
    if let Some(mman) = current().filter(|mman| mman.has_news()) {
        mman.publish(&mman.book());
    }
}

/// In a forked child: all of it is the parent's.
fn forget() {
    CURRENT.store(std::ptr::null_mut(), Ordering::Release);
}

/// Has a mapping grown? Asked by a signal handler, run by the keeper.
fn look() {
    if let Some(mman) = current() {
        let _ = mman.change(|change| calls::Ended::from(change.absorb(0..usize::MAX)));
    }
}

/// Are these pages still those of the region? Asked by engine threads before they drop one.
fn still_there(region: u64, address: usize) -> bool {
    let Some(mman) = current() else { return false };
    mman.note_news();
    let _inside = gate::enter(); // in the middle of a change of owner nobody has the range registered
    let same = view::find(address)
        .is_some_and(|entry| entry.resolver.region.id == region && !matches!(entry.armed, view::Armed::No));
    same && mman.is_registered(address) // by whom, its marks say, and they are up to date
}

/// One userfaultfd for both tables.
fn share(root: &Root, fd: OwnedFd) -> Result<(OwnedFd, Handles), Error> {
    let engine = Handle::from_raw(root.adopt(&fd)?);
    let handles = Handles::of(Handle::from_raw(fd.as_raw_fd()), engine);
    Ok((fd, handles))
}

/// Make a descriptor in the engine's table, where nobody else closes it.
fn inside(engine: &Engine, make: impl FnOnce() -> RawFd + Send + 'static) -> Result<RawFd, Error> {
    let made = engine.root.run(|| {
        let number = make();
        if number < 0 { Err(Errno::last()) } else { Ok(number) }
    });
    made.map_err(|errno| Error::Os { what: "making a descriptor for the pump".into(), errno })
}

fn with_high_number(fd: OwnedFd) -> OwnedFd {
    // SAFETY: plain fcntl; the new descriptor is owned by nobody else.
    unsafe {
        let high = libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, HIGH_NUMBER);
        if high < 0 { fd } else { OwnedFd::from_raw_fd(high) }
    }
}

impl Mman {
    fn new(engine: &'static Engine) -> Result<Self, Error> {
        let options = OpenOptions { nonblocking: true, user_mode_only: true, ..OpenOptions::default() };
        let features = Features::SIGBUS | Features::EVENT_REMAP | Features::EVENT_UNMAP;
        // With that, mappings of any kind can be followed: they are registered for write protection that nobody asks for.
        let opened = Userfaultfd::open_with(options, features | Features::WP_ASYNC);
        let opened = opened.or_else(|_| Userfaultfd::open_with(options, features));
        let fd = opened.map_err(Error::of_open)?;
        // First: where the tables are one, the engine's number is this one too.
        let (fd, flags) = share(engine.root, with_high_number(fd.into_owned()))?;
        flagged::fork::keep_number(fd.as_raw_fd())?;
        // SAFETY: makes a descriptor.
        let new_epoll = || unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        // SAFETY: the same.
        let new_kick = || unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        let (epoll, forks, kick) = (inside(engine, new_epoll)?, inside(engine, new_epoll)?, inside(engine, new_kick)?);
        Ok(Self {
            engine,
            flags,
            _application: Userfaultfd::from_owned(fd),
            epoll,
            book: Mutex::default(),
            news: Mutex::default(),
            descriptors: Mutex::default(),
            late: Mutex::default(),
            bridge: Mutex::default(),
            follow: follow::Follow::new(forks, kick),
            next: AtomicU64::new(1),
        })
    }

    fn descriptors(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Descriptor>>> {
        self.descriptors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The descriptor with this number.
    #[must_use]
    pub fn descriptor(&self, id: u64) -> Option<Arc<Descriptor>> {
        self.descriptors().get(&id).cloned()
    }

    /// Have the pump read a userfaultfd of the engine's table.
    fn watch(&self, id: u64, handle: Handle) -> Result<(), Error> {
        self.add_to(self.epoll, id, handle)
    }

    fn add_to(&self, epoll: RawFd, id: u64, handle: Handle) -> Result<(), Error> {
        let result = self.engine.root.run(move || {
            let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: id };
            // SAFETY: adds one descriptor to another, both of this table.
            let added = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, handle.as_raw_fd(), &raw mut event) };
            if added == 0 { Ok(()) } else { Err(Errno::last()) }
        });
        result.map_err(|errno| Error::Os { what: "watching a userfaultfd".into(), errno })
    }

    /// The marks, after everything that happened to the mappings has been noted.
    fn book(&self) -> MutexGuard<'_, Book> {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let news = std::mem::take(&mut *self.news.lock().unwrap_or_else(PoisonError::into_inner));
        for one in news {
            self.apply(&mut book.ledger, one);
        }
        book
    }

    /// Run `use` with a userfaultfd that nobody reads, one at a time.
    fn with_bridge<T>(&self, work: impl Fn(Handle) -> Result<T, Errno>) -> Result<T, Errno> {
        let mut bridge = self.bridge.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..2 {
            // Closed behind our back: its number is nobody's, or another file's, and not ours to close.
            if bridge.as_ref().is_some_and(|(fd, was)| identity(fd.handle().as_raw_fd()) != *was) {
                std::mem::forget(bridge.take());
            }
            let fd = match &*bridge {
                Some((fd, _)) => fd.handle(),
                None => {
                    let user_mode_only = !self.engine.abilities.kernel_faults;
                    let options = OpenOptions { user_mode_only, ..OpenOptions::default() };
                    let fd = Userfaultfd::open_with(options, Features::NONE).map_err(|error| error.errno())?;
                    let is = identity(fd.handle().as_raw_fd());
                    bridge.insert((fd, is)).0.handle()
                }
            };
            match work(fd) {
                Err(Errno(libc::EBADF | libc::ENOTTY)) => {} // just now
                answer => return answer,
            }
        }
        Err(Errno(libc::EBADF))
    }

    fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Show signal handlers what the marks are now.
    fn publish(&self, book: &Book) {
        view::publish(self.engine, book.ledger.view());
    }
}
