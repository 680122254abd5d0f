//! `fork="follow"`: a forked child's faults reach its parent, through a userfaultfd that the kernel makes for the child.
//!
//! fork(2) sleeps until somebody has read its event, with the allocator locked in every thread. So for the time of a fork all
//! userfaultfds that may follow are read by a thread that allocates nothing; what it reads is handed on when the fork is over.
//! The pump stays away from them meanwhile: it needs `news`, which the fork holds.
//!
//! If the parent ended, the child's userfaultfd would be closed and its holes would be zeros. So the child keeps a copy, which
//! it fetches from the parent before fork(2) comes back, and a thread that ends the child when the parent is gone. A child
//! that cannot have both gets tombstones instead.
//!
//! *Locks*: `news` over the whole fork, then `window`. *Threads*: the hooks run in the thread that forks; the reader and, in
//! the child, the watcher are threads of their own. *Blocks on*: the child's hook, on its parent's.

use crate::error::Error;
use crate::flagged::fork::{Hooks, set_follow};
use crate::flagged::view;
use crate::futex::{self, Bell};
use crate::mman::forked::Forked;
use crate::mman::pump::news_of;
use crate::mman::{Mman, News};
use crate::threads::{abort_with, own_table, say, spawn_here};
use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::os::fd::{IntoRawFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use uffd::{Errno, Event, Features, Handle, OpenError, OpenOptions, UffdMsg, Userfaultfd};

/// Messages kept for each kind during one fork: one for each thread that waits.
const ROOM: usize = 4096;
/// Descriptors looked at at once, and messages taken by one read.
const BATCH: usize = 32;
/// Forks that nobody accepted; older ones are dropped once their child is gone.
const MOST_UNACCEPTED: usize = 1024;

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
            children: Mutex::default(),
        }
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// May this process follow its children? Everything that does so is ready afterwards.
    ///
    /// # Errors
    /// [`Error::Refused`] without CAP_SYS_PTRACE, [`Error::Unsupported`] where the kernel lacks a part of it.
    pub fn check_follow(&'static self) -> Result<(), Error> {
        let options = OpenOptions { user_mode_only: true, ..OpenOptions::default() };
        Userfaultfd::open_with(options, Features::EVENT_FORK).map_err(|error| match error {
            OpenError::Handshake { .. } => Error::Refused(error),
            error => Error::of_open(error),
        })?;
        if !self.engine.abilities.can_poison {
            return Err(Error::Unsupported("fork=\"follow\" needs UFFDIO_POISON (Linux 6.6)".into()));
        }
        let thread = pidfd_of(self.engine.root.thread_id());
        if thread < 0 {
            return Err(Error::Unsupported(format!(
                "fork=\"follow\" needs descriptors of threads (PIDFD_THREAD, Linux 6.9): {}",
                Errno::last()
            )));
        }
        // SAFETY: made just now, and nobody else knows it.
        unsafe { libc::close(thread) };
        let mut started = self.follow.started.lock().unwrap_or_else(PoisonError::into_inner);
        if !*started {
            self.engine.root.spawn("userfault-forks", move || read_forks(self))?;
            set_follow(Hooks { before, in_parent, in_child });
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

    fn adopt(&self, (id, handle, parent): (u64, Handle, u64)) {
        let descriptor = self.descriptor(parent);
        let timeout = descriptor.as_ref().and_then(|descriptor| descriptor.timeout);
        let forked = Arc::new(Forked::new(id, parent, handle, timeout));
        self.follow.children().insert(id, forked.clone());
        match descriptor.filter(|descriptor| descriptor.is_open()) {
            Some(descriptor) => descriptor.forks.push(forked),
            None => forked.shut(),
        }
    }
}

/// More is poisoned when it is touched: a page table costs eight bytes a page.
const MOST_POISONED: usize = 1 << 32;

/// Children's userfaultfds until they are accepted.
#[derive(Default)]
pub struct Unaccepted {
    queue: Mutex<Vec<Arc<Forked>>>,
    bell: Bell,
}

impl Unaccepted {
    fn queue(&self) -> MutexGuard<'_, Vec<Arc<Forked>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, forked: Arc<Forked>) {
        let mut queue = self.queue();
        if queue.len() >= MOST_UNACCEPTED {
            queue.retain(|forked| !forked.standing().1);
        }
        queue.push(forked);
        drop(queue);
        self.bell.ring_all();
    }

    /// The oldest, if there is one; else waits for one, or for `limit`, or for a signal.
    #[must_use]
    pub fn take(&self, limit: Duration) -> Option<Arc<Forked>> {
        let rung = self.bell.rung();
        let first = |queue: &mut Vec<Arc<Forked>>| (!queue.is_empty()).then(|| queue.remove(0));
        let taken = first(&mut self.queue());
        taken.or_else(|| {
            self.bell.wait(rung, Some(limit));
            first(&mut self.queue())
        })
    }

    /// It is over: nobody comes.
    pub fn shut(&self) {
        self.bell.ring_all();
    }
}

static ONE: u64 = 1;

/// The reader. Allocates nothing while a window is open.
fn read_forks(mman: &'static Mman) -> ! {
    let follow = &mman.follow;
    let mut ready = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
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

/// The child's userfaultfd that a message brings, if it does; from then on it is the caller's.
pub fn fork_of(message: &UffdMsg) -> Option<Handle> {
    if message.fault().is_some() {
        return None;
    }
    // SAFETY: it was read just now; other events own nothing, so that a second decoding of them is fine.
    match unsafe { message.decode() } {
        Event::Fork { fd } => Some(Handle::from_raw(fd.into_raw_fd())),
        _ => None,
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

/// What parent and child of one fork share.
#[repr(C)]
struct Shared {
    /// 0 until the rest is there.
    state: AtomicU32,
    count: AtomicU32,
    parent: AtomicI32,
    /// A thread with the engine's table.
    thread: AtomicI32,
    numbers: [AtomicI32; 1000],
}

const READY: u32 = 1;
const FAILED: u32 = 2;

static SHARED: AtomicPtr<Shared> = AtomicPtr::new(std::ptr::null_mut());

type Forking = (&'static Mman, MutexGuard<'static, Vec<News>>);
struct Held(UnsafeCell<Option<Forking>>);
// SAFETY: touched only by the thread that forks, while it holds the locks of `fork.rs`.
unsafe impl Sync for Held {}
static HELD: Held = Held(UnsafeCell::new(None));

fn before() {
    let Some(mman) = super::current() else { return };
    let mut any = false;
    view::for_each(|entry| any |= entry.follow);
    if !any {
        return;
    }
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    // SAFETY: fresh memory.
    let shared = unsafe {
        libc::mmap(std::ptr::null_mut(), size_of::<Shared>(), libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    if shared != libc::MAP_FAILED {
        let shared = shared.cast::<Shared>();
        // SAFETY: fresh zeros are a valid `Shared`.
        unsafe {
            (*shared).parent.store(libc::getpid(), Ordering::Relaxed);
            (*shared).thread.store(mman.engine.root.thread_id(), Ordering::Relaxed);
        }
        SHARED.store(shared, Ordering::Release);
    }
    let news = mman.news.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: this thread holds the locks of `fork.rs`.
    unsafe { *HELD.0.get() = Some((mman, news)) };
    let mut window = mman.follow.window();
    window.open = true;
    let Window { faults, news, forks, .. } = &mut *window;
    faults.reserve(ROOM);
    news.reserve(ROOM);
    forks.reserve(ROOM);
    drop(window);
    mman.follow.bell.ring();
}

/// Every event was read before fork(2) came back.
fn in_parent() {
    // SAFETY: this thread holds the locks of `fork.rs`, since `before`.
    let Some((mman, mut news)) = (unsafe { (*HELD.0.get()).take() }) else { return };
    let mut window = mman.follow.window();
    window.open = false;
    news.extend(window.news.drain(..));
    let forks: Vec<_> = window.forks.drain(..).collect();
    drop(window);
    let shared = SHARED.swap(std::ptr::null_mut(), Ordering::AcqRel);
    forks.iter().for_each(|fork| mman.adopt(*fork));
    // SAFETY: null, or mapped in `before` and unmapped by nobody else; the child has a mapping of its own.
    unsafe {
        if let Some(there) = shared.as_ref() {
            there.numbers.iter().zip(&forks).for_each(|(slot, fork)| slot.store(fork.1.as_raw_fd(), Ordering::Relaxed));
            there.count.store(forks.len() as u32, Ordering::Relaxed);
            let fits = forks.len() <= there.numbers.len();
            there.state.store(if fits { READY } else { FAILED }, Ordering::Release);
            libc::munmap(shared.cast(), size_of::<Shared>());
        }
    }
}

/// 0 until the watcher knows.
static OUTCOME: AtomicU32 = AtomicU32::new(0);

/// True: the child's faults reach its parent, and the child ends with it. The allocator works here, and there is one thread.
fn in_child() -> bool {
    // SAFETY: as in `in_parent`; what was locked is the parent's and is not used here.
    std::mem::forget(unsafe { (*HELD.0.get()).take() });
    let shared = SHARED.swap(std::ptr::null_mut(), Ordering::AcqRel);
    // SAFETY: null, or mapped in `before`; unmapped below, when the watcher does not need it any more.
    let Some(there) = (unsafe { shared.as_ref() }) else { return false };
    OUTCOME.store(0, Ordering::Release);
    let follows = spawn_here("userfault-parent", move || watch_parent(there)).is_ok() && {
        while OUTCOME.load(Ordering::Acquire) == 0 {
            futex::wait(&OUTCOME, 0, Some(Duration::from_millis(5)));
        }
        OUTCOME.load(Ordering::Acquire) == READY
    };
    // SAFETY: mapped in `before`; nobody looks at it any more.
    unsafe { libc::munmap(shared.cast(), size_of::<Shared>()) };
    follows
}

/// Keep the child's userfaultfds, in a table that nobody closes, and end with the parent: no touch finds zeros then.
fn watch_parent(shared: &Shared) {
    let parent = if own_table() { fetch(shared) } else { None };
    OUTCOME.store(if parent.is_some() { READY } else { FAILED }, Ordering::Release);
    futex::wake_all(&OUTCOME);
    let Some(parent) = parent else { return };
    let mut poll = libc::pollfd { fd: parent, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd of ours; then this process is ended.
    unsafe {
        while libc::poll(&raw mut poll, 1, -1) <= 0 {}
        say(format_args!(
            "userfault: this forked process ends, because the one that gives it its pages is gone (fork=\"follow\")\n"
        ));
        libc::kill(libc::getpid(), libc::SIGKILL);
    }
}

/// Copies of the descriptors that the parent has for us. Answers one of the parent's thread that has them: it ends when the
/// parent does, and when the parent executes another program.
fn fetch(shared: &Shared) -> Option<RawFd> {
    // SAFETY: plain system calls on numbers.
    unsafe {
        let orphaned = || libc::getppid() != shared.parent.load(Ordering::Relaxed);
        while shared.state.load(Ordering::Acquire) == 0 {
            if orphaned() {
                return None;
            }
            libc::usleep(50);
        }
        if shared.state.load(Ordering::Acquire) != READY {
            return None;
        }
        let thread = pidfd_of(shared.thread.load(Ordering::Relaxed));
        if thread < 0 || orphaned() {
            return None;
        }
        let count = shared.count.load(Ordering::Relaxed) as usize;
        for number in &shared.numbers[..count] {
            if libc::syscall(libc::SYS_pidfd_getfd, thread, number.load(Ordering::Relaxed), 0) < 0 {
                return None;
            }
        }
        Some(thread)
    }
}

fn pidfd_of(thread: i32) -> RawFd {
    const PIDFD_THREAD: libc::c_int = libc::O_EXCL; // Linux 6.9
    // SAFETY: makes a descriptor.
    unsafe { libc::syscall(libc::SYS_pidfd_open, thread, PIDFD_THREAD) as RawFd }
}
