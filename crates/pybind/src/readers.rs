//! Threads of Python's own that read Python sources for the engine's threads, which may not: they have other descriptors, and
//! no thread state. `userfault.sources.readers` starts them.
//!
//! *Locks*: the list of a pool, for a few instructions without the GIL. *GIL*: released while a reader waits.
//! *Blocks on*: an engine thread waits for its answer, but not beyond its limit: a source that hangs keeps a reader, no fault.

use crate::{enter, gil, surface};
use engine::futex::{self, Bell};
use engine::source::{Cause, SourceError};
use pyo3::prelude::*;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

type Answer = Result<Vec<u8>, SourceError>;
type Work = Box<dyn FnOnce(Python<'_>) + Send>;

/// Where a reader puts what an engine thread waits for.
#[derive(Default)]
struct Desk {
    done: AtomicU32,
    /// Nobody waits any more.
    given_up: AtomicBool,
    answer: Mutex<Option<Answer>>,
}

/// Readers and their work, of one process.
struct Pool {
    generation: u32,
    waiting: Mutex<VecDeque<Work>>,
    bell: Bell,
    /// Readers that wait for work.
    idle: AtomicUsize,
    /// Readers that do some.
    busy: AtomicUsize,
}

static POOL: AtomicPtr<Pool> = AtomicPtr::new(std::ptr::null_mut());

/// That of this process: a forked child has none of its parent's threads, and may find its locks taken for good.
fn pool() -> &'static Pool {
    let generation = engine::fork::generation();
    loop {
        let current = POOL.load(Ordering::Acquire);
        // SAFETY: null, or a leaked box.
        if let Some(pool) = unsafe { current.as_ref() }.filter(|pool| pool.generation == generation) {
            return pool;
        }
        let fresh = Box::into_raw(Box::new(Pool {
            generation,
            waiting: Mutex::default(),
            bell: Bell::new(),
            idle: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
        }));
        if POOL.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            // SAFETY: nobody else has seen it.
            drop(unsafe { Box::from_raw(fresh) });
        }
    }
}

fn push(pool: &Pool, work: Work) {
    pool.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(work);
    pool.bell.ring();
}

/// Have a reader do `work`; nobody waits for it.
pub fn leave(work: impl FnOnce(Python<'_>) + Send + 'static) {
    push(pool(), Box::new(work));
}

/// How often whoever waits looks whether the interpreter ends, and its readers with it.
const LOOK: Duration = Duration::from_millis(100);

/// Have a reader do `work`, and wait for its answer; engine threads. `offset`: what it is about.
pub fn call(offset: u64, limit: Duration, work: impl FnOnce(Python<'_>) -> Answer + Send + 'static) -> Answer {
    let (pool, desk) = (pool(), Arc::new(Desk::default()));
    let theirs = desk.clone();
    let serve = move |py: Python<'_>| {
        if !theirs.given_up.load(Ordering::Acquire) {
            let answer = work(py);
            *theirs.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        }
        theirs.done.store(1, Ordering::Release);
        futex::wake_all(&theirs.done);
    };
    push(pool, Box::new(serve));
    let failed = |cause| Err(SourceError::new(offset, cause));
    let began = Instant::now();
    while desk.done.load(Ordering::Acquire) == 0 {
        let left = limit.saturating_sub(began.elapsed());
        if left.is_zero() || gil::is_finalizing() {
            desk.given_up.store(true, Ordering::Release);
            return failed(if left.is_zero() { Cause::Timeout } else { Cause::Os(libc::ESHUTDOWN) });
        }
        futex::wait(&desk.done, 0, Some(left.min(LOOK)));
    }
    let answer = desk.answer.lock().unwrap_or_else(PoisonError::into_inner).take();
    answer.unwrap_or_else(|| failed(Cause::Short))
}

/// Wait for work and do it; where nobody waits for more, `start_another` is called first with the number of those who work: it may
/// take long, and what comes meanwhile is not to wait for it.
#[pyfunction]
fn serve_read(py: Python<'_>, start_another: Bound<'_, PyAny>) {
    let pool = pool();
    let work = py.detach(|| next(pool));
    let busy = pool.busy.fetch_add(1, Ordering::SeqCst) + 1;
    enter::sheltered(|| {
        if pool.idle.load(Ordering::SeqCst) == 0
            && let Err(error) = start_another.call1((busy,))
        {
            error.write_unraisable(py, None); // those there are do the work
        }
        work(py);
    });
    pool.busy.fetch_sub(1, Ordering::SeqCst);
    if engine::latch::pending().is_some() {
        // Of a finalizer or a `close` that touched lazy memory: it would end this thread, which others need.
        surface::take_pending(py).write_unraisable(py, None);
    }
}

fn next(pool: &'static Pool) -> Work {
    loop {
        let rung = pool.bell.rung();
        let mut waiting = pool.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(work) = waiting.pop_front() {
            return work;
        }
        drop(waiting);
        pool.idle.fetch_add(1, Ordering::SeqCst);
        pool.bell.wait(rung, None);
        pool.idle.fetch_sub(1, Ordering::SeqCst);
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(serve_read, module)?)
}
