//! Every order of events around a page that shows the error pattern while somebody looks at it
//! (`cargo test --test loom_exposures` with `--cfg loom`).
#![cfg(loom)]

use engine::exposures::Exposures;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

const PATTERN: u64 = u64::MAX;

#[test]
fn whoever_sees_the_pattern_and_began_before_it_was_known_hears_of_it() {
    loom::model(|| {
        let shared = Arc::new((Exposures::default(), AtomicU64::new(0), AtomicU64::new(0)));
        let toucher = shared.clone();
        let touching = thread::spawn(move || {
            let (exposures, page, noted) = &*toucher;
            exposures.begin();
            page.store(PATTERN, Ordering::Relaxed);
            noted.store(1, Ordering::SeqCst);
            exposures.finish();
        });
        let (exposures, page, noted) = &*shared;
        let before = exposures.now();
        // What is noted by then is turned back into a hole: `rearm_failed`.
        let hidden = noted.load(Ordering::SeqCst) == 1;
        let seen = page.load(Ordering::Relaxed) == PATTERN;
        assert!(!seen || hidden || exposures.any_since(before), "a pattern was read and nobody heard of it");
        touching.join().expect("no assertion failed in it");
    });
}

#[test]
fn one_that_was_withdrawn_leaves_no_trace_and_none_is_busy_at_the_end() {
    loom::model(|| {
        let exposures = Arc::new(Exposures::default());
        let before = exposures.now();
        let other = exposures.clone();
        let withdrawing = thread::spawn(move || {
            other.begin();
            other.withdraw();
        });
        exposures.begin();
        exposures.finish();
        withdrawing.join().expect("no assertion failed in it");
        assert!(!exposures.is_busy() && exposures.any_since(before) && !exposures.any_since(exposures.now()));
    });
}
