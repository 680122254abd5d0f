//! `fork="follow"`: a forked child's faults reach its parent, through a userfaultfd that the kernel makes for the child.
//!
//! fork(2) sleeps until somebody has read its event, with the allocator locked in every thread. So for the time of a fork all
//! userfaultfds that may follow are read by a thread that allocates nothing; what it reads is handed on when the fork is over.
//! The pump stays away from them meanwhile: it needs `news`, which the fork holds.
//!
//! *Locks*: `window`, for one read. *Threads*: the reader is one of its own. *Blocks on*: epoll, for a millisecond at a time.

use crate::error::Error;
use crate::flagged::view;
use crate::futex::Bell;
use crate::mman::descriptor::Phase;
use crate::mman::events::{fork_of, news_of};
use crate::mman::forked::Forked;
use crate::mman::{Mman, News};
use crate::say::{abort_with, say};
use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use uffd::{Errno, Handle, UffdMsg};

/// Messages kept for each kind during one fork: one for each thread that waits.
const ROOM: usize = 4096;
/// Descriptors looked at at once, and messages taken by one read.
const BATCH: usize = 32;

/// What was read during a fork.
#[derive(Default)]
struct Window {
    open: bool,
    /// A child came since the pump was told last.
    untold: bool,
    faults: Vec<(Handle, usize)>,
    news: Vec<News>,
    /// Number of the child's, descriptor it was made from.
    forks: Vec<(u64, Handle, u64)>,
}

/// What there is one of in [`Mman`].
pub struct Follow {
    /// Userfaultfds that may follow, for the reader; in the engine's table.
    epoll: RawFd,
    /// Written for the pump when a child came, so that it looks after it; in the engine's table.
    kick: RawFd,
    window: Mutex<Window>,
    bell: Bell,
    started: Mutex<bool>,
    /// The reader is past its beginning.
    ready: AtomicBool,
    children: Mutex<BTreeMap<u64, Arc<Forked>>>,
}

impl Follow {
    /// Nothing follows yet. Both are numbers of the engine's table.
    #[must_use]
    pub fn new(epoll: RawFd, kick: RawFd) -> Self {
        Self {
            epoll,
            kick,
            window: Mutex::default(),
            bell: Bell::new(),
            started: Mutex::default(),
            ready: AtomicBool::new(false),
            children: Mutex::default(),
        }
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A fork begins: the reader reads.
    pub fn open(&self) {
        let mut window = self.window();
        window.open = true;
        window.faults.reserve(ROOM);
        window.news.reserve(ROOM);
        window.forks.reserve(ROOM);
        drop(window);
        self.bell.ring();
    }

    /// It is over. Gives the children that came of it, each with its number and the descriptor that it was made from.
    pub fn close(&self, news: &mut Vec<News>) -> Vec<(u64, Handle, u64)> {
        let mut window = self.window();
        window.open = false;
        news.append(&mut window.news);
        window.forks.drain(..).collect()
    }

    fn children(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Forked>>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the pump to read.
    #[must_use]
    pub fn kick(&self) -> Handle {
        Handle::from_raw(self.kick)
    }

    /// The userfaultfd of a child with this number.
    #[must_use]
    pub fn child(&self, id: u64) -> Option<Arc<Forked>> {
        self.children().get(&id).cloned()
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Forked>> {
        self.children().values().cloned().collect()
    }

    /// Drop those whose child is gone. On the pump.
    pub fn prune(&self) {
        for gone in self.all().into_iter().filter(|forked| forked.close_if_gone()) {
            self.children().remove(&gone.id);
        }
    }
}

impl Mman {
    /// Have the reader of forks run.
    pub(super) fn start_reader(&'static self) -> Result<(), Error> {
        let mut started = self.follow.started.lock().unwrap_or_else(PoisonError::into_inner);
        if !*started {
            self.engine.root.spawn("userfault-forks", move || read_forks(self))?;
            // A thread that starts allocates, which it could not during a fork.
            while !self.follow.ready.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            *started = true;
        }
        Ok(())
    }

    /// Read this userfaultfd during forks.
    pub(super) fn watch_forks(&self, id: u64, handle: Handle) -> Result<(), Error> {
        self.add_to(self.follow.epoll, id << 32 | u64::from(handle.as_raw_fd().cast_unsigned()), handle)
    }

    /// A child that was forked behind the back of the hooks (a bare clone): it has no copy of its userfaultfd, so its holes
    /// are poisoned at once, and what cannot be when it is touched. On the pump.
    pub(super) fn orphan(&self, parent: u64, handle: Handle) {
        let forked = Arc::new(Forked::new(self.next_id(), parent, handle, None));
        forked.shut();
        if let Some(descriptor) = self.descriptor(parent) {
            let mut ranges = Vec::new();
            view::for_each(|entry| {
                if entry.follow && entry.descriptor.is_some_and(|it| it.engine == descriptor.handles.engine) {
                    ranges.push(entry.range.clone());
                }
            });
            ranges
                .into_iter()
                .filter(|range| range.len() <= MOST_POISONED)
                .for_each(|range| forked.poison_holes(range));
        }
        self.follow.children().insert(forked.id, forked.clone());
        add_here(self.epoll, forked.id, handle);
    }

    /// Nobody here answers a child any more: it gets SIGBUS.
    pub fn close_forked(&self, forked: &Arc<Forked>) {
        forked.shut();
        let forked = forked.clone();
        self.engine.root.run(move || forked.expire(std::time::Instant::now()));
    }

    /// The same for all children of a descriptor.
    pub(super) fn close_children(&self, parent: u64) {
        for forked in self.follow.all().into_iter().filter(|forked| forked.parent == parent) {
            self.close_forked(&forked);
        }
    }

    /// Look after a child from now on.
    pub(super) fn adopt(&self, (id, handle, parent): (u64, Handle, u64)) {
        let descriptor = self.descriptor(parent);
        let timeout = descriptor.as_ref().and_then(|descriptor| descriptor.timeout);
        let forked = Arc::new(Forked::new(id, parent, handle, timeout));
        self.follow.children().insert(id, forked.clone());
        match descriptor.filter(|descriptor| descriptor.standing().0 != Phase::Closed) {
            Some(descriptor) => descriptor.forks.push(forked),
            None => forked.shut(),
        }
    }
}

/// More is poisoned when it is touched: a page table costs eight bytes a page.
const MOST_POISONED: usize = 1 << 32;

static ONE: u64 = 1;

/// The reader. Allocates nothing while a window is open.
fn read_forks(mman: &'static Mman) -> ! {
    let follow = &mman.follow;
    let mut ready = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
    follow.ready.store(true, Ordering::Release);
    loop {
        let rung = follow.bell.rung();
        let mut window = follow.window();
        if !window.open {
            // Faults that were read meanwhile come back to the pump.
            for (handle, page) in window.faults.drain(..) {
                let _ = handle.wake(page, uffd::page_size());
            }
            if std::mem::take(&mut window.untold) {
                // SAFETY: eight bytes to a descriptor of this table.
                unsafe { libc::write(follow.kick, (&raw const ONE).cast(), size_of_val(&ONE)) };
            }
            drop(window);
            follow.bell.wait(rung, None);
            continue;
        }
        drop(window);
        // SAFETY: room for so many events.
        let count = unsafe { libc::epoll_wait(follow.epoll, ready.as_mut_ptr(), BATCH as i32, 1) };
        window = follow.window();
        for event in &ready[..usize::try_from(count).unwrap_or(0)] {
            if window.open {
                let (id, number) = (event.u64 >> 32, (event.u64 & 0xFFFF_FFFF) as u32);
                window.read(mman, id, Handle::from_raw(number.cast_signed()));
            }
        }
    }
}

impl Window {
    fn read(&mut self, mman: &Mman, id: u64, handle: Handle) {
        let mut messages = [UffdMsg::ZERO; BATCH];
        match handle.read_messages(&mut messages) {
            Ok(count) => messages[..count].iter().for_each(|message| self.keep(mman, id, handle, message)),
            Err(Errno(libc::EMFILE | libc::ENFILE)) => {
                say(format_args!(
                    "userfault: a fork waits: too many open files for the descriptor of one more child that follows\n"
                ));
                // SAFETY: sleeps.
                unsafe { libc::usleep(100_000) };
            }
            Err(_) => {}
        }
    }

    fn keep(&mut self, mman: &Mman, id: u64, handle: Handle, message: &UffdMsg) {
        let page = uffd::page_size();
        if let Some(fault) = message.fault() {
            let start = fault.address / page * page;
            if self.faults.len() < self.faults.capacity() {
                self.faults.push((handle, start));
            } else {
                let _ = handle.wake(start, page);
            }
            return;
        }
        if self.news.len() == self.news.capacity() || self.forks.len() == self.forks.capacity() {
            abort_with(format_args!("userfault: more than {ROOM} threads changed mappings during one fork\n"));
        }
        if let Some(child) = fork_of(message) {
            let number = mman.next_id();
            add_here(mman.epoll, number, child);
            self.forks.push((number, child, id));
            self.untold = true;
        } else {
            self.news.extend(news_of(message));
        }
    }
}

/// Have the pump read it too. On an engine thread.
fn add_here(epoll: RawFd, id: u64, handle: Handle) {
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: id };
    // SAFETY: adds one descriptor to another, both of this table.
    if unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, handle.as_raw_fd(), &raw mut event) } != 0 {
        abort_with(format_args!("userfault: a child's faults cannot be read ({})\n", Errno::last().0));
    }
}
