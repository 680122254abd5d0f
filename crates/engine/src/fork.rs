//! What a forked child gets (law 3): its regions are not there (MADV_DONTFORK), and inaccessible tombstones stand at
//! their addresses, so that nothing else is ever mapped where a stale pointer leads. A touch dies by SIGSEGV with one
//! line. Nothing of the parent's engine is used again; the child may start an engine of its own.
//!
//! *Locks*: those that start the engine and install handlers are held over a fork. *Threads*: in the child its only one,
//! inside fork(2): system calls only, no allocation.

use crate::cause::Kind;
use crate::engine::Engine;
use crate::flagged::{self, gate, view};
use crate::identity::close_if_userfaultfd;
use crate::say::say;
use crate::threads::{self, KeepErrno};
use crate::{directed, interrupt, pager, signal};
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

static HOOKED: Once = Once::new();
/// Rises in every forked child: regions of another generation are dead.
static GENERATION: AtomicU32 = AtomicU32::new(0);

struct Previous(UnsafeCell<MaybeUninit<libc::sigaction>>);
// SAFETY: written once, in the forked child while it has one thread, before our handler is installed.
unsafe impl Sync for Previous {}
static PREVIOUS: Previous = Previous(UnsafeCell::new(MaybeUninit::zeroed()));

/// Which process of a line of forks this is.
#[must_use]
pub fn generation() -> u32 {
    GENERATION.load(Ordering::Acquire)
}

/// Have every fork of this process and its children looked after; C forks too, which Python's hooks do not see.
pub fn hook() {
    HOOKED.call_once(|| {
        // SAFETY: plain functions; what runs in the child only makes system calls and gives locks back.
        unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
    });
}

/// Held while the engine starts.
pub static STARTING: Mutex<()> = Mutex::new(());

/// Locks that the child could otherwise find taken for good, by a thread that it does not have.
type Locks = [MutexGuard<'static, ()>; 6];
struct Held(UnsafeCell<Option<Locks>>);
// SAFETY: touched only by the thread that forks, between taking STARTING and giving it back.
unsafe impl Sync for Held {}
static HELD: Held = Held(UnsafeCell::new(None));

unsafe extern "C" fn before() {
    let starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    let marks = gate::hold();
    let handlers = [signal::hold_install(), interrupt::hold_install(), directed::hold_install()];
    let [bus, interrupts, directed] = handlers;
    let locks = [starting, threads::hold_start(), bus, interrupts, directed, marks];
    // SAFETY: STARTING is held.
    unsafe { *HELD.0.get() = Some(locks) };
    flagged::fork::before();
}

unsafe extern "C" fn in_parent() {
    flagged::fork::in_parent();
    // SAFETY: this thread holds STARTING, since `before`; the locks go back after the cell was emptied.
    drop(unsafe { (*HELD.0.get()).take() });
}

unsafe extern "C" fn in_child() {
    // SAFETY: as in `in_parent`; this thread is the copy of the one that took them.
    drop(unsafe { (*HELD.0.get()).take() });
    GENERATION.fetch_add(1, Ordering::AcqRel);
    flagged::fork::in_grandchild(|start, bytes| tombstone(start, bytes, libc::MAP_FIXED_NOREPLACE));
    let Some(engine) = Engine::current() else { return view::forget(false) };
    engine.table.for_each(|region| {
        // Those of flagged memory are where their ranges were at first; the ranges have tombstones of their own.
        if region.options.kind != Kind::UserFault {
            tombstone(region.base, region.mapped, libc::MAP_FIXED_NOREPLACE);
        }
    });
    flagged::fork::in_child(|start, bytes| tombstone(start, bytes, libc::MAP_FIXED), close_if_userfaultfd);
    close_if_userfaultfd(engine.signal.application.handle().as_raw_fd());
    for lane in &engine.lanes {
        lane.application.get().and_then(Option::as_ref).inspect(|copy| close_if_userfaultfd(copy.as_raw_fd()));
    }
    if !engine.root.has_private_table() {
        // The lanes are in the table that was copied.
        engine.lanes.iter().for_each(|lane| close_if_userfaultfd(lane.handle.as_raw_fd()));
    }
    pager::in_child(engine.root.has_private_table());
    Engine::bury();
    crate::reserve::forget();
    watch_tombstones();
}

/// Make a range inaccessible. Regions are DONTFORK, so their place is free, or taken by something that stays (NOREPLACE);
/// flagged memory may have been made inheritable again behind our back, and is replaced.
fn tombstone(start: usize, bytes: usize, fixed: libc::c_int) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | fixed;
    // SAFETY: free address space, or the child's copy of memory that its parent flagged.
    unsafe { libc::mmap(start as *mut libc::c_void, bytes, libc::PROT_NONE, flags, -1, 0) };
}

fn watch_tombstones() {
    // SAFETY: sigaction with our structures; the child has one thread, so nobody reads PREVIOUS meanwhile. A child of a
    // child finds our handler in place already and keeps the first PREVIOUS.
    unsafe {
        let mut current: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGSEGV, std::ptr::null(), &raw mut current);
        if current.sa_sigaction == on_segv as *const () as usize {
            return;
        }
        (*PREVIOUS.0.get()).write(current);
        let mut ours: libc::sigaction = std::mem::zeroed();
        ours.sa_sigaction = on_segv as *const () as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSEGV, &raw const ours, std::ptr::null_mut());
    }
}

extern "C" fn on_segv(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let _errno = KeepErrno::new();
    // SAFETY: the kernel passes a valid siginfo.
    let address = unsafe { (*info).si_addr() as usize };
    if view::was_the_parents(address) {
        return end(format_args!("memory at {address:#x} that is flagged with MADV_USERFAULT"));
    }
    if let Some(region) = Engine::parents_region(address) {
        return end(format_args!("{} at offset {}", region.source_name, address - region.base));
    }
    // Not a tombstone: whoever was there before us takes it when the instruction runs again.
    // SAFETY: PREVIOUS was written before this handler was installed.
    unsafe { libc::sigaction(libc::SIGSEGV, (*PREVIOUS.0.get()).as_ptr(), std::ptr::null_mut()) };
}

fn end(what: std::fmt::Arguments<'_>) {
    say(format_args!(
        "userfault: this forked process touched {what}, which belongs to its parent; use spawn or forkserver, or open it \
         again in the child\n"
    ));
    // SAFETY: the default action ends the process when the instruction runs again.
    unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
}
