//! Every order of events between a scan and who reads ahead for it (`cargo test --test loom_readahead` with `--cfg loom`).
#![cfg(loom)]

use engine::readahead::{Readahead, Shape};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

const UNITS: usize = 12;

struct Scan {
    ahead: Readahead,
    read: Vec<AtomicUsize>,
}

impl Scan {
    fn new(slow: bool) -> Arc<Self> {
        let shape = Shape { helps: true, slow, unit: 65536, piece: 2, kept: usize::MAX };
        Arc::new(Self { ahead: Readahead::new(&shape), read: (0..UNITS).map(|_| AtomicUsize::new(0)).collect() })
    }

    /// A worker, from its job to the end of it.
    fn work(&self, stream: usize) {
        while let Some(units) = self.ahead.next(stream) {
            for unit in units {
                self.read[unit].fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn times(&self) -> Vec<usize> {
        self.read.iter().map(|read| read.load(Ordering::Relaxed)).collect()
    }
}

/// Three faults have begun a scan, a worker reads for it, and the fourth plans more: all of it is read, once.
fn goes_on(slow: bool) {
    loom::model(move || {
        let scan = Scan::new(slow);
        let stream = (0..3).find_map(|unit| scan.ahead.note(unit, UNITS)).expect("a scan");
        let worker = {
            let scan = scan.clone();
            thread::spawn(move || scan.work(stream))
        };
        if let Some(stream) = scan.ahead.note(5, UNITS) {
            scan.work(stream); // as another worker would, now or later
        }
        worker.join().unwrap();
        let times = scan.times();
        assert!(times[6..].iter().all(|times| *times == 1), "planned and not read, or read twice: {times:?}");
        assert!(times[3..6].iter().all(|times| *times <= 1), "{times:?}");
    });
}

#[test]
fn what_is_planned_while_the_reader_leaves_is_read() {
    goes_on(false);
}

#[test]
fn two_readers_of_a_slow_source_share_what_is_planned() {
    goes_on(true);
}

/// The source fails for one reader while the scan plans more: no reader is counted for ever, so a later fault finds one.
#[test]
fn a_reader_that_fails_is_counted_no_more() {
    loom::model(|| {
        let scan = Scan::new(false);
        let stream = (0..3).find_map(|unit| scan.ahead.note(unit, 1000)).expect("a scan");
        let worker = {
            let scan = scan.clone();
            thread::spawn(move || {
                if scan.ahead.next(stream).is_some() {
                    scan.ahead.failed(stream);
                }
            })
        };
        let joined = scan.ahead.note(5, 1000);
        worker.join().unwrap();
        if let Some(stream) = joined {
            scan.ahead.part(stream);
        }
        let again = (6..20).find_map(|unit| scan.ahead.note(unit, 1000));
        assert!(again.is_some(), "nobody reads, and nobody is asked to");
    });
}
