//! What fork(2) itself does about ranges that follow: before it, and after it in the parent and in the child.
//!
//! If the parent ended, the child's userfaultfd would be closed and its holes would be zeros. So the child keeps a copy, which
//! it fetches from the parent before fork(2) comes back, and a thread that ends the child when the parent is gone. A child
//! that cannot have both gets tombstones instead.
//!
//! *Locks*: `news` over the whole fork, then the window. *Threads*: the thread that forks; in the child, a watcher.
//! *Blocks on*: the child, on what its parent publishes.

use crate::error::Error;
use crate::flagged::fork::{Hooks, set_follow};
use crate::flagged::view;
use crate::futex;
use crate::mman::{Mman, News};
use crate::say::say;
use crate::threads::{own_table, spawn_here};
use std::cell::UnsafeCell;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;
use uffd::{Errno, Features, OpenError, OpenOptions, Userfaultfd};

/// For `flagged::fork`.
const HOOKS: Hooks = Hooks { before, in_parent, in_child };

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
        self.start_reader()?;
        set_follow(HOOKS);
        Ok(())
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

/// The events of this fork are read from now on.
fn before() {
    let Some(mman) = crate::mman::current() else { return };
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
    mman.follow.open();
}

/// Every event was read before fork(2) came back.
fn in_parent() {
    // SAFETY: this thread holds the locks of `fork.rs`, since `before`.
    let Some((mman, mut news)) = (unsafe { (*HELD.0.get()).take() }) else { return };
    let forks = mman.follow.close(&mut news);
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

/// A descriptor of a thread; negative: there is none.
fn pidfd_of(thread: i32) -> RawFd {
    const PIDFD_THREAD: libc::c_int = libc::O_EXCL; // Linux 6.9
    // SAFETY: makes a descriptor.
    unsafe { libc::syscall(libc::SYS_pidfd_open, thread, PIDFD_THREAD) as RawFd }
}
