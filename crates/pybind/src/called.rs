//! Sources that are Python: the engine calls them where Python may run, in the thread that touched or on a worker.
//!
//! *Locks*: `spare` and `RAISED`, taken only with the GIL held, for a few instructions in which no Python runs.
//! *GIL*: taken by every read; a thread that holds it already, as a toucher does, keeps it.

use engine::cause::Raised;
use engine::source::{Cause, Latency, Reading, Source, SourceError};
use pyo3::exceptions::{PyKeyboardInterrupt, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyMemoryView};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// What Python says of a source when it is opened.
#[derive(FromPyObject)]
pub struct Called {
    /// `read_into(offset, buffer)`.
    read_into: Py<PyAny>,
    /// `prefetch_hint(offset, length)`, or None.
    prefetch_hint: Option<Py<PyAny>>,
    /// Called once, when nothing reads it any more.
    close: Py<PyAny>,
    length: u64,
    name: String,
    /// 0: no wish.
    unit: usize,
    /// 0: no wish.
    piece: usize,
    readahead: bool,
}

/// The source.
pub struct PythonSource {
    called: Called,
    /// Buffers that nobody else refers to, for the next reads.
    spare: Mutex<Vec<Py<PyByteArray>>>,
}

/// Buffers kept.
const SPARE: usize = 8;
/// What a source leaves unwritten reads as the error pattern does: never as zeros, never as other pages.
const UNWRITTEN: u8 = 0xFF;

impl PythonSource {
    /// Open it.
    pub fn new(called: Called) -> Self {
        Self { called, spare: Mutex::default() }
    }

    fn buffer<'py>(&self, py: Python<'py>, length: usize) -> Bound<'py, PyByteArray> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare
            .map(|buffer| buffer.into_bound(py))
            .filter(|buffer| buffer.len() == length)
            .unwrap_or_else(|| PyByteArray::new(py, &vec![UNWRITTEN; length]))
    }

    fn put_back(&self, buffer: Bound<'_, PyByteArray>) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE {
            spare.push(buffer.unbind());
        }
    }

    fn read(&self, py: Python<'_>, offset: u64, out: &mut [u8]) -> PyResult<Result<(), SourceError>> {
        let buffer = self.buffer(py, out.len());
        // SAFETY: the GIL is held, and nobody else refers to the buffer yet.
        unsafe { buffer.as_bytes_mut() }.fill(UNWRITTEN);
        let view = PyMemoryView::from(&buffer)?;
        let answer = self.called.read_into.call1(py, (offset, &view));
        // Whoever kept a part of the view keeps the buffer with it: then it is not used again.
        let is_free = view.call_method0("release").is_ok();
        let filled = answer?;
        let short = match filled.bind(py) {
            none if none.is_none() => None,
            count => match count.extract::<usize>() {
                Ok(count) if count <= out.len() => (count < out.len()).then_some(count),
                _ => return Err(wrong_answer(count, out.len())),
            },
        };
        if let Some(count) = short {
            return Ok(Err(SourceError::new(offset + count as u64, Cause::Short)));
        }
        // SAFETY: the GIL is held for the copy; the length was checked when the buffer was made, and cannot change while
        // views of it exist, nor has anybody else it when there are none.
        let bytes = unsafe { buffer.as_bytes() };
        if bytes.len() != out.len() {
            return Ok(Err(SourceError::new(offset, Cause::Short)));
        }
        out.copy_from_slice(bytes);
        if is_free {
            self.put_back(buffer);
        }
        Ok(Ok(()))
    }
}

fn wrong_answer(answer: &Bound<'_, PyAny>, length: usize) -> PyErr {
    let given = answer.repr().map_or_else(|_| "something odd".into(), |text| text.to_string());
    PyTypeError::new_err(format!(
        "read_into must return None (the buffer is full) or how many bytes it filled, at most {length}; it returned {given}"
    ))
}

impl Source for PythonSource {
    fn len(&self) -> u64 {
        self.called.length
    }

    fn read_into(&self, offset: u64, out: &mut [u8], _how: &mut Reading<'_>) -> Result<(), SourceError> {
        let failed = |cause| Err(SourceError::new(offset, cause));
        if STOPPED.load(Ordering::Acquire) {
            return failed(Cause::Os(libc::ESHUTDOWN));
        }
        let outcome = Python::try_attach(|py| {
            // SAFETY: the GIL is held. The interrupted code may be about to handle an exception: it gets it back below.
            let pending = unsafe { Pending::set_aside() };
            let outcome = match self.read(py, offset, out) {
                Ok(outcome) => outcome,
                Err(error) => failed(keep(py, error)),
            };
            drop(pending);
            outcome
        });
        outcome.unwrap_or_else(|| failed(Cause::Os(libc::ESHUTDOWN)))
    }

    fn name(&self) -> String {
        self.called.name.clone()
    }

    fn preferred_unit(&self) -> usize {
        self.called.unit
    }

    fn latency(&self) -> Latency {
        Latency::MayBlock
    }

    fn signal_unsafe_reason(&self) -> String {
        "a Python source behind a layer of the engine".into()
    }

    /// In the middle of a touch Python may run, where native code that waits or allocates may not: the touch is a
    /// synchronous trap, so its thread is inside no allocator and holds no lock of ours.
    fn signal_safe(&self) -> bool {
        true
    }

    fn readahead_helps(&self) -> bool {
        self.called.readahead
    }

    fn is_called(&self) -> bool {
        true
    }

    fn piece(&self) -> usize {
        self.called.piece
    }

    fn hint(&self, bytes: Range<u64>) {
        let Some(hint) = &self.called.prefetch_hint else { return };
        Python::try_attach(|py| {
            if let Err(error) = hint.call1(py, (bytes.start, bytes.end - bytes.start)) {
                error.write_unraisable(py, Some(hint.bind(py)));
            }
        });
    }
}

impl Drop for PythonSource {
    fn drop(&mut self) {
        if STOPPED.load(Ordering::Acquire) {
            return; // the interpreter ends: what the source has, it loses anyway
        }
        Python::try_attach(|py| {
            if let Err(error) = self.called.close.call0(py) {
                error.write_unraisable(py, None);
            }
        });
    }
}

/// The exception that the interrupted code may be about to handle.
struct Pending([*mut ffi::PyObject; 3]);

impl Pending {
    /// # Safety
    /// The GIL is held, now and when this is dropped.
    unsafe fn set_aside() -> Self {
        let mut parts = [std::ptr::null_mut(); 3];
        let [kind, value, trace] = &mut parts;
        // SAFETY: as the caller promises.
        unsafe { ffi::PyErr_Fetch(kind, value, trace) };
        Self(parts)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let [kind, value, trace] = self.0;
        // SAFETY: `set_aside` was promised the GIL here; the references are the ones that it took.
        unsafe { ffi::PyErr_Restore(kind, value, trace) };
    }
}

/// The interpreter is about to end: no source is called any more.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// Exceptions kept for the `PageError` that is made of them later.
const KEPT: usize = 64;

struct Kept {
    next: u32,
    errors: VecDeque<(u32, Py<PyAny>)>,
}

static RAISED: Mutex<Kept> = Mutex::new(Kept { next: 0, errors: VecDeque::new() });

/// Keep an exception of a source. Ctrl-C inside of a source goes on at the touch: as itself, not as a PageError.
fn keep(py: Python<'_>, error: PyErr) -> Cause {
    // SAFETY: getpid has no preconditions.
    let is_main = engine::threads::thread_id() == unsafe { libc::getpid() };
    if is_main && error.is_instance_of::<PyKeyboardInterrupt>(py) {
        // SAFETY: has no preconditions; the main thread raises KeyboardInterrupt at its next chance.
        unsafe { ffi::PyErr_SetInterrupt() };
        return Cause::Interrupted;
    }
    let transient = is_transient(py, &error);
    let value = error.into_value(py).into_any();
    let mut kept = RAISED.lock().unwrap_or_else(PoisonError::into_inner);
    let ticket = kept.next;
    kept.next = kept.next.wrapping_add(1);
    let oldest = if kept.errors.len() >= KEPT { kept.errors.pop_front() } else { None };
    kept.errors.push_back((ticket, value));
    drop(kept);
    drop(oldest); // last: what its destructors do must not find the lock taken
    Cause::Raised(Raised { ticket, transient })
}

/// Might the same read succeed a moment later? An exception may say so itself, by an attribute `transient`.
fn is_transient(py: Python<'_>, error: &PyErr) -> bool {
    use pyo3::exceptions::{PyConnectionError, PyInterruptedError, PyTimeoutError};
    if let Ok(said) = error.value(py).getattr("transient").and_then(|said| said.is_truthy()) {
        return said;
    }
    let errno = error.value(py).getattr("errno").and_then(|errno| errno.extract::<i32>());
    error.is_instance_of::<PyConnectionError>(py)
        || error.is_instance_of::<PyTimeoutError>(py)
        || error.is_instance_of::<PyInterruptedError>(py)
        || errno.is_ok_and(|errno| Cause::Os(errno).is_transient())
}

/// What was kept under a ticket, unless many others came since.
pub fn kept(py: Python<'_>, raised: Raised) -> Option<Py<PyAny>> {
    let kept = RAISED.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, error) = kept.errors.iter().find(|(ticket, _)| *ticket == raised.ticket)?;
    Some(error.clone_ref(py))
}

/// Before the interpreter is finalized (an atexit hook).
pub fn stop() {
    STOPPED.store(true, Ordering::Release);
}
