//! The descriptor of 2014: a handshake of 8 bytes, faults as 8-byte addresses, commands as 16-byte ranges, poll bits.
//!
//! Behind it is a userfaultfd that the pump reads. Here is what the kernel of 2014 kept itself: which faults nobody has read
//! yet, and which were read and not woken.
//!
//! ```text
//! poll_bits  its poll bits, and the number that has them
//! timeouts   those who have waited for too long
//! ```
//!
//! *Locks*: `state`, for a few instructions and a few bytes over a socket pair. *Threads*: the pump, and whoever calls.
//! *Blocks on*: [`Descriptor::wait`] only.

mod poll_bits;
mod timeouts;

use crate::futex::Bell;
use crate::identity::{Identity, identity};
use crate::mapping::is_resident;
use crate::mman::forked::Unaccepted;
use crate::mman::late::TimedOut;
use crate::mman::poll::PollPair;
use crate::mman::protocol::{PROTOCOL, UNKNOWN_PROTOCOL, Written, parse, word};
use crate::mman::waiting::{Waiters, Waiting};
use crate::region::Handles;
use crate::source::Table;
use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use uffd::Errno;

/// Where a descriptor stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A protocol is to be written.
    Ask,
    /// It is known: read it back.
    Ack,
    /// It is not known: read that.
    Unknown,
    /// Faults are read, ranges written.
    Running,
    /// Closed.
    Closed,
}

struct State {
    phase: Phase,
    waiters: Waiters,
    timeouts: u64,
    /// The newest of them.
    late: VecDeque<TimedOut>,
    /// Closed, but a range could not be given back.
    stuck: bool,
    poll: Option<PollPair>,
}

/// The descriptor.
pub struct Descriptor {
    /// Never used twice in a process.
    pub id: u64,
    /// The application's copy, until it is closed; nobody but this owns it.
    application: Mutex<Option<OwnedFd>>,
    /// Which file its number meant at first.
    identity: Option<Identity>,
    /// In both tables.
    pub handles: Handles,
    /// Was O_NONBLOCK asked for?
    pub nonblocking: bool,
    /// Faults of system calls are refused.
    pub user_mode_only: bool,
    /// After so long a fault is answered by an error.
    pub timeout: Option<Duration>,
    /// Children of forks that nobody has accepted.
    pub forks: Unaccepted,
    /// Does it hear of forks?
    pub can_follow: bool,
    state: Mutex<State>,
    bell: Bell,
}

/// What is known of a new message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noted {
    /// A thread that did not wait before.
    New,
    /// It waited already: as it was known, this message counted.
    Again(Waiting),
    /// The page is there: the message repeats one that was answered, or is of a second thread that came too late.
    Answered,
}

impl Descriptor {
    /// Put one together, before the handshake.
    #[must_use]
    pub fn new(
        id: u64,
        application: OwnedFd,
        handles: Handles,
        (nonblocking, user_mode_only, can_follow): (bool, bool, bool),
        timeout: Option<Duration>,
    ) -> Self {
        let state = State {
            phase: Phase::Ask,
            waiters: Waiters::default(),
            timeouts: 0,
            late: VecDeque::new(),
            stuck: false,
            poll: None,
        };
        Self {
            id,
            identity: identity(application.as_raw_fd()),
            application: Mutex::new(Some(application)),
            handles,
            nonblocking,
            user_mode_only,
            timeout,
            forks: Unaccepted::default(),
            can_follow,
            state: Mutex::new(state),
            bell: Bell::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it stands, and how many faults are unread and read but not woken.
    #[must_use]
    pub fn standing(&self) -> (Phase, usize, usize, u64) {
        let state = self.state();
        let (unread, read) = state.waiters.counts();
        (state.phase, unread, read, state.timeouts)
    }

    /// Read 8 bytes, if there is anything: EAGAIN if not.
    ///
    /// # Errors
    /// EINVAL: less than 8 bytes, or nothing to be read in this phase; EAGAIN; EBADF when closed.
    pub fn read(&self, room: usize) -> Result<u64, Errno> {
        let mut state = self.state();
        let answer = match state.phase {
            _ if room < 8 => Err(Errno(libc::EINVAL)),
            Phase::Ask => Err(Errno(libc::EINVAL)),
            Phase::Closed => Err(Errno(libc::EBADF)),
            Phase::Ack => {
                state.phase = Phase::Running;
                Ok(PROTOCOL)
            }
            Phase::Unknown => {
                state.phase = Phase::Ask;
                Ok(UNKNOWN_PROTOCOL)
            }
            Phase::Running => {
                let newest = state.waiters.read().ok_or(Errno(libc::EAGAIN))?;
                Ok(newest.address as u64)
            }
        };
        state.show(Table::Application);
        answer
    }

    /// Write bytes: a protocol, or a command to be carried out by the caller.
    ///
    /// # Errors
    /// EINVAL: too short, not aligned, an unknown command, or not the phase for it; ERANGE: an empty range; ENOMEM: it ends
    /// outside of user memory; EBADF when closed.
    pub fn write(&self, bytes: &[u8]) -> Result<Written, Errno> {
        let mut state = self.state();
        match state.phase {
            Phase::Closed => Err(Errno(libc::EBADF)),
            Phase::Ask => {
                let protocol = word(bytes, 0)?;
                state.phase = if protocol == PROTOCOL { Phase::Ack } else { Phase::Unknown };
                state.show(Table::Application);
                Ok(Written::Taken(8))
            }
            Phase::Ack | Phase::Unknown => Err(Errno(libc::EINVAL)),
            Phase::Running => parse(word(bytes, 0)?, word(bytes, 8)?).map(Written::Do),
        }
    }

    /// Is it for faults already?
    ///
    /// # Errors
    /// EINVAL before the handshake, EBADF when closed.
    pub fn check_running(&self) -> Result<(), Errno> {
        match self.state().phase {
            Phase::Running => Ok(()),
            Phase::Closed => Err(Errno(libc::EBADF)),
            _ => Err(Errno(libc::EINVAL)),
        }
    }

    /// A bell that rings with each new fault, and when it is closed: pass the count to [`Descriptor::wait`].
    #[must_use]
    pub fn rung(&self) -> u32 {
        self.bell.rung()
    }

    /// Sleep until something changes, a signal comes, or for `limit`.
    pub fn wait(&self, rung: u32, limit: Duration) {
        self.bell.wait(rung, Some(limit));
    }

    /// The pump: a message came.
    pub fn note(&self, waiting: Waiting) -> Noted {
        let mut state = self.state();
        if let Some(known) = state.waiters.repeat(&waiting) {
            return Noted::Again(known);
        }
        // Looked at under the lock: who resolves a page forgets its fault after that.
        if is_resident(waiting.address / uffd::page_size() * uffd::page_size()) {
            return Noted::Answered;
        }
        state.waiters.add(waiting);
        state.show(Table::Engine);
        drop(state);
        self.bell.ring();
        Noted::New
    }

    /// Does the thread of this one wait for its page still?
    #[must_use]
    pub fn awaits(&self, waiting: &Waiting) -> bool {
        self.state().waiters.knows(waiting)
    }

    /// Those who wait in `range` and were read about: they are no longer waited for. False: there are none.
    pub fn forget_read(&self, range: &Range<usize>) -> bool {
        let mut state = self.state();
        let came = |waiting: &Waiting| is_resident(waiting.address / uffd::page_size() * uffd::page_size());
        let any = state.waiters.forget_read(range, Instant::now(), came);
        state.show(Table::Application);
        any
    }

    /// Nobody waits in `range` any more, read about or not.
    pub fn forget(&self, range: &Range<usize>) {
        let mut state = self.state();
        state.waiters.forget(range);
        state.show(Table::Engine);
    }

    /// A range could not be given back at the close: its faults are answered by errors from now on.
    pub fn set_stuck(&self) {
        self.state().stuck = true;
    }

    /// See [`Descriptor::set_stuck`].
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.state().stuck
    }

    /// Has somebody closed the application's copy, and is its number another file's, or nobody's?
    #[must_use]
    pub fn has_strayed(&self) -> bool {
        identity(self.handles.application.as_raw_fd()) != self.identity
    }

    /// Close the application's copy, unless somebody closed it already and the number is another file's.
    pub fn close_copy(&self) {
        if let Some(fd) = self.application.lock().unwrap_or_else(PoisonError::into_inner).take()
            && self.has_strayed()
        {
            let _ = fd.into_raw_fd(); // not ours to close
        }
    }

    /// It is over: readers come back with EBADF. Answers false when it was over before.
    pub fn shut(&self) -> bool {
        let mut state = self.state();
        let open = state.phase != Phase::Closed;
        state.phase = Phase::Closed;
        let poll = state.poll.take();
        state.waiters.clear();
        drop(state);
        drop(poll); // waits for the root thread, which may just want the state
        self.bell.ring_all();
        self.forks.shut();
        open
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uffd::Handle;

    fn descriptor() -> Descriptor {
        let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let none = Handle::from_raw(-1);
        Descriptor::new(1, file, Handles::of(none, none), (true, false, false), None)
    }

    fn waiting(address: usize, thread: i32) -> Waiting {
        Waiting::new(address, thread, Instant::now(), 0)
    }

    #[test]
    fn the_handshake_goes_round() {
        let descriptor = descriptor();
        assert_eq!(descriptor.read(8), Err(Errno(libc::EINVAL)));
        assert_eq!(descriptor.write(&[0; 7]), Err(Errno(libc::EINVAL)));
        assert_eq!(descriptor.write(&7u64.to_ne_bytes()), Ok(Written::Taken(8)));
        assert_eq!(descriptor.write(&7u64.to_ne_bytes()), Err(Errno(libc::EINVAL)));
        assert_eq!(descriptor.read(8), Ok(u64::MAX));
        assert_eq!(descriptor.write(&0xAAu64.to_ne_bytes()), Ok(Written::Taken(8)));
        assert_eq!(descriptor.read(8), Ok(0xAA));
        assert_eq!(descriptor.read(8), Err(Errno(libc::EAGAIN)));
        assert_eq!(descriptor.read(7), Err(Errno(libc::EINVAL)));
    }

    #[test]
    fn faults_are_read_newest_first_and_woken_once() {
        let descriptor = descriptor();
        descriptor.write(&0xAAu64.to_ne_bytes()).unwrap();
        descriptor.read(8).unwrap();
        assert_eq!(descriptor.note(waiting(0x10008, 1)), Noted::New);
        assert_eq!(descriptor.note(waiting(0x20000, 2)), Noted::New);
        assert!(matches!(
            descriptor.note(waiting(0x20010, 2)),
            Noted::Again(Waiting { address: 0x20000, repeats: 1, .. })
        ));
        assert!(!descriptor.forget_read(&(0..usize::MAX)), "not read about yet");
        assert_eq!(descriptor.read(8), Ok(0x20000));
        assert_eq!(descriptor.read(8), Ok(0x10008));
        assert!(descriptor.forget_read(&(0x20000..0x21000)));
        assert!(!descriptor.forget_read(&(0x20000..0x21000)));
        assert_eq!(descriptor.standing(), (Phase::Running, 0, 1, 0));
    }
}
