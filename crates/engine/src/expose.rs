//! A page that cannot be had (law 4; recipe and limits: docs, «When a page cannot be had»).
//!
//! The thread that touched it is in the middle of a load or store. Its SIGBUS handler lets the instruction finish on a
//! page of 0xFF bytes (never zeros), counts the exposure, and has the language above raise in that thread. The page is
//! turned back into a hole by the keeper soon after, so that the next touch asks again.
//!
//! *Locks*: none: everything here runs in signal handlers. *Threads*: any.

use crate::counters::add;
use crate::engine::Engine;
use crate::exposures::Exposures;
use crate::failure::{Failure, leave_orphan};
use crate::futex::ATTENTION;
use crate::latch::{self, Why};
use crate::region::{OnError, Region};
use crate::reserve;
use crate::say::{abort_with, say};
use crate::source::{Cause, Table};
use std::sync::atomic::{AtomicPtr, Ordering};
use uffd::{CopyMode, Outcome};

/// Those in all regions.
#[cfg(not(loom))]
pub static EXPOSURES: Exposures = Exposures::new();
/// Those in all regions.
#[cfg(loom)]
pub static EXPOSURES: std::sync::LazyLock<Exposures> = std::sync::LazyLock::new(Exposures::default);

/// Raises in the calling thread; false: it cannot be raised there (the language above does not know the thread), so the
/// thread must not be held to have an error on its way.
pub type Raise = fn(Why) -> bool;
static RAISE: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());

/// The language above tells how to raise. Without it a failed page aborts.
pub fn set_raise(raise: Raise) {
    RAISE.store(raise as *mut (), Ordering::Release);
}

/// In the SIGBUS handler of the thread that touched `page`: let its instruction finish on the pattern, and raise.
pub fn expose(region: &Region, page: usize, failure: Failure) {
    if show(region, page, &failure) {
        announce(failure);
    }
}

/// The first half: put the pattern there. False: there is nothing to raise; the page is there, or the process ends.
#[must_use]
pub fn show(region: &Region, page: usize, failure: &Failure) -> bool {
    if region.options.on_error == OnError::Abort || RAISE.load(Ordering::Acquire).is_null() {
        die(region, page, failure);
        return false;
    }
    // Begun before any thread can see the pattern, over when it is noted: who looks meanwhile cannot miss both.
    let everywhere: &Exposures = &EXPOSURES;
    let counts = [&region.exposures, everywhere];
    counts.iter().for_each(|count| count.begin());
    match install_pattern(region, region.page_address(page)) {
        Outcome::Done => {}
        outcome => {
            counts.iter().for_each(|count| count.withdraw());
            if outcome == Outcome::Exists && shows_pattern(region, page) {
                return true;
            }
            // The page is there, or the instruction asks again.
            if !matches!(outcome, Outcome::Exists | Outcome::Retry) {
                lost(region, page, outcome);
            }
            return false;
        }
    }
    let first = region.exposed.insert(page);
    add(&region.counters.exposed_pages, 1);
    counts.iter().for_each(|count| count.finish());
    if first {
        ATTENTION.ring(); // while the set is not empty the keeper comes by itself
    }
    true
}

/// Did another thread that failed put the pattern there? Then this one reads it too, and has to raise as well. In doubt yes: its
/// own read failed, whatever is there.
fn shows_pattern(region: &Region, page: usize) -> bool {
    // In this order: one that is over is in the set already, or is being taken out of it (which the last question sees), or its
    // page is a hole again and the instruction asks again.
    region.exposures.is_busy() || region.exposed.contains(page) || region.shows_pattern()
}

/// The second half: raise in this thread.
pub fn announce(failure: Failure) {
    let raise = RAISE.load(Ordering::Acquire);
    if raise.is_null() {
        return;
    }
    if failure.error.cause == Cause::Os(libc::ENOMEM) {
        // An exception is about to be made, and has to find memory.
        let _ = (0..reserve::STEPS_OF_AN_EXCEPTION).all(|_| reserve::give_back());
    }
    let why = latch::set(failure);
    // SAFETY: `set_raise` stored a `Raise`, and it was seen non-null above (it is never taken back).
    let raise: Raise = unsafe { std::mem::transmute::<*mut (), Raise>(raise) };
    let is_known = raise(why);
    if matches!(why, Why::Failed(_)) {
        // From the end of the wait: the page is a hole again by now, and one that waits at each touch gets nowhere.
        latch::note_asked();
    }
    if !is_known && let Some(failure) = latch::take() {
        leave_orphan(failure);
    }
}

/// Even the pattern wants a page. Where there is no memory for it, some was put by.
fn install_pattern(region: &Region, address: usize) -> Outcome {
    let handle = region.handle(Table::Application);
    loop {
        let outcome = handle.copy(address, reserve::pattern(), uffd::page_size(), CopyMode::NONE);
        let again = match outcome {
            Outcome::Failed(uffd::Errno(libc::ENOMEM)) => reserve::give_back(),
            Outcome::Failed(uffd::Errno(libc::EBADF)) => region.handles.restore(),
            _ => false,
        };
        if !again {
            return outcome;
        }
    }
}

/// The pattern cannot be put there: no memory at all, or somebody closed the descriptor.
fn lost(region: &Region, page: usize, outcome: Outcome) {
    if Engine::parents_region(region.page_address(page)).is_some() {
        return; // the source forked, and this is the child: the instruction meets the tombstone, which says so
    }
    let why = match outcome.errno() {
        Some(uffd::Errno(libc::ENOMEM)) => "there is no memory left for it",
        _ => "was its descriptor closed, as by os.closerange?",
    };
    abort_with(format_args!(
        "userfault: a failed page of region {} cannot be answered ({outcome:?}: {why}): stopping, because the alternative is \
         zeros\n",
        region.id
    ));
}

/// `on_error="abort"`: one line, then the default action of SIGBUS when the instruction runs again.
fn die(region: &Region, page: usize, failure: &Failure) {
    let offset = page * uffd::page_size();
    say(format_args!(
        "userfault: the page at offset {offset} of {} cannot be had: {}{}; on_error=\"abort\"\n",
        region.source_name,
        failure.error.cause.describe(),
        Errno(failure.error.cause)
    ));
    // SAFETY: resets the action of SIGBUS; the touching instruction then ends the process by it.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

struct Errno(Cause);

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Cause::Os(errno) => write!(f, " (errno {errno})"),
            _ => Ok(()),
        }
    }
}
