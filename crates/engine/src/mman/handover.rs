//! A thread that keeps the language's lock touches a hole, and who is to fill it needs that lock. So the thread is sent a
//! signal while it waits in the kernel; in the handler the language above gives up its lock, touches the page itself, which
//! waits, and takes the lock back. The touch that was interrupted then succeeds.
//!
//! *Locks*: none. *Threads*: the pump sends; the handler runs in the thread that waits.

use crate::flagged::nest;
use crate::threads::{KeepErrno, thread_id};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

/// If this thread holds the language's lock: give it up, call `touch`, take it back.
pub type GiveWay = fn(touch: fn(usize), address: usize);
static GIVE_WAY: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());
/// The signal in use; 0: none is free.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

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
    // A resolver that runs in this thread was called for a touch: the wait that the signal was for is over.
    if code != libc::SI_QUEUE || give_way.is_null() || nest::is_running(thread_id()) {
        return;
    }
    // SAFETY: `set_give_way` stored a `GiveWay`, and it was seen non-null.
    unsafe { std::mem::transmute::<*mut (), GiveWay>(give_way)(touch, address) };
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
