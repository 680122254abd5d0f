//! The reader of faults against law 1: the thread that faults may hold malloc's lock, so the reader must not want it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use engine::open::{engine, open};
use engine::region::{Delivery, Mode, OnError, Options};
use engine::source::zero::Zero;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

/// The thread that is watched, and how often it allocated.
static WATCHED: AtomicI32 = AtomicI32::new(0);
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: the system's allocator does the work; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if WATCHED.load(Ordering::Relaxed) == engine::threads::thread_id() {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The id of the engine's thread of this name.
fn thread_named(wanted: &str) -> i32 {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap().file_name());
    let mut ids = threads.map(|id| id.into_string().unwrap());
    let named = |id: &String| std::fs::read_to_string(format!("/proc/self/task/{id}/comm")).unwrap().trim() == wanted;
    ids.find(named).expect("the engine's thread runs").parse().unwrap()
}

#[test]
fn faults_of_ever_other_threads_are_served_without_an_allocation_by_their_reader() {
    if let Err(error) = engine() {
        eprintln!("skipped: {error}");
        return;
    }
    let options = Options {
        delivery: Delivery::Thread,
        unit: 4096,
        huge: false,
        resident: 0,
        mode: Mode::Read,
        on_error: OnError::Abort,
        timeout: Duration::from_secs(10),
        shared: false,
        kind: engine::cause::Kind::Page,
    };
    let owned = open(Arc::new(Zero::new(64 * 4096)), options, None).unwrap();
    let base = owned.get().unwrap().base;
    let touch = |page: usize| {
        let (answer, wait) = channel();
        std::thread::spawn(move || {
            // SAFETY: the region is alive and readable.
            let _ = answer.send(unsafe { ((base + page * 4096) as *const u8).read_volatile() });
        });
        assert_eq!(wait.recv_timeout(Duration::from_secs(10)), Ok(0));
    };
    touch(0);
    WATCHED.store(thread_named("userfault-read"), Ordering::SeqCst);
    (1..64).for_each(touch);
    assert!(owned.get().unwrap().counters.snapshot().resolved >= 63, "the last may not be counted yet");
    WATCHED.store(0, Ordering::SeqCst);
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst), 0);
}
