//! Pages that could not be had: poisoned ones, those that show the error pattern, and how they become holes again.
//!
//! *Locks*: `poisoned`, `sweeping`: engine threads, for a few system calls.

use super::{REARM_PACE, Region};
use crate::cause::Kind;
use crate::futex::ATTENTION;
use crate::mapping;
use crate::reserve;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

impl Region {
    fn poisoned(&self) -> MutexGuard<'_, BTreeMap<usize, Instant>> {
        self.poisoned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answer a fault on `page` by an error: whoever touches it gets SIGBUS, or EFAULT in a system call. True: done;
    /// false: the page is there after all, or the region is gone. Engine threads only.
    pub fn poison(&self, page: usize) -> bool {
        let mut poisoned = self.poisoned();
        let address = self.page_address(page);
        let outcome = loop {
            let outcome = self.handles.engine.poison(address, uffd::page_size(), uffd::Wake::Yes);
            if outcome != uffd::Outcome::Failed(uffd::Errno(libc::ENOMEM)) || !reserve::give_back() {
                break outcome;
            }
        };
        if outcome == uffd::Outcome::Done {
            poisoned.insert(page, Instant::now());
            if let Some(offers) = &self.offers {
                offers.spoil(page);
            }
            self.poisoned_count.store(poisoned.len() as u64, Ordering::SeqCst);
            if poisoned.len() == 1 {
                ATTENTION.ring(); // poison that only system calls touch must expire
            }
        } else {
            let _ = self.handles.engine.wake(address, uffd::page_size());
        }
        outcome == uffd::Outcome::Done
    }

    /// Forget poison on a range of pages, whatever stands there now.
    pub fn forget_poison(&self, pages: Range<usize>) {
        if self.poisoned_count.load(Ordering::SeqCst) > 0 {
            let mut poisoned = self.poisoned();
            poisoned.retain(|page, _| !pages.contains(page));
            self.poisoned_count.store(poisoned.len() as u64, Ordering::SeqCst);
        }
    }

    /// Turn a poisoned page back into a hole; false: it was not poisoned. The caller owns the page's unit.
    pub fn lift_poison(&self, page: usize) -> bool {
        if self.poisoned_count.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let mut poisoned = self.poisoned();
        if poisoned.remove(&page).is_none() {
            return false;
        }
        self.poisoned_count.store(poisoned.len() as u64, Ordering::SeqCst);
        let Some(away) = &self.away else {
            // The caller may have dropped a page of its own memory, poison and all, and had it filled since.
            if self.options.kind != Kind::UserFault || mapping::is_poisoned(self.page_address(page)) {
                self.drop_page(page);
            }
            return true;
        };
        // Its pager may have filled it since: then it stays. If it fills anything just now, later.
        let address = self.page_address(page);
        let looked = away.part.quiet(|| {
            if mapping::is_poisoned(address) {
                self.drop_page(page);
            }
        });
        if looked.is_none() {
            poisoned.insert(page, Instant::now());
            self.poisoned_count.store(poisoned.len() as u64, Ordering::SeqCst);
        }
        true
    }

    /// Forget the poison on a range of pages, and `lift` each.
    pub fn lift_all(&self, pages: Range<usize>, lift: impl Fn(usize)) {
        if self.poisoned_count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut poisoned = self.poisoned();
        let inside: Vec<_> = poisoned.range(pages).map(|(page, _)| *page).collect();
        for page in inside {
            poisoned.remove(&page);
            lift(page);
        }
        self.poisoned_count.store(poisoned.len() as u64, Ordering::SeqCst);
    }

    /// A pager has poisoned this page: it expires as others do.
    pub fn note_poison(&self, page: usize) {
        if page < self.mapped / uffd::page_size() && mapping::is_poisoned(self.page_address(page)) {
            let mut poisoned = self.poisoned();
            poisoned.entry(page).or_insert_with(Instant::now);
            self.poisoned_count.store(poisoned.len() as u64, Ordering::SeqCst);
            ATTENTION.ring();
        }
    }

    /// May any page show the error pattern? True also while another thread is taking the last one away.
    #[must_use]
    pub fn shows_pattern(&self) -> bool {
        // In this order: one that is being shown comes into the set; pages leave the set while `sweeping` is held or `hiding` is
        // up, and are holes after that.
        self.exposures.is_busy()
            || !self.exposed.is_empty()
            || self.hiding.load(Ordering::SeqCst) > 0
            || self.sweeping.try_lock().is_err()
    }

    /// If a page shows the error pattern, turn it into a hole with `hide`; true: it did. Any thread, signal handlers too.
    pub fn take_pattern(&self, page: usize, hide: impl FnOnce()) -> bool {
        self.hiding.fetch_add(1, Ordering::SeqCst);
        let showed = self.exposed.remove(page);
        if showed {
            hide();
        }
        self.hiding.fetch_sub(1, Ordering::SeqCst);
        showed
    }

    /// Turn those of `pages` that show the pattern into holes, and wait for whoever is just about to. Any thread.
    pub fn clear_patterns(&self, pages: Range<usize>) {
        for page in pages {
            self.take_pattern(page, || self.hide(page));
        }
        for _ in 0..10_000 {
            if self.hiding.load(Ordering::SeqCst) == 0 && self.sweeping.try_lock().is_ok() {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// Wait for those who are in [`Region::take_pattern`]: a few system calls.
    pub fn wait_for_hiding(&self) {
        wait_while(A_LITTLE, || self.hiding.load(Ordering::SeqCst) > 0);
    }

    /// Wait for those who are putting the error pattern somewhere just now: it is noted then. Where that takes longer than
    /// `limit`, or others came between, whoever looks at the memory still hears of it by the count.
    pub fn wait_for_showing(&self, limit: Duration) {
        let begun = self.exposures.begun();
        wait_while(limit, || !self.exposures.is_over(begun));
    }

    /// Wait until every error pattern that is there has been noted. Where pages fail all the time, for [`A_LITTLE`].
    pub fn wait_until_noted(&self) {
        wait_while(A_LITTLE, || self.exposures.is_busy());
    }

    /// Does one of these pages show the error pattern? Waits for those who are just about to make a note of one, at most for
    /// `limit`: [`A_LITTLE`] where the caller looks at the count too, as long as it has time where nothing else would tell.
    #[must_use]
    pub fn shows_pattern_in(&self, mut pages: Range<usize>, limit: Duration) -> bool {
        self.wait_for_showing(limit);
        !self.exposed.is_empty() && pages.any(|page| self.exposed.contains(page))
    }

    /// Turn a page that shows the error pattern, and was just taken out of `exposed`, back into a hole.
    pub fn hide(&self, page: usize) {
        self.forget_poison(page..page + 1);
        self.drop_page(page);
    }

    /// Something stands where bytes are to be put. If it is the error pattern, drop it; true: it was. The caller owns the unit.
    pub fn make_way(&self, page: usize) -> bool {
        let Some(offers) = &self.offers else { return self.take_pattern(page, || self.hide(page)) };
        let is_pattern = offers.is_brought(page);
        if is_pattern {
            self.wait_until_noted(); // a note that comes later would be of the bytes
            self.take_pattern(page, || {});
            self.drop_bytes(page); // poison too, whose record goes when the fill is done
        }
        is_pattern
    }

    /// Pages poisoned at least `age` ago.
    #[must_use]
    pub fn poisoned_since(&self, age: Duration) -> Vec<usize> {
        if self.poisoned_count.load(Ordering::SeqCst) == 0 {
            return vec![];
        }
        self.poisoned().iter().filter(|(_, since)| since.elapsed() >= age).map(|(page, _)| *page).collect()
    }

    /// Is any page poisoned?
    #[must_use]
    pub fn has_poison(&self) -> bool {
        self.poisoned_count.load(Ordering::SeqCst) > 0
    }

    /// Drop one page: the caller owns its unit and knows that nothing of value stands there; of volatile memory the notes tell.
    pub fn drop_page(&self, page: usize) {
        match &self.offers {
            Some(offers) => offers.drop_pattern(page, || self.drop_bytes(page)),
            None => self.drop_bytes(page),
        }
    }

    fn drop_bytes(&self, page: usize) {
        let _ = mapping::advise(self.page_address(page), uffd::page_size(), libc::MADV_DONTNEED);
    }

    /// Every page poisoned before this is known to be.
    pub fn settle_poison(&self) {
        drop(self.poisoned());
    }
}

/// For what another thread does in a handful of system calls, once it has a CPU.
pub const A_LITTLE: Duration = Duration::from_millis(20);

fn wait_while(limit: Duration, busy: impl Fn() -> bool) {
    let start = Instant::now();
    while busy() && start.elapsed() < limit {
        // Where there are more threads than CPUs the other one may have to wait for a turn: this one leaves it to others.
        if start.elapsed() < A_LITTLE { std::thread::yield_now() } else { std::thread::sleep(REARM_PACE.start) }
    }
}
