//! A signal to one thread that waits in the kernel for a page, so that it does something about it itself.
//!
//! It may come late: the page came from elsewhere, and the thread is anywhere by now, inside an allocator say. So the signal
//! carries the instruction and the stack at which the kernel said that the thread waits, and its receiver is told whether the
//! thread is there: at an instruction that touches lazy memory, with the stack that it had there. An allocator or a lock of an
//! interpreter has no such instruction, unless by the very copy that waited, called again from the same depth.
//!
//! *Locks*: one, to install. *Threads*: engine threads send; a receiver runs in the thread that was sent to, with this signal
//! blocked and no other.

use crate::threads::{KeepErrno, Uncancelled};
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What the thread was doing when the signal came.
pub struct Interrupted(*mut libc::ucontext_t);

impl Interrupted {
    /// Of a signal handler's third argument.
    ///
    /// # Safety
    /// `context` is what the kernel passed to the SA_SIGINFO handler that is running.
    #[must_use]
    pub unsafe fn of(context: *mut libc::c_void) -> Self {
        Self(context.cast())
    }

    /// The instruction and the stack that it was at.
    fn place(&self) -> Place {
        // SAFETY: a valid ucontext, as `of` was promised.
        let machine = unsafe { &(*self.0).uc_mcontext };
        #[cfg(target_arch = "x86_64")]
        return Place {
            instruction: machine.gregs[libc::REG_RIP as usize] as usize,
            stack: machine.gregs[libc::REG_RSP as usize] as usize,
        };
        #[cfg(target_arch = "aarch64")]
        return Place { instruction: machine.pc as usize, stack: machine.sp as usize };
    }

    /// Run `work` with the signals blocked that the interrupted code had blocked: it may take long, and may itself touch
    /// memory that faults.
    pub fn with_its_mask<T>(&self, work: impl FnOnce() -> T) -> T {
        // SAFETY: a valid ucontext, as `of` was promised; both sets are valid for the calls.
        unsafe {
            let mut inside: libc::sigset_t = std::mem::zeroed();
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const (*self.0).uc_sigmask, &raw mut inside);
            let answer = work();
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const inside, std::ptr::null_mut());
            answer
        }
    }
}

/// Where a thread is in user code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Place {
    /// Address of the instruction.
    pub instruction: usize,
    /// Its stack pointer.
    pub stack: usize,
}

/// Takes a signal that is about a page at an address; false: it is for somebody else. `is_there`: the thread is where it
/// waited when the signal was sent. If it is not there it is not to be disturbed: should it wait again, it is sent another.
pub type Receiver = fn(address: usize, is_there: bool, interrupted: &Interrupted) -> bool;

/// Who receives, in the order in which they are asked.
#[derive(Clone, Copy, Debug)]
pub enum Receives {
    /// The test below.
    #[cfg(test)]
    Test,
    /// Regions whose source is code of the language above.
    Called,
    /// Descriptors of the 2014 interface.
    Mman,
}

static RECEIVERS: [AtomicPtr<()>; KINDS] = [const { AtomicPtr::new(std::ptr::null_mut()) }; KINDS];
const KINDS: usize = Receives::Mman as usize + 1;
/// The signal in use; 0: none is free.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

static INSTALLING: Mutex<()> = Mutex::new(());

/// Keep everybody from installing the handler: for the time of a fork.
pub fn hold_install() -> MutexGuard<'static, ()> {
    INSTALLING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Have `receiver` asked, and take a real-time signal that nobody uses, from the top. False: none is free.
pub fn install(receives: Receives, receiver: Receiver) -> bool {
    RECEIVERS[receives as usize].store(receiver as *mut (), Ordering::Release);
    ensure_handler()
}

fn is_ours(signal: i32) -> bool {
    signal != 0 && action_of(signal) == handler as *const () as usize
}

/// Programs reset all signals that they can find, as daemons do: then ours would end the process.
fn ensure_handler() -> bool {
    if is_ours(signal()) {
        return true;
    }
    let _installing = hold_install();
    if is_ours(signal()) {
        return true;
    }
    let is_free = |signal: &i32| action_of(*signal) == libc::SIG_DFL;
    let ours = Some(signal()).filter(|ours| *ours != 0 && matches!(action_of(*ours), libc::SIG_DFL | libc::SIG_IGN));
    let free = ours.or_else(|| (libc::SIGRTMIN() + 1..=libc::SIGRTMAX()).rev().find(is_free));
    let Some(signal) = free else { return false };
    // SAFETY: sigaction with our structure, on a signal that had the default action.
    unsafe {
        let mut ours: libc::sigaction = std::mem::zeroed();
        ours.sa_sigaction = handler as *const () as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        libc::sigaction(signal, &raw const ours, std::ptr::null_mut());
    }
    SIGNAL.store(signal, Ordering::Release);
    true
}

fn action_of(signal: i32) -> usize {
    // SAFETY: asks for the current action only.
    unsafe {
        let mut current: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut current);
        current.sa_sigaction
    }
}

/// The layout of siginfo_t for a queued signal with a value (sigqueue(3)); libc has no setters for it. The kernel hands on the
/// first 48 bytes as they are (struct kernel_siginfo), of which such a signal needs 32: the place goes into the others.
#[repr(C)]
struct Queued {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    padding: libc::c_int,
    process: libc::pid_t,
    user: libc::uid_t,
    value: usize,
    place: Place,
    rest: [u8; 80],
}

const _: () = assert!(size_of::<Queued>() == size_of::<libc::siginfo_t>());

/// Which signal it is; 0: none could be had.
#[must_use]
pub fn signal() -> i32 {
    SIGNAL.load(Ordering::Acquire)
}

/// Send it to `thread`, which waits at `place` for the page of `address`. False: it could not be sent.
pub fn send(thread: i32, address: usize, place: Place) -> bool {
    if !ensure_handler() {
        return false;
    }
    let signal = signal();
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
            place,
            rest: [0; 80],
        };
        libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, thread, signal, &raw const info) == 0
    }
}

extern "C-unwind" fn handler(_signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let (_errno, _uncancelled) = (KeepErrno::new(), Uncancelled::new());
    // SAFETY: the kernel passes a valid siginfo, of the layout above for a queued signal.
    let (code, Queued { value: address, place, .. }) = unsafe { ((*info).si_code, &*info.cast::<Queued>()) };
    if code != libc::SI_QUEUE {
        return;
    }
    // SAFETY: the kernel passes the context of this handler.
    let interrupted = unsafe { Interrupted::of(context) };
    let is_there = interrupted.place() == *place;
    for receiver in &RECEIVERS {
        let receiver = receiver.load(Ordering::Acquire);
        if receiver.is_null() {
            continue;
        }
        // SAFETY: `install` stored a `Receiver`, and it was seen non-null.
        let receiver = unsafe { std::mem::transmute::<*mut (), Receiver>(receiver) };
        if receiver(*address, is_there, &interrupted) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

    static THERE: AtomicUsize = AtomicUsize::new(0);
    static ELSEWHERE: AtomicUsize = AtomicUsize::new(0);
    static INSTRUCTION: AtomicUsize = AtomicUsize::new(0);
    static STACK: AtomicUsize = AtomicUsize::new(0);

    fn look(address: usize, is_there: bool, interrupted: &Interrupted) -> bool {
        if address != 0x5000 {
            return false;
        }
        INSTRUCTION.store(interrupted.place().instruction, SeqCst);
        STACK.store(interrupted.place().stack, SeqCst);
        if is_there { &THERE } else { &ELSEWHERE }.fetch_add(1, SeqCst);
        true
    }

    fn send_and_wait(thread: i32, place: Place) {
        let seen = || THERE.load(SeqCst) + ELSEWHERE.load(SeqCst);
        let before = seen();
        assert!(send(thread, 0x5000, place));
        while seen() == before {
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_place_travels_with_the_signal() {
        assert!(install(Receives::Test, look));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let stop = &stop;
            scope.spawn(move || {
                tell.send(crate::threads::thread_id()).unwrap();
                while !stop.load(SeqCst) {} // a place of very few instructions
            });
            let thread = told.recv().unwrap();
            for _ in 0..100 {
                send_and_wait(thread, Place { instruction: 1, stack: 1 });
            }
            assert_eq!(THERE.load(SeqCst), 0, "nobody is there");
            for _ in 0..10_000 {
                send_and_wait(thread, Place { instruction: INSTRUCTION.load(SeqCst), stack: STACK.load(SeqCst) });
                if THERE.load(SeqCst) > 0 {
                    break;
                }
            }
            stop.store(true, SeqCst);
        });
        assert_eq!(THERE.load(SeqCst), 1);
    }
}
