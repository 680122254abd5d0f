//! The engine against the running kernel, without Python: faults put off, shared descriptors, recycled staging.
//!
//! Each test touches lazy memory in a thread of its own and gives up after ten seconds.

use engine::open::{Owned, engine, open};
use engine::queue::FaultJob;
use engine::region::{Delivery, Mode, OnError, Options};
use engine::reserve::pattern;
use engine::source::Source;
use engine::source::bytes::Bytes;
use engine::source::zero::Zero;
use engine::states::State;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(10);

fn options() -> Options {
    Options {
        delivery: Delivery::Thread,
        unit: 0,
        huge: false,
        resident: 0,
        mode: Mode::Read,
        on_error: OnError::Abort,
        timeout: LIMIT,
        shared: false,
        kind: engine::cause::Kind::Page,
    }
}

/// `None` where userfaultfd is refused: then there is nothing to test, and the test says so.
fn region(source: impl Source + 'static, options: Options) -> Option<Owned> {
    if let Err(error) = engine() {
        eprintln!("skipped: {error}");
        return None;
    }
    Some(open(Arc::new(source), options, None).expect("a sound region"))
}

fn numbered(bytes: usize) -> (Arc<Vec<u8>>, Bytes) {
    let data: Arc<Vec<u8>> = Arc::new((0..bytes).map(|at| (at / 4096 % 251) as u8 + 1).collect());
    // SAFETY: the vector is kept alive by the source and never changed.
    let source = unsafe { Bytes::new(data.as_ptr() as usize, bytes, true, Box::new(data.clone())) };
    (data, source)
}

/// Handlers run on the thread's own stack: the alternate one that Rust's threads have is 8 KiB, of which the kernel's part alone
/// may take half, and code that is not optimized wants more.
fn use_own_stack() {
    // SAFETY: no handler runs on it now; plain data.
    unsafe {
        let mut none: libc::stack_t = std::mem::zeroed();
        none.ss_flags = libc::SS_DISABLE;
        libc::sigaltstack(&raw const none, std::ptr::null_mut());
    }
}

/// Read one byte of lazy memory in a thread of its own.
fn touch(address: usize) -> u8 {
    let (answer, wait) = channel();
    std::thread::spawn(move || {
        use_own_stack();
        // SAFETY: the caller's region is alive and readable.
        let _ = answer.send(unsafe { (address as *const u8).read_volatile() });
    });
    wait.recv_timeout(LIMIT).expect("the touch ends")
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_deferred_fault_is_served_when_its_time_has_come() {
    let (data, source) = numbered(1 << 20);
    let Some(owned) = region(source, options()) else { return };
    let region = owned.get().unwrap();
    assert!(region.states.claim(3, State::Absent));
    region.counters.begin();
    let delay = Duration::from_millis(30);
    let start = Instant::now();
    let page = 3 * region.unit / uffd::page_size();
    let job = FaultJob { region: region.clone(), page, thread: 0, after: Some(start + delay), deferrals: 1 };
    engine().unwrap().queue.push_fault(job);
    until("the fault ends", || region.states.get(3) == State::Present);
    assert!(start.elapsed() >= delay);
    until("it is counted", || region.counters.snapshot().in_flight == 0);
    assert_eq!(region.counters.snapshot().resolved, 1);
    assert_eq!(touch(region.base + 3 * region.unit), data[3 * region.unit]);
    assert_eq!(region.counters.snapshot().faults, 1, "the page was there");
}

#[test]
fn many_regions_share_descriptors_and_each_gives_its_own_bytes() {
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let Some(first) = region(Zero::new(4096), options()) else { return };
    let before = count();
    let regions: Vec<(Arc<Vec<u8>>, Owned)> = (1..200)
        .map(|pages| {
            let (data, source) = numbered(pages * 4096);
            let delivery = if pages % 2 == 0 { Delivery::Thread } else { Delivery::Signal };
            (data, region(source, Options { delivery, unit: 4096, ..options() }).unwrap())
        })
        .collect();
    assert!(count() <= before + 2, "{before} descriptors became {}", count());
    for (data, owned) in &regions {
        let base = owned.get().unwrap().base;
        let last = data.len() - 1;
        assert_eq!((touch(base), touch(base + last)), (data[0], data[last]));
    }
    drop(first);
}

#[test]
fn huge_units_come_from_recycled_staging() {
    let (data, source) = numbered(8 << 20);
    let Some(owned) = region(source, Options { huge: true, ..options() }) else { return };
    let region = owned.get().unwrap().clone();
    if region.stock.is_none() {
        eprintln!("skipped: this kernel has no UFFDIO_MOVE");
        return;
    }
    for round in 0..3 {
        for unit in 0..4 {
            let at = unit * region.unit + round * 4096;
            assert_eq!(touch(region.base + at), data[at]);
        }
        assert_eq!(owned.evict(0..region.len).unwrap(), 4);
        assert_eq!(
            region.stock.as_ref().map_or(0, |stock| stock.populated_slots()),
            4,
            "their pages wait for the next fill"
        );
    }
    assert_eq!(region.counters.snapshot().moved_bytes, 3 * (8 << 20));
}

#[test]
fn closing_with_a_bulk_under_way_ends_at_once_and_another_region_may_follow() {
    for _ in 0..50 {
        let Some(mut owned) = region(Zero::new(64 << 20), Options { unit: 4096, ..options() }) else { return };
        let bulk = owned.fill(0..64 << 20, false).unwrap();
        drop(bulk);
        let start = Instant::now();
        owned.close();
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert!(owned.get().is_err());
    }
}

/// A thread that shows the error pattern may lose its CPU before it has made a note of it.
#[test]
fn populate_waits_for_a_pattern_that_is_not_noted_yet() {
    let (data, source) = numbered(1 << 20);
    let Some(owned) = region(source, options()) else { return };
    let region = owned.get().unwrap().clone();
    region.exposures.begin();
    let copied = region.handles.application.copy(region.base, pattern(), uffd::page_size(), uffd::CopyMode::NONE);
    assert_eq!(copied, uffd::Outcome::Done);
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        assert!(region.exposed.insert(0));
        region.exposures.finish();
    });
    let bulk = owned.fill(0..1 << 20, true).unwrap();
    assert_eq!(bulk.wait(LIMIT), Some(Ok(())));
    assert_eq!(touch(owned.get().unwrap().base), data[0]);
    late.join().unwrap();
}
