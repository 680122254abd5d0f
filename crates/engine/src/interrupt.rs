//! Ctrl-C while a page is awaited. A hook in front of the language's own SIGINT handler counts; readers compare the
//! count when a thread asks twice for one page, and answer by an error so that the exception can surface.
//!
//! *Locks*: one, to install. *Threads*: the hook runs wherever SIGINT is delivered.

use crate::shared;
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

type Action = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

struct Previous(UnsafeCell<MaybeUninit<libc::sigaction>>);
// SAFETY: written under INSTALLING before the hook is installed, read by the hook after that.
unsafe impl Sync for Previous {}

static PREVIOUS: Previous = Previous(UnsafeCell::new(MaybeUninit::zeroed()));
static INSTALLING: Mutex<()> = Mutex::new(());
static COUNT: AtomicU32 = AtomicU32::new(0);
static RAISES: AtomicBool = AtomicBool::new(false);

/// Keep everybody from installing the hook: for the time of a fork.
pub fn hold_install() -> MutexGuard<'static, ()> {
    INSTALLING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// SIGINTs seen.
#[must_use]
pub fn count() -> u32 {
    COUNT.load(Ordering::SeqCst)
}

/// Tell whether SIGINT raises an exception in the language above; if it does, put the hook in front of its handler.
pub fn set_raises(raises: bool) {
    RAISES.store(raises, Ordering::Release);
    shared::for_each_header(|header| header.raises.store(u32::from(raises), Ordering::Release));
    if raises {
        install();
    }
}

/// Does SIGINT raise an exception, as far as was told?
#[must_use]
pub fn raises() -> bool {
    RAISES.load(Ordering::Acquire)
}

/// May a wait be given up for Ctrl-C? Only while the exception is sure to follow: whoever replaced the handler since may
/// do anything with the signal.
#[must_use]
pub fn is_expected() -> bool {
    RAISES.load(Ordering::Acquire) && current().sa_sigaction == hook as *const () as usize
}

fn current() -> libc::sigaction {
    // SAFETY: asks for the current action only.
    unsafe {
        let mut current: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGINT, std::ptr::null(), &raw mut current);
        current
    }
}

fn install() {
    let _installing = hold_install();
    let current = current();
    let there = current.sa_sigaction;
    if there == hook as *const () as usize || there == libc::SIG_DFL || there == libc::SIG_IGN {
        return;
    }
    // SAFETY: PREVIOUS is written under the lock, and only with actions that stay valid; flags and mask are kept.
    unsafe {
        (*PREVIOUS.0.get()).write(current);
        let mut ours = current;
        ours.sa_sigaction = hook as *const () as usize;
        ours.sa_flags |= libc::SA_SIGINFO;
        libc::sigaction(libc::SIGINT, &raw const ours, std::ptr::null_mut());
    }
}

extern "C" fn hook(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    COUNT.fetch_add(1, Ordering::SeqCst);
    if RAISES.load(Ordering::Acquire) {
        shared::for_each_header(|header| {
            header.interrupts.fetch_add(1, Ordering::SeqCst);
        });
    }
    // SAFETY: PREVIOUS was written before the hook was installed, with a handler of the kind its flags tell.
    unsafe {
        let previous = (*PREVIOUS.0.get()).assume_init_ref();
        if previous.sa_flags & libc::SA_SIGINFO != 0 {
            std::mem::transmute::<usize, Action>(previous.sa_sigaction)(signal, info, context);
        } else {
            std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(previous.sa_sigaction)(signal);
        }
    }
}
