//! The userfaultfd of a forked child, in its parent: who waits there, and pages for them.
//!
//! It lives in the engine's table only. It stays open after everybody here is done with it, because a last close shows zeros:
//! from then on each fault of the child is answered by poison. It goes when the child is gone.
//!
//! *Locks*: `state`, for a few instructions, then `open`, for one operation. *Threads*: the pump, the root thread for operations, and whoever calls.
//! *Blocks on*: [`Forked::wait`] and [`Unaccepted::take`] only.

use crate::futex::Bell;
use crate::mman::retries::Retries;
use crate::mman::waiting::{Waiters, Waiting};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use uffd::{CopyMode, Errno, Handle, Outcome, ProtectMode, Wake};

/// A number where something could be mapped; whether anything is does not matter.
const ANYWHERE: usize = 1 << 30;

#[derive(Default)]
struct State {
    waiters: Waiters,
    closed: bool,
    gone: bool,
}

/// One child's.
pub struct Forked {
    /// Never used twice in a process.
    pub id: u64,
    /// The descriptor of this process that it was made from.
    pub parent: u64,
    /// In the engine's table. For an operation, [`Forked::with`]; the pump alone closes it, and reads without that.
    pub handle: Handle,
    /// After so long a fault is answered by poison.
    pub timeout: Option<Duration>,
    state: Mutex<State>,
    open: Mutex<bool>,
    bell: Bell,
}

impl Forked {
    /// One that was just read from an event.
    #[must_use]
    pub fn new(id: u64, parent: u64, handle: Handle, timeout: Option<Duration>) -> Self {
        Self { id, parent, handle, timeout, state: Mutex::default(), open: Mutex::new(true), bell: Bell::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One operation. Its number is another file's once the child is gone.
    fn with(&self, operation: impl FnOnce(Handle) -> Outcome) -> Outcome {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if *open { operation(self.handle) } else { Outcome::Gone }
    }

    /// Have those in `range` ask again. On an engine thread.
    ///
    /// # Errors
    /// ESRCH: the child is gone; EINVAL for a range that makes no sense.
    pub fn wake(&self, range: &Range<usize>) -> Result<(), Errno> {
        self.forget(range);
        let wake =
            |handle: Handle| handle.wake(range.start, range.len()).map_or_else(Outcome::Failed, |()| Outcome::Done);
        self.with(wake).errno().map_or(Ok(()), Err)
    }

    /// Closed here; the child is gone; faults that nobody has read.
    #[must_use]
    pub fn standing(&self) -> (bool, bool, usize) {
        let state = self.state();
        (state.closed, state.gone, state.waiters.counts().0)
    }

    /// The next address, if there is one: EAGAIN if not.
    ///
    /// # Errors
    /// EAGAIN; EBADF when closed; ESRCH when the child is gone.
    pub fn read(&self) -> Result<usize, Errno> {
        let mut state = self.state();
        let ended = if state.closed { libc::EBADF } else { libc::ESRCH };
        if state.closed || state.gone {
            return Err(Errno(ended));
        }
        Ok(state.waiters.read().ok_or(Errno(libc::EAGAIN))?.address)
    }

    /// Rings with each new fault, and at the end: pass the count to [`Forked::wait`].
    #[must_use]
    pub fn rung(&self) -> u32 {
        self.bell.rung()
    }

    /// Sleep until something changes, a signal comes, or for `limit`.
    pub fn wait(&self, rung: u32, limit: Duration) {
        self.bell.wait(rung, Some(limit));
    }

    /// The pump: a message came. A signal makes a thread ask again, which changes nothing.
    pub fn note(&self, waiting: Waiting) {
        let mut state = self.state();
        if state.waiters.repeat(&waiting).is_some() {
            return;
        }
        state.waiters.add(waiting);
        drop(state);
        self.bell.ring();
    }

    /// Nobody waits in `range` any more.
    pub fn forget(&self, range: &Range<usize>) {
        self.state().waiters.forget(range);
    }

    /// Poison the pages of those who have waited for too long; all of them when it is closed. On an engine thread.
    pub fn expire(&self, now: Instant) {
        let mut state = self.state();
        let closed = state.closed;
        let late = |waiting: &Waiting| {
            closed || self.timeout.is_some_and(|timeout| now.duration_since(waiting.since) >= timeout)
        };
        state.waiters.take(|waiting| late(waiting) && self.poison(waiting.address));
    }

    /// When somebody will have waited for too long.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let state = self.state();
        let limit = if state.closed { Duration::ZERO } else { self.timeout? };
        state.waiters.next_deadline(limit, limit)
    }

    /// False: the child changes its mappings just now; again later.
    fn poison(&self, address: usize) -> bool {
        let page = uffd::page_size();
        let start = address / page * page;
        match self.with(|handle| handle.poison(start, page, Wake::Yes)) {
            Outcome::Done => true,
            Outcome::Retry => false,
            // There is a page, or nothing is mapped there any more, or nobody is left.
            _ => {
                self.with(|handle| handle.wake(start, page).map_or_else(Outcome::Failed, |()| Outcome::Done));
                true
            }
        }
    }

    /// Poison every hole of `range`; stops where the child changes its mappings. On an engine thread.
    pub fn poison_holes(&self, range: Range<usize>) {
        let (mut at, page) = (range.start, uffd::page_size());
        while at < range.end {
            match self.with(|handle| handle.poison(at, range.end - at, Wake::Yes)) {
                Outcome::Partial(bytes) => at += bytes,
                Outcome::Exists => at += page,
                _ => return,
            }
        }
    }

    /// Fill pages from `address` on; those that are there stay as they are. Who waits is woken. Answers how many bytes were
    /// filled. On the root thread.
    ///
    /// # Errors
    /// ESRCH: the child is gone; ENOENT: it has nothing registered there; EBADF when closed.
    pub fn fill(&self, address: usize, data: &[u8]) -> Result<usize, Errno> {
        let page = uffd::page_size();
        let (mut done, mut filled, mut retries) = (0, 0, Retries::default());
        if self.state().closed {
            return Err(Errno(libc::EBADF));
        }
        while done < data.len() {
            let (to, from) = (address + done, data[done..].as_ptr() as usize);
            match self.with(|handle| handle.copy(to, from, data.len() - done, CopyMode::NONE)) {
                Outcome::Done => (filled, done) = (filled + data.len() - done, data.len()),
                Outcome::Partial(bytes) => (filled, done) = (filled + bytes, done + bytes),
                Outcome::Exists => {
                    let _ = self.wake(&(to..to + page));
                    done += page;
                }
                Outcome::Retry if retries.again() => {} // an event of the child's is about to be read
                outcome => {
                    if outcome == Outcome::Gone {
                        self.set_gone();
                    }
                    return Err(outcome.errno().unwrap_or(Errno(libc::EIO)));
                }
            }
            self.forget(&(address..address + done));
        }
        Ok(filled)
    }

    /// Close it if the child is gone, which an operation that does nothing tells. On the pump.
    pub fn close_if_gone(&self) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = self.handle.write_protect(ANYWHERE, uffd::page_size(), ProtectMode::UNPROTECT);
        let gone = *open && answer == Outcome::Gone;
        if gone {
            *open = false;
            // SAFETY: the number is of this table, and nobody uses it after this.
            unsafe { libc::close(self.handle.as_raw_fd()) };
        }
        drop(open);
        if gone {
            self.set_gone();
        }
        gone
    }

    fn set_gone(&self) {
        self.state().gone = true;
        self.bell.ring_all();
    }

    /// Nobody here answers any more.
    pub fn shut(&self) {
        self.state().closed = true;
        self.bell.ring_all();
    }
}

/// Forks that nobody accepted; older ones are dropped once their child is gone.
const MOST_UNACCEPTED: usize = 1024;

/// Children's userfaultfds until they are accepted.
#[derive(Default)]
pub struct Unaccepted {
    queue: Mutex<Vec<Arc<Forked>>>,
    bell: Bell,
}

impl Unaccepted {
    fn queue(&self) -> MutexGuard<'_, Vec<Arc<Forked>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more.
    pub fn push(&self, forked: Arc<Forked>) {
        let mut queue = self.queue();
        if queue.len() >= MOST_UNACCEPTED {
            queue.retain(|forked| !forked.standing().1);
        }
        queue.push(forked);
        drop(queue);
        self.bell.ring_all();
    }

    /// The oldest, if there is one; else waits for one, or for `limit`, or for a signal.
    #[must_use]
    pub fn take(&self, limit: Duration) -> Option<Arc<Forked>> {
        let rung = self.bell.rung();
        let first = |queue: &mut Vec<Arc<Forked>>| (!queue.is_empty()).then(|| queue.remove(0));
        let taken = first(&mut self.queue());
        taken.or_else(|| {
            self.bell.wait(rung, Some(limit));
            first(&mut self.queue())
        })
    }

    /// It is over: nobody comes.
    pub fn shut(&self) {
        self.bell.ring_all();
    }
}
