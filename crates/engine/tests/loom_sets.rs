//! Every order of events around sets of slots and of pages (`cargo test --test loom_sets` with `--cfg loom`).
#![cfg(loom)]

use engine::bits::PageBits;
use engine::slots::Slots;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

/// Two kinds of slots, as in a stock, and the memory of each slot.
struct Stock {
    populated: Slots,
    holes: Slots,
    memory: [UnsafeCell<u32>; 2],
}

// SAFETY: only who took a slot reaches its memory: what the models prove.
unsafe impl Sync for Stock {}
// SAFETY: as above.
unsafe impl Send for Stock {}

impl Stock {
    fn with(slots: usize) -> Arc<Self> {
        Arc::new(Self { populated: Slots::new(0), holes: Slots::new(slots), memory: [0; 2].map(UnsafeCell::new) })
    }

    fn write(&self, slot: u32) {
        // SAFETY: the slot is on loan to us; loom says so if it is to somebody else, too.
        self.memory[slot as usize].with_mut(|cell| unsafe { *cell += 1 });
    }

    /// A unit is moved out of a region into a hole, or moved in from a slot with pages.
    fn turn(&self) {
        if let Some(slot) = self.populated.take() {
            self.write(slot);
            self.holes.put(slot);
        } else if let Some(slot) = self.holes.take() {
            self.write(slot);
            self.populated.put(slot);
        }
    }
}

fn turns(slots: usize, threads: usize, each: usize) {
    loom::model(move || {
        let stock = Stock::with(slots);
        let work = move |stock: &Stock| (0..each).for_each(|_| stock.turn());
        let others: Vec<_> = (1..threads)
            .map(|_| {
                let stock = stock.clone();
                thread::spawn(move || work(&stock))
            })
            .collect();
        work(&stock);
        others.into_iter().for_each(|thread| thread.join().expect("no assertion failed in it"));
        assert_eq!((stock.populated.count() + stock.holes.count()) as usize, slots, "a slot was lost or doubled");
    });
}

#[test]
fn a_slot_is_on_loan_to_one_thread_and_none_is_lost() {
    turns(1, 3, 1);
}

#[test]
fn slots_that_go_back_and_forth_are_on_loan_to_one_thread() {
    turns(2, 2, 2);
}

/// Pages of two words, so that a sweep passes one while the other changes.
const PAGES: [usize; 2] = [3, 64];

#[test]
fn a_page_that_was_put_in_is_never_in_an_empty_set() {
    loom::model(|| {
        let set = Arc::new(PageBits::new(65));
        let (inserting, removing) = (set.clone(), set.clone());
        let other = thread::spawn(move || _ = inserting.insert(PAGES[0]));
        let remover = thread::spawn(move || _ = removing.remove(PAGES[0]));
        set.insert(PAGES[1]);
        assert!(!set.is_empty() && set.contains(PAGES[1]));
        other.join().expect("no assertion failed in it");
        remover.join().expect("no assertion failed in it");
        assert_eq!(set.len(), PAGES.iter().filter(|page| set.contains(**page)).count());
    });
}

#[test]
fn a_page_put_in_during_a_sweep_is_visited_by_it_or_by_the_next() {
    loom::model(|| {
        let set = Arc::new(PageBits::new(65));
        let visits = Arc::new(AtomicUsize::new(0));
        let visit = |visits: &AtomicUsize| visits.fetch_add(1, Ordering::Relaxed) < usize::MAX;
        let (inserting, other) = (set.clone(), set.clone());
        let threads =
            [thread::spawn(move || _ = inserting.insert(PAGES[0])), thread::spawn(move || _ = other.insert(PAGES[1]))];
        set.sweep(|_| visit(&visits));
        threads.into_iter().for_each(|thread| thread.join().expect("no assertion failed in it"));
        set.sweep(|_| visit(&visits));
        assert_eq!((visits.load(Ordering::Relaxed), set.len()), (2, 0));
    });
}

#[test]
fn the_first_page_of_an_empty_set_is_told_to_one_who_put_it_in() {
    loom::model(|| {
        let set = Arc::new(PageBits::new(65));
        let first = Arc::new(AtomicUsize::new(0));
        let insert = |set: Arc<PageBits>, first: Arc<AtomicUsize>, page: usize| {
            thread::spawn(move || _ = first.fetch_add(usize::from(set.insert(page)), Ordering::Relaxed))
        };
        let threads = PAGES.map(|page| insert(set.clone(), first.clone(), page));
        threads.into_iter().for_each(|thread| thread.join().expect("no assertion failed in it"));
        assert_eq!(first.load(Ordering::Relaxed), 1);
    });
}
