//! A thread that keeps the language's lock touches a hole, and who is to fill it needs that lock. So the thread is sent a
//! signal while it waits in the kernel; in the handler the language above gives up its lock, touches the page itself, which
//! waits, and takes the lock back. The touch that was interrupted then succeeds.
//!
//! If the page is taken away again before that, the touch asks once more, with the lock held: so whoever waits outside of its
//! handler is sent the signal each time, and who waits inside is not. Every handler that runs therefore touches, with the lock
//! or without: one that came back at once would be asked again at once, without end.
//!
//! *Locks*: none. *Threads*: the pump sends; the handler runs in the thread that waits.

use crate::flagged::nest;
use crate::flagged::view::{self, Armed};
use crate::threads::{KeepErrno, thread_id};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

/// Call `touch`; if this thread holds the language's lock, without it: give it up before and take it back after.
pub type GiveWay = fn(touch: fn(usize), address: usize);
static GIVE_WAY: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());
/// The signal in use; 0: none is free.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// Threads that wait in their handler. One that finds no room is asked more often than it need be.
const ROOM: usize = 256;
static WAITING: [AtomicI32; ROOM] = [const { AtomicI32::new(0) }; ROOM];

/// Does this thread wait in its handler, the lock given up?
#[must_use]
pub fn is_giving_way(thread: i32) -> bool {
    thread != 0 && slots(thread).any(|slot| slot.load(Ordering::SeqCst) == thread)
}

/// A few, so that a look costs little.
fn slots(thread: i32) -> impl Iterator<Item = &'static AtomicI32> {
    (0..8).map(move |step| &WAITING[(thread as usize).wrapping_add(step) % ROOM])
}

/// The language above tells how it gives way.
pub fn set_give_way(give_way: GiveWay) {
    GIVE_WAY.store(give_way as *mut (), Ordering::Release);
}

/// Take a real-time signal that nobody uses, from the top.
pub fn install() {
    let _installing = crate::fork::STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    let signal = SIGNAL.load(Ordering::Acquire);
    if signal != 0 && action_of(signal) == handler as *const () as usize {
        return;
    }
    let free = (libc::SIGRTMIN() + 1..=libc::SIGRTMAX()).rev().find(|signal| action_of(*signal) == libc::SIG_DFL);
    let Some(signal) = free else { return };
    // SAFETY: sigaction with our structure, on a signal that had the default action.
    unsafe {
        let mut ours: libc::sigaction = std::mem::zeroed();
        ours.sa_sigaction = handler as *const () as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        libc::sigaction(signal, &raw const ours, std::ptr::null_mut());
    }
    SIGNAL.store(signal, Ordering::Release);
}

fn action_of(signal: i32) -> usize {
    // SAFETY: asks for the current action only.
    unsafe {
        let mut current: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut current);
        current.sa_sigaction
    }
}

/// The layout of siginfo_t for a queued signal with a value (sigqueue(3)); libc has no setters for it.
#[repr(C)]
struct Queued {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    padding: libc::c_int,
    process: libc::pid_t,
    user: libc::uid_t,
    value: usize,
    rest: [u8; 96],
}

const _: () = assert!(size_of::<Queued>() == size_of::<libc::siginfo_t>());

/// Ask `thread`, which waits for the page of `address`, to give way.
pub fn ask(thread: i32, address: usize) {
    let signal = SIGNAL.load(Ordering::Acquire);
    if signal == 0 || GIVE_WAY.load(Ordering::Acquire).is_null() {
        return;
    }
    // SAFETY: the structure is as large as the kernel reads; getpid and getuid have no preconditions.
    unsafe {
        let process = libc::getpid();
        let info = Queued {
            signal,
            errno: 0,
            code: libc::SI_QUEUE,
            padding: 0,
            process,
            user: libc::getuid(),
            value: address,
            rest: [0; 96],
        };
        libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, thread, signal, &raw const info);
    }
}

extern "C-unwind" fn handler(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let _errno = KeepErrno::new();
    let give_way = GIVE_WAY.load(Ordering::Acquire);
    // SAFETY: the kernel passes a valid siginfo, of the layout above for a queued signal.
    let (code, address) = unsafe { ((*info).si_code, (*info.cast::<Queued>()).value) };
    if code != libc::SI_QUEUE || give_way.is_null() || (nest::is_running(thread_id()) && !is_descriptors(address)) {
        return;
    }
    let free = |slot: &&AtomicI32| slot.compare_exchange(0, thread_id(), Ordering::SeqCst, Ordering::Relaxed).is_ok();
    let slot = slots(thread_id()).find(free);
    // SAFETY: `set_give_way` stored a `GiveWay`, and it was seen non-null.
    unsafe { std::mem::transmute::<*mut (), GiveWay>(give_way)(touch, address) };
    if let Some(slot) = slot {
        slot.store(0, Ordering::SeqCst);
    }
}

/// A resolver that runs in this thread was called for a touch. If that is what the signal was for, the wait is over, and a
/// touch would call the resolver for what it is about to do.
fn is_descriptors(address: usize) -> bool {
    view::find(address).is_some_and(|entry| matches!(entry.armed, Armed::Descriptor))
}

/// Wait for the page as the interrupted instruction does: a fault of user code. Not if it is no longer mapped.
fn touch(address: usize) {
    let page = address / uffd::page_size() * uffd::page_size();
    let mut there = 0u8;
    // SAFETY: mincore answers ENOMEM for what is not mapped; the load is of mapped memory, whose fault the thread waited for.
    unsafe {
        if libc::mincore(page as *mut libc::c_void, 1, &raw mut there) == 0 {
            std::ptr::read_volatile(address as *const u8);
        }
    }
}
