//! Waiting for messages in a way that `close()` and Ctrl-C can end.
//!
//! *Locks*: none. *Threads*: any number of readers. *Blocks on*: ppoll(2) of the userfaultfd and of an eventfd that
//! `close()` makes readable; never inside read(2), for closing a descriptor does not wake a reader there.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};
use uffd::{Errno, UffdMsg};

/// A descriptor and the means to call its readers away. The last user of it closes both.
pub struct Shared {
    pub fd: uffd::Userfaultfd,
    stop: OwnedFd,
}

/// How a wait for messages ended.
pub enum Waited {
    /// So many messages were read.
    Messages(usize),
    /// The time is up.
    TimedOut,
    /// A signal came: Python may have something to do.
    Signal,
    /// Somebody called `close()`.
    Closed,
    /// The kernel refused.
    Failed(Errno),
}

impl Shared {
    pub fn new(fd: uffd::Userfaultfd) -> Result<Self, Errno> {
        // SAFETY: eventfd takes two integers.
        let stop = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if stop < 0 {
            return Err(Errno::last());
        }
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(Self { fd, stop: unsafe { OwnedFd::from_raw_fd(stop) } })
    }

    /// Calls all readers away, now and in future.
    pub fn stop_readers(&self) {
        let one = 1u64;
        // SAFETY: eight bytes of ours, as an eventfd wants them. It cannot be full: nobody else writes to it.
        unsafe { libc::write(self.stop.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
    }

    /// Waits until `deadline` (`None`: for ever) for messages and reads what fits.
    pub fn wait_and_read(&self, messages: &mut [UffdMsg], deadline: Option<Instant>) -> Waited {
        loop {
            match self.poll(deadline) {
                Err(Errno(libc::EINTR)) => return Waited::Signal,
                Err(errno) => return Waited::Failed(errno),
                Ok((_, true)) => return Waited::Closed,
                Ok((false, false)) => return Waited::TimedOut,
                Ok((true, false)) => {}
            }
            match self.fd.handle().read_messages(messages) {
                Ok(count) => return Waited::Messages(count),
                // Another reader was faster, or the fault was resolved before anybody read of it.
                Err(Errno(libc::EAGAIN)) => {}
                Err(Errno(libc::EINTR)) => return Waited::Signal,
                Err(errno) => return Waited::Failed(errno),
            }
        }
    }

    /// Whether there are messages, and whether somebody wants us to stop; neither when the time is up.
    fn poll(&self, deadline: Option<Instant>) -> Result<(bool, bool), Errno> {
        let watch = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds = [watch(self.fd.as_raw_fd()), watch(self.stop.as_raw_fd())];
        let remaining = deadline.map(|at| timespec(at.saturating_duration_since(Instant::now())));
        let limit = remaining.as_ref().map_or(std::ptr::null(), |limit| limit as *const libc::timespec);
        // SAFETY: two live pollfds, a live timespec or null, and no signal mask.
        let ready = unsafe { libc::ppoll(fds.as_mut_ptr(), 2, limit, std::ptr::null()) };
        if ready < 0 { Err(Errno::last()) } else { Ok((fds[0].revents != 0, fds[1].revents != 0)) }
    }
}

fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(duration.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: duration.subsec_nanos() as libc::c_long,
    }
}
