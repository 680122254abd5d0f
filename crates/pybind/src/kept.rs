//! What sources raised, kept under a ticket until the exception of the touch picks it up.
//!
//! *Locks*: `KEPT`, for a few instructions in which no Python runs. *GIL*: held by every caller but the helper.

use crate::gil;
use engine::cause::Raised;
use engine::source::Cause;
use pyo3::prelude::*;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One of them.
pub struct Kept {
    ticket: u32,
    error: Py<PyAny>,
    /// What to raise at the touch instead of a PageError.
    itself: Option<Py<PyAny>>,
    /// Who raised it.
    thread: u64,
    since: Instant,
}

struct Shelf {
    next: u32,
    kept: VecDeque<Kept>,
}

static KEPT: Mutex<Shelf> = Mutex::new(Shelf { next: 0, kept: VecDeque::new() });
/// So many, and so long: an exception keeps alive the frames that it passed, and with them arrays and regions.
const MOST: usize = 64;
const LIFE: Duration = Duration::from_secs(2);

fn shelf() -> MutexGuard<'static, Shelf> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keep one; `itself`: what to raise at the touch instead of a PageError.
pub fn put(error: Py<PyAny>, itself: Option<Py<PyAny>>, transient: bool) -> Raised {
    let mut shelf = shelf();
    let ticket = shelf.next;
    shelf.next = shelf.next.wrapping_add(1);
    let oldest = if shelf.kept.len() >= MOST { shelf.kept.pop_front() } else { None };
    shelf.kept.push_back(Kept { ticket, error, itself, thread: gil::ident(), since: Instant::now() });
    drop(shelf);
    drop(oldest); // last: what its destructors do must not find the lock taken
    gil::HELPER.ring(); // it looks after what nobody picks up
    Raised { ticket, transient }
}

/// What was kept under a ticket, unless it is too long ago. Whoever raised it is the only one to ask; what a thread of the
/// library raised may be the answer to several touches, and stays for a while.
pub fn take(py: Python<'_>, raised: Raised) -> Option<Py<PyAny>> {
    let mut shelf = shelf();
    let index = shelf.kept.iter().position(|kept| kept.ticket == raised.ticket)?;
    if shelf.kept[index].thread != gil::ident() {
        return Some(shelf.kept[index].error.clone_ref(py));
    }
    let taken = shelf.kept.remove(index);
    drop(shelf);
    taken.map(|taken| taken.error)
}

/// What to raise for a failure instead of its usual class.
pub fn itself_of(py: Python<'_>, cause: Cause) -> Option<Py<PyAny>> {
    let Cause::Raised(raised) = cause else { return None };
    itself_under(py, raised.ticket)
}

/// The same of what was kept under a ticket.
pub fn itself_under(py: Python<'_>, ticket: u32) -> Option<Py<PyAny>> {
    let shelf = shelf();
    let kept = shelf.kept.iter().find(|kept| kept.ticket == ticket)?;
    kept.itself.as_ref().map(|class| class.clone_ref(py))
}

/// When to look for old ones again.
pub fn tick() -> Option<Duration> {
    if KEPT.try_lock().is_ok_and(|shelf| shelf.kept.is_empty()) { None } else { Some(LIFE / 4) }
}

/// Is there an old one? Without the GIL.
pub fn has_old() -> bool {
    KEPT.try_lock().is_ok_and(|shelf| shelf.kept.front().is_some_and(is_old))
}

/// Those that nobody has picked up. Their destructors may be anybody's code.
pub fn take_old(_: Python<'_>) -> Vec<Kept> {
    let mut shelf = shelf();
    let count = shelf.kept.iter().take_while(|kept| is_old(kept)).count();
    shelf.kept.drain(..count).collect()
}

fn is_old(kept: &Kept) -> bool {
    kept.since.elapsed() > LIFE
}
