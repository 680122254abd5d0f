//! A program started from an engine thread, without a fork of this process: posix_spawn(3), whose child shares our memory until
//! it runs the program.
//!
//! *Threads*: engine threads, in whose descriptor table everything is close-on-exec. *Blocks on*: the start of the program.

use super::wire;
use crate::error::Error;
use std::ffi::{CString, c_char};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use uffd::Errno;

/// What to start. Made once, by an application thread.
pub struct Program {
    /// The program and its arguments; the first is its path.
    pub arguments: Vec<CString>,
    /// `NAME=value`.
    pub environment: Vec<CString>,
}

/// A child.
pub struct Child {
    /// Its number.
    pub pid: i32,
    /// Readable once it is gone.
    pub pidfd: OwnedFd,
    /// Is it a child of this process?
    pub ours: bool,
}

/// Where the child finds its socket.
const SOCKET: RawFd = 3;

fn pointers(texts: &[CString]) -> Vec<*mut c_char> {
    texts.iter().map(|text| text.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect()
}

/// Start it with `socket` as descriptor 3, `output` as standard output and error (`None`: our standard error for both), and
/// nothing else of ours.
///
/// # Errors
/// [`Error::Os`].
pub fn start(program: &Program, socket: RawFd, output: Option<RawFd>) -> Result<Child, Error> {
    let (arguments, environment) = (pointers(&program.arguments), pointers(&program.environment));
    let mut pid = 0;
    // SAFETY: attributes and actions are initialised before use and destroyed after it; the arrays end in null and live as long
    // as the call.
    let failed = unsafe {
        let mut actions: libc::posix_spawn_file_actions_t = std::mem::zeroed();
        let mut attributes: libc::posix_spawnattr_t = std::mem::zeroed();
        libc::posix_spawn_file_actions_init(&raw mut actions);
        libc::posix_spawnattr_init(&raw mut attributes);
        let null = c"/dev/null".as_ptr();
        libc::posix_spawn_file_actions_addopen(&raw mut actions, 0, null, libc::O_RDONLY, 0);
        libc::posix_spawn_file_actions_adddup2(&raw mut actions, output.unwrap_or(2), 1);
        libc::posix_spawn_file_actions_adddup2(&raw mut actions, 1, 2);
        libc::posix_spawn_file_actions_adddup2(&raw mut actions, socket, SOCKET); // last: 3 may be `output`
        let (mut none, mut all): (libc::sigset_t, libc::sigset_t) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigemptyset(&raw mut none); // engine threads block all signals
        libc::sigfillset(&raw mut all);
        libc::posix_spawnattr_setsigmask(&raw mut attributes, &raw const none);
        libc::posix_spawnattr_setsigdefault(&raw mut attributes, &raw const all);
        let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        libc::posix_spawnattr_setflags(&raw mut attributes, flags as libc::c_short);
        let path = program.arguments.first().map_or(c"".as_ptr(), |path| path.as_ptr());
        let failed = libc::posix_spawn(
            &raw mut pid,
            path,
            &raw const actions,
            &raw const attributes,
            arguments.as_ptr(),
            environment.as_ptr(),
        );
        libc::posix_spawnattr_destroy(&raw mut attributes);
        libc::posix_spawn_file_actions_destroy(&raw mut actions);
        failed
    };
    if failed != 0 {
        return Err(Error::Os { what: "starting a pager".into(), errno: Errno(failed) });
    }
    Child::another(pid).map(|child| Child { ours: true, ..child }).inspect_err(|_| {
        // SAFETY: our own child, which ends at once; nobody else knows of it, and it would stay a zombie.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
    })
}

impl Child {
    /// A process that somebody else has started.
    ///
    /// # Errors
    /// [`Error::Os`]: there is none with this number.
    pub fn another(pid: i32) -> Result<Self, Error> {
        // SAFETY: asks for a new descriptor, which is nobody else's.
        unsafe {
            let pidfd = libc::syscall(libc::SYS_pidfd_open, pid, 0) as RawFd;
            if pidfd < 0 {
                return Err(Error::last_os("watching a pager"));
            }
            Ok(Self { pid, pidfd: OwnedFd::from_raw_fd(pidfd), ours: false })
        }
    }

    /// Kill it.
    pub fn kill(&self) {
        // SAFETY: a signal to the process that the descriptor names, whatever its number means by now.
        unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), libc::SIGKILL, 0, 0);
        }
    }

    /// How it ended, once it has: its exit status, or minus the signal that killed it. `None`: it runs. Somebody else may have
    /// reaped it: [`UNKNOWN`].
    #[must_use]
    pub fn ended(&self) -> Option<i32> {
        if !self.ours {
            let [gone] = wire::wait_readable([self.pidfd.as_raw_fd()], Some(std::time::Duration::ZERO));
            return gone.then_some(UNKNOWN);
        }
        // SAFETY: fills our structure.
        unsafe {
            let mut about: libc::siginfo_t = std::mem::zeroed();
            let id = self.pidfd.as_raw_fd() as libc::id_t;
            let failed = libc::waitid(libc::P_PIDFD, id, &raw mut about, libc::WEXITED | libc::WNOHANG);
            if failed != 0 {
                return (Errno::last() == Errno(libc::ECHILD)).then_some(UNKNOWN);
            }
            if about.si_pid() == 0 {
                return None;
            }
            Some(if about.si_code == libc::CLD_EXITED { about.si_status() } else { -about.si_status() })
        }
    }
}

/// The end of a process that somebody else waits for.
pub const UNKNOWN: i32 = 1 << 16;

/// What stands for a wait status where there was no process; plus an errno.
pub const NOT_STARTED: i32 = 1 << 17;

/// A wait status in words.
pub struct How(pub i32);

impl std::fmt::Display for How {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            UNKNOWN => write!(f, "its status is not ours to know"),
            errno if errno >= NOT_STARTED => write!(f, "it could not be started: {}", Errno(errno - NOT_STARTED)),
            signal if signal < 0 => write!(f, "signal {}", -signal),
            status => write!(f, "exit status {status}"),
        }
    }
}
