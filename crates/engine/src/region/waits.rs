//! Faults that were read and wait for a slow read: whose, where, since when. Kept for deadlines and for Ctrl-C, which
//! shows as a second message of the same thread and page.
//!
//! *Locks*: one, for a few instructions. *Threads*: engine threads only.

use crate::futex::{ALARM, ATTENTION};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// One waiting fault.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// The toucher.
    pub thread: i32,
    /// The page.
    pub page: usize,
    /// Its answer is due.
    pub deadline: Instant,
    /// SIGINTs counted when it began.
    pub interrupts: u32,
    /// When /proc was last asked about this thread.
    pub looked: Instant,
}

/// All of a region's.
#[derive(Default)]
pub struct Waits {
    list: Mutex<Vec<Wait>>,
    count: AtomicUsize,
}

impl Waits {
    /// Remember a wait; the older one of the same thread and page, if it repeats one. The keeper is called when it is the
    /// only one: all waits of a region are equally long, so the first one's deadline is the next.
    pub fn note(&self, wait: Wait) -> Option<Wait> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = list.iter_mut().find(|known| known.thread == wait.thread && known.page == wait.page) {
            return Some(*known);
        }
        // A thread waits for one page at a time: what it waited for before is over.
        list.retain(|known| known.thread != wait.thread);
        list.push(wait);
        self.count.store(list.len(), Ordering::SeqCst);
        if list.len() == 1 && ALARM.is_later_than(wait.deadline.saturating_duration_since(wait.looked)) {
            ATTENTION.ring();
        }
        None
    }

    /// Remember when /proc was asked about a thread.
    pub fn looked_at(&self, thread: i32, now: Instant) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        for wait in list.iter_mut().filter(|wait| wait.thread == thread) {
            wait.looked = now;
        }
    }

    /// Nobody waits for these pages any more; true: somebody did.
    pub fn over(&self, pages: Range<usize>) -> bool {
        if self.count.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let before = list.len();
        list.retain(|wait| !pages.contains(&wait.page));
        self.count.store(list.len(), Ordering::SeqCst);
        list.len() < before
    }

    /// Take out the waits that are due.
    #[must_use]
    pub fn take_due(&self, now: Instant) -> Vec<Wait> {
        if self.count.load(Ordering::SeqCst) == 0 {
            return vec![];
        }
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let due = list.iter().copied().filter(|wait| wait.deadline <= now).collect();
        list.retain(|wait| wait.deadline > now);
        self.count.store(list.len(), Ordering::SeqCst);
        due
    }

    /// The next deadline.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.count.load(Ordering::SeqCst) == 0 {
            return None;
        }
        self.list.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|wait| wait.deadline).min()
    }
}
