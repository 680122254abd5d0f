//! Threads of Python's own that read Python sources for the engine's threads, which may not: they have other descriptors, and
//! no thread state. `userfault.sources.readers` starts them.
//!
//! *Locks*: the list of a pool, for a few instructions without the GIL. *GIL*: released while a reader waits.
//! *Blocks on*: an engine thread waits for its answer, but not beyond its limit: a source that hangs keeps a reader, no fault.

use crate::called::{self, Reader};
use engine::futex::{self, Bell};
use engine::source::{Cause, SourceError};
use pyo3::prelude::*;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One read.
struct Request {
    reader: Arc<Reader>,
    offset: u64,
    length: usize,
    done: AtomicU32,
    /// Nobody waits for it any more.
    given_up: AtomicBool,
    answer: Mutex<Option<Result<Vec<u8>, SourceError>>>,
}

/// What a reader does.
enum Work {
    Read(Arc<Request>),
    /// A source is let go by a thread in which its `close` cannot be called.
    Close(Py<PyAny>),
}

/// Readers and their work, of one process.
struct Pool {
    generation: u32,
    waiting: Mutex<VecDeque<Work>>,
    bell: Bell,
    /// Readers that wait for work.
    idle: AtomicUsize,
    stopped: AtomicBool,
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
            stopped: AtomicBool::new(false),
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

/// Have a reader call `close`; nobody waits for it.
pub fn close(close: Py<PyAny>) {
    push(pool(), Work::Close(close));
}

/// Have a reader read, and wait for it; engine threads.
pub fn read(reader: &Arc<Reader>, offset: u64, out: &mut [u8], limit: Duration) -> Result<(), SourceError> {
    let pool = pool();
    let failed = |cause| Err(SourceError::new(offset, cause));
    let request = Arc::new(Request {
        reader: reader.clone(),
        offset,
        length: out.len(),
        done: AtomicU32::new(0),
        given_up: AtomicBool::new(false),
        answer: Mutex::default(),
    });
    push(pool, Work::Read(request.clone()));
    let began = Instant::now();
    while request.done.load(Ordering::Acquire) == 0 {
        let left = limit.saturating_sub(began.elapsed());
        if left.is_zero() || pool.stopped.load(Ordering::Acquire) {
            request.given_up.store(true, Ordering::Release);
            return failed(if left.is_zero() { Cause::Timeout } else { Cause::Os(libc::ESHUTDOWN) });
        }
        futex::wait(&request.done, 0, Some(left.min(Duration::from_secs(1))));
    }
    match request.answer.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(answer) => answer.map(|bytes| out.copy_from_slice(&bytes)),
        None => failed(Cause::Short),
    }
}

/// Wait for a read and do it; `start_another` is called first when there are more and nobody else has time. False: the
/// interpreter is about to end.
#[pyfunction]
fn serve_read(py: Python<'_>, start_another: Bound<'_, PyAny>) -> PyResult<bool> {
    let pool = pool();
    let Some((work, is_last)) = py.detach(|| next(pool)) else { return Ok(false) };
    if is_last && let Err(error) = start_another.call0() {
        error.write_unraisable(py, None); // those there are do the work
    }
    let request = match work {
        Work::Read(request) => request,
        Work::Close(close) => {
            called::close(py, &close);
            return Ok(true);
        }
    };
    if !request.given_up.load(Ordering::Acquire) {
        let mut bytes = vec![0; request.length];
        let answer = request.reader.read(py, request.offset, &mut bytes).map(|()| bytes);
        *request.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
    }
    request.done.store(1, Ordering::Release);
    futex::wake_all(&request.done);
    Ok(true)
}

/// Work, and whether more of it waits while nobody is idle.
fn next(pool: &'static Pool) -> Option<(Work, bool)> {
    loop {
        let rung = pool.bell.rung();
        if pool.stopped.load(Ordering::Acquire) {
            return None;
        }
        let mut waiting = pool.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(work) = waiting.pop_front() {
            return Some((work, !waiting.is_empty() && pool.idle.load(Ordering::SeqCst) == 0));
        }
        drop(waiting);
        pool.idle.fetch_add(1, Ordering::SeqCst);
        pool.bell.wait(rung, None);
        pool.idle.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How long the end of the interpreter waits for readers that sleep in here.
const PATIENCE: Duration = Duration::from_secs(1);

/// Before the interpreter is finalized: its readers must not be in here when it takes their thread states away.
pub fn stop(py: Python<'_>) {
    let pool = pool();
    pool.stopped.store(true, Ordering::SeqCst);
    let began = Instant::now();
    py.detach(|| {
        while pool.idle.load(Ordering::SeqCst) > 0 && began.elapsed() < PATIENCE {
            pool.bell.ring_all();
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(serve_read, module)?)
}
