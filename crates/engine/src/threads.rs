//! The engine's threads, and a table of file descriptors of their own.
//!
//! `os.closerange(3, 65536)` closes a library's descriptors behind its back, and a number may then mean another file.
//! So the first engine thread gives itself a private descriptor table (`unshare(CLONE_FILES)`), closes what it
//! inherited, and starts all others, which share it. Descriptors get there by being opened there, or by `adopt`.
//! Where `unshare` is forbidden the threads share the application's table, and a closed descriptor ends the process
//! with a line that says so.
//!
//! *Locks*: the queue of the root thread. *Threads*: see above; all block every signal.
//! *Blocks on*: [`Root::run`] waits for the root thread to run a closure.

use crate::error::Error;
use crate::proc;
use crate::say::abort_with;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use uffd::Errno;

type Job = Box<dyn FnOnce() + Send>;

/// The first engine thread: runs closures that need the engine's descriptor table, and starts the other threads.
pub struct Root {
    jobs: Mutex<Sender<Job>>,
    private_table: bool,
    thread: i32,
    process: i32,
}

static ROOT: AtomicPtr<Root> = AtomicPtr::new(std::ptr::null_mut());
static STARTING: Mutex<()> = Mutex::new(());

/// Keep everybody from starting the root thread: for the time of a fork.
pub fn hold_start() -> MutexGuard<'static, ()> {
    STARTING.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Root {
    /// The root of this process; started by the first call.
    ///
    /// # Errors
    /// [`Error::Os`] when no thread can be started.
    pub fn get() -> Result<&'static Root, Error> {
        if let Some(root) = Self::current() {
            return Ok(root);
        }
        let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(root) = Self::current() {
            return Ok(root);
        }
        let root: &'static Root = Box::leak(Box::new(Self::start()?));
        ROOT.store(std::ptr::from_ref(root).cast_mut(), Ordering::Release);
        Ok(root)
    }

    /// The root, if it was started in this process: a forked child has no engine threads until it starts its own.
    #[must_use]
    pub fn current() -> Option<&'static Root> {
        // SAFETY: the pointer is null or came from Box::leak.
        unsafe { ROOT.load(Ordering::Acquire).as_ref() }.filter(|root| root.process == process_id())
    }

    fn start() -> Result<Root, Error> {
        let (jobs, inbox) = channel::<Job>();
        let (ready, started) = channel();
        spawn_here("userfault-root", move || {
            let private_table = own_table();
            // The receiver waits for exactly this message.
            let _ = ready.send((private_table, thread_id()));
            while let Ok(job) = inbox.recv() {
                job();
            }
        })?;
        let (private_table, thread) = started.recv().expect("the root thread sends before anything can fail");
        Ok(Root { jobs: Mutex::new(jobs), private_table, thread, process: process_id() })
    }

    /// Do the engine's threads have a descriptor table of their own?
    #[must_use]
    pub fn has_private_table(&self) -> bool {
        self.private_table
    }

    /// Its number: of a thread that has the engine's descriptor table.
    #[must_use]
    pub fn thread_id(&self) -> i32 {
        self.thread
    }

    /// Run `work` on the root thread and wait for its answer; on the root thread itself: at once.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        if thread_id() == self.thread {
            return work();
        }
        let (answer, wait) = channel();
        let job: Job = Box::new(move || {
            // The caller waits below for as long as the job takes.
            let _ = answer.send(work());
        });
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).send(job).expect("the root thread never ends");
        wait.recv().expect("the root thread runs each job to its end or aborts the process")
    }

    /// Start an engine thread.
    ///
    /// # Errors
    /// [`Error::Os`] when no thread can be started.
    pub fn spawn(&self, name: &'static str, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        self.run(move || spawn_here(name, work))
    }

    /// Bring a descriptor of the application into the engine's table; the application keeps its own.
    ///
    /// # Errors
    /// [`Error::Os`] when the kernel does not let a thread look at its own process's descriptors.
    pub fn adopt(&self, fd: &OwnedFd) -> Result<RawFd, Error> {
        let number = fd.as_raw_fd();
        if !self.private_table {
            return Ok(number);
        }
        // SAFETY: gettid has no preconditions.
        let caller = unsafe { libc::gettid() };
        self.run(move || fetch(number, caller))
    }

    /// Bring a descriptor of the engine's table back to the calling application thread's, under `number`, which was closed
    /// there. True: the number is worth another try. System calls only: signal handlers call it.
    #[must_use]
    pub fn restore(&self, number: RawFd, original: RawFd) -> bool {
        if !self.private_table {
            return false;
        }
        // SAFETY: plain system calls on numbers; every descriptor made here is closed or is the one that was wanted.
        // F_DUPFD takes the number only if it is free: whatever the application opened meanwhile stays.
        unsafe {
            if libc::fcntl(number, libc::F_GETFD) >= 0 {
                return true; // another thread was faster
            }
            let fd = self.bring(original);
            if fd < 0 || fd == number {
                return fd == number;
            }
            let copy = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, number);
            libc::close(fd);
            if copy >= 0 && copy != number {
                libc::close(copy);
            }
            copy == number
        }
    }

    /// A descriptor of the engine's table for the calling application thread, under a number of its own. System calls only.
    #[must_use]
    pub fn borrow(&self, original: RawFd) -> Option<OwnedFd> {
        if !self.private_table {
            return None;
        }
        let fd = self.bring(original);
        // SAFETY: the number is new and nobody else's.
        (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// A copy of a descriptor of the engine's table in the calling thread's; negative: it cannot be had.
    fn bring(&self, original: RawFd) -> RawFd {
        const PIDFD_THREAD: libc::c_int = libc::O_EXCL; // Linux 6.9
        // SAFETY: plain system calls on numbers; what is made for the time of the call is closed.
        unsafe {
            let thread = libc::syscall(libc::SYS_pidfd_open, self.thread, PIDFD_THREAD) as RawFd;
            let fd = libc::syscall(libc::SYS_pidfd_getfd, thread, original, 0) as RawFd;
            libc::close(thread);
            fd
        }
    }

    /// Close a descriptor of the engine's table.
    pub fn close(&self, fd: RawFd) {
        if self.private_table {
            self.run(move || {
                // SAFETY: the number belongs to the engine's table and its one owner gives it up here.
                unsafe { libc::close(fd) };
            });
        }
    }
}

/// What engine threads must not drop: descriptors of the application (in the engine's table their numbers are other files)
/// and objects of the language above, whose end may need its lock.
static LEFT: Mutex<Vec<Box<dyn Send>>> = Mutex::new(Vec::new());

/// Leave something for an application thread to drop.
pub fn leave(thing: Box<dyn Send>) {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner).push(thing);
}

/// Drop what engine threads left. Application threads, whenever a region comes or goes; without the language's lock.
pub fn drop_left() {
    // A forked child may find the lock taken for good: then nothing is dropped.
    let left = LEFT.try_lock().map(|mut left| std::mem::take(&mut *left)).unwrap_or_default();
    drop(left);
}

/// In the engine's table: a copy of descriptor `number` of the thread `caller`'s table.
fn fetch(number: RawFd, caller: libc::pid_t) -> Result<RawFd, Error> {
    let what = "bringing a descriptor to the engine's threads";
    // SAFETY: plain system calls on numbers; every descriptor made here is closed or returned.
    unsafe {
        let process = libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) as RawFd;
        let fd = if process < 0 { -1 } else { libc::syscall(libc::SYS_pidfd_getfd, process, number, 0) as RawFd };
        let errno = Errno::last();
        if process >= 0 {
            libc::close(process);
        }
        match errno {
            _ if fd >= 0 => return Ok(fd),
            Errno(libc::EMFILE | libc::ENFILE) => return Err(Error::Os { what: what.into(), errno }),
            _ => {} // below
        }
    }
    // A sandbox may forbid pidfd_getfd; a file can then be opened again through /proc.
    let opened = proc::open(format_args!("/proc/self/task/{caller}/fd/{number}"));
    opened.map(OwnedFd::into_raw_fd).ok_or_else(|| Error::last_os(what))
}

/// Start a thread that shares this thread's descriptor table, with all signals blocked. A panic in it ends the process
/// with one line: an engine thread that is gone would leave faults without an answer.
///
/// # Errors
/// [`Error::Os`] when no thread can be started.
pub fn spawn_here(name: &'static str, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let old = block_all_signals();
    let spawned = std::thread::Builder::new().name(name.into()).stack_size(256 * 1024).spawn(move || {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
            abort_with(format_args!(
                "userfault: engine thread {name} panicked: a bug of ours; the process must stop\n"
            ));
        }
    });
    set_signal_mask(&old);
    spawned.map(|_| ()).map_err(|error| Error::Os {
        what: format!("starting thread {name}"),
        errno: Errno(error.raw_os_error().unwrap_or(libc::EAGAIN)),
    })
}

fn block_all_signals() -> libc::sigset_t {
    // SAFETY: both sets are ours; sigfillset and pthread_sigmask fill them.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut old: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old);
        old
    }
}

fn set_signal_mask(mask: &libc::sigset_t) {
    // SAFETY: the set is valid for the call.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}

/// Make this thread's descriptor table its own, and empty but for standard error. False: not permitted.
pub fn own_table() -> bool {
    // SAFETY: unshare(CLONE_FILES) copies this thread's table; close_range and dup2 then act on the copy alone.
    unsafe {
        if libc::unshare(libc::CLONE_FILES) != 0 {
            return false;
        }
        libc::syscall(libc::SYS_close_range, 3, RawFd::MAX, 0);
        // 0 and 1 may be pipes whose other end waits for us to let go; 2 stays for the last words of the process.
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        if null >= 0 {
            libc::dup2(null, 0);
            libc::dup2(null, 1);
            libc::close(null);
        }
    }
    true
}

/// The calling thread's id.
#[must_use]
pub fn thread_id() -> i32 {
    // SAFETY: gettid has no preconditions.
    unsafe { libc::gettid() }
}

/// This process's id.
#[must_use]
pub fn process_id() -> i32 {
    // SAFETY: getpid has no preconditions.
    unsafe { libc::getpid() }
}

/// Give this thread's errno back on drop: a signal handler must not change it.
pub struct KeepErrno(Errno);

impl KeepErrno {
    /// Remember it.
    #[must_use]
    pub fn new() -> Self {
        Self(Errno::last())
    }
}

impl Default for KeepErrno {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for KeepErrno {
    fn drop(&mut self) {
        // SAFETY: the location is this thread's own errno.
        unsafe { *libc::__errno_location() = self.0.0 };
    }
}

unsafe extern "C" {
    fn pthread_setcancelstate(state: libc::c_int, old: *mut libc::c_int) -> libc::c_int;
}

/// `PTHREAD_CANCEL_DISABLE` of glibc and musl.
const CANCEL_DISABLE: libc::c_int = 1;

/// As long as this lives, `pthread_cancel` does not end this thread: a load from memory is no place where a thread is ended, though
/// the system calls that bring the page are.
pub struct Uncancelled(libc::c_int);

impl Uncancelled {
    /// From now on.
    #[must_use]
    pub fn new() -> Self {
        let mut old = 0;
        // SAFETY: sets a word of this thread's own; glibc and musl take no lock in it, so signal handlers may.
        unsafe { pthread_setcancelstate(CANCEL_DISABLE, &raw mut old) };
        Self(old)
    }
}

impl Default for Uncancelled {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Uncancelled {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { pthread_setcancelstate(self.0, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adopted_descriptors_outlive_the_application_closing_its_own() {
        let root = Root::get().unwrap();
        let mut ends = [0; 2];
        // SAFETY: the array has room for two descriptors.
        assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
        // SAFETY: pipe2 just made them and nobody else owns them.
        let (read, write) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
        let inside = root.adopt(&write).unwrap();
        drop(write);
        if root.has_private_table() {
            // SAFETY: writes one byte from a static string to the engine's copy.
            assert_eq!(root.run(move || unsafe { libc::write(inside, c"x".as_ptr().cast(), 1) }), 1);
            let mut byte = 0u8;
            // SAFETY: one byte of room.
            assert_eq!(unsafe { libc::read(read.as_raw_fd(), (&raw mut byte).cast(), 1) }, 1);
            assert_eq!(byte, b'x');
            root.close(inside);
        }
    }
}
