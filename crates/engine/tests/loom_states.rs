//! Every order of events around the state of a unit (`cargo test --test loom_states` with `--cfg loom`).
#![cfg(loom)]

use engine::states::{State, UnitStates};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use std::time::Duration;

const FOREVER: Duration = Duration::MAX;

/// One unit, and what is in it: loom's cell tells of every access that is not ordered after the one before.
struct Page {
    states: UnitStates,
    bytes: UnsafeCell<u32>,
    fills: AtomicUsize,
}

// SAFETY: only the owner of the unit writes `bytes`, and only who saw it present reads them: what the models prove.
unsafe impl Sync for Page {}
// SAFETY: as above.
unsafe impl Send for Page {}

impl Page {
    fn new() -> Arc<Self> {
        Arc::new(Self { states: UnitStates::new(1), bytes: UnsafeCell::new(0), fills: AtomicUsize::new(0) })
    }

    /// Claim it, if it is in state `from`, and settle it with these bytes.
    fn change(&self, from: State, to: State, bytes: u32) -> bool {
        let ours = self.states.claim(0, from);
        if ours {
            self.fills.fetch_add(1, Ordering::Relaxed);
            // SAFETY: we own the unit.
            self.bytes.with_mut(|cell| unsafe { *cell = bytes });
            self.states.settle(0, to);
        }
        ours
    }

    fn read(&self) -> u32 {
        // SAFETY: the caller saw the unit present, and in these models nobody changes it after that.
        self.bytes.with(|cell| unsafe { *cell })
    }

    /// What a toucher does: fill it, or wait for who does.
    fn touch(&self) -> u32 {
        loop {
            match self.states.get(0) {
                State::Present => return self.read(),
                State::Filling => _ = self.states.wait_while_filling(0, FOREVER),
                State::Absent => _ = self.change(State::Absent, State::Present, 7),
            }
        }
    }
}

fn beside(works: Vec<Box<dyn FnOnce() + Send>>) {
    let threads: Vec<_> = works.into_iter().map(thread::spawn).collect();
    threads.into_iter().for_each(|thread| thread.join().expect("no assertion failed in it"));
}

#[test]
fn one_of_three_touchers_fills_and_all_see_what_it_wrote() {
    loom::model(|| {
        let page = Page::new();
        let toucher = |page: Arc<Page>| -> Box<dyn FnOnce() + Send> { Box::new(move || assert_eq!(page.touch(), 7)) };
        beside(vec![toucher(page.clone()), toucher(page.clone())]);
        assert_eq!((page.touch(), page.fills.load(Ordering::Relaxed)), (7, 1));
    });
}

#[test]
fn nobody_sleeps_through_a_settlement() {
    loom::model(|| {
        let page = Page::new();
        assert!(page.states.claim(0, State::Absent));
        let waiter = |page: Arc<Page>| -> Box<dyn FnOnce() + Send> {
            Box::new(move || {
                while page.states.wait_while_filling(0, FOREVER) == State::Filling {}
                assert_eq!(page.states.get(0), State::Present);
            })
        };
        let owner = page.clone();
        beside(vec![
            waiter(page.clone()),
            waiter(page.clone()),
            Box::new(move || owner.states.settle(0, State::Present)),
        ]);
    });
}

#[test]
fn a_waiter_sees_what_the_owner_wrote() {
    loom::model(|| {
        let page = Page::new();
        assert!(page.states.claim(0, State::Absent));
        let owner = page.clone();
        let filling = thread::spawn(move || {
            // SAFETY: we own the unit.
            owner.bytes.with_mut(|cell| unsafe { *cell = 7 });
            owner.states.settle(0, State::Present);
        });
        while page.states.wait_while_filling(0, FOREVER) == State::Filling {}
        assert_eq!(page.read(), 7);
        filling.join().expect("no assertion failed in it");
    });
}

#[test]
fn owners_come_one_after_the_other() {
    loom::model(|| {
        let page = Page::new();
        let (filler, evicter) = (page.clone(), page.clone());
        beside(vec![
            Box::new(move || _ = filler.change(State::Absent, State::Present, 1)),
            Box::new(move || _ = evicter.change(State::Present, State::Absent, 2)),
            Box::new(move || _ = page.change(State::Absent, State::Present, 3)),
        ]);
    });
}
