//! Sources that are Python: the engine calls them where Python may run, in the thread that touched or on a worker.
//!
//! *Locks*: those of `buffers` and `raised`. *GIL*: taken by every read; a thread that holds it already, as a toucher does, keeps it.

use crate::enter::enter;
use crate::raised::{self, By};
use crate::{buffers, gil, kept, later, overdue, readers, repeats};
use engine::source::{Cause, Latency, Reading, Source, SourceError, Table};
use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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
pub struct PythonSource(Arc<Reader>);

/// What reads it; a read that nobody waits for any more may outlive the source.
pub struct Reader {
    called: Called,
}

impl PythonSource {
    /// Open it.
    pub fn new(called: Called) -> Self {
        Self(Arc::new(Reader { called }))
    }
}

impl Reader {
    /// Read, in a thread that may run Python.
    pub fn read(&self, py: Python<'_>, offset: u64, out: &mut [u8], by: By) -> Result<(), SourceError> {
        // SAFETY: the GIL is held. The interrupted code may be about to handle an exception: it gets it back at the end.
        let _pending = unsafe { Pending::set_aside() };
        self.call(py, offset, out).unwrap_or_else(|error| Err(SourceError::new(offset, raised::keep(py, error, by))))
    }

    fn call(&self, py: Python<'_>, offset: u64, out: &mut [u8]) -> PyResult<Result<(), SourceError>> {
        let buffer = buffers::take(py, out.len())?;
        let view = PyMemoryView::from(&buffer)?;
        let answer = raised::surfaced(py, offset, self.called.read_into.call1(py, (offset, &view)));
        // Whoever kept a view of the view refers to the buffer with it: then it is not used again.
        let released = view.call_method0("release").is_ok();
        // SAFETY: the GIL is held, and the reference is ours.
        let is_free = released && unsafe { ffi::Py_REFCNT(buffer.as_ptr()) } == 1;
        let filled = match answer? {
            Ok(filled) => filled,
            Err(error) => return Ok(Err(error)),
        };
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
            buffers::put_back(buffer);
        }
        Ok(Ok(()))
    }
}

fn wrong_answer(answer: &Bound<'_, PyAny>, length: usize) -> PyErr {
    if answer.hasattr("__await__").unwrap_or(false) {
        let _ = answer.call_method0("close"); // else Python warns that nobody awaited it
        return PyTypeError::new_err(
            "read_into returned a coroutine: make it `async def read_into`, then it is awaited",
        );
    }
    let given = answer.repr().map_or_else(|_| "something odd".into(), |text| text.to_string());
    PyTypeError::new_err(format!(
        "read_into must return None (the buffer is full) or how many bytes it filled, at most {length}; it returned {given}"
    ))
}

impl Source for PythonSource {
    fn len(&self) -> u64 {
        self.0.called.length
    }

    fn read_into(&self, offset: u64, out: &mut [u8], how: &mut Reading<'_>) -> Result<(), SourceError> {
        if gil::is_finalizing() {
            return Err(SourceError::new(offset, Cause::Os(libc::ESHUTDOWN)));
        }
        if how.table == Table::Engine {
            let (reader, length) = (self.0.clone(), out.len());
            let own = how.own.0..how.own.1;
            let repeated = Arc::new(AtomicUsize::new(0));
            let theirs = repeated.clone();
            let read = move |py: Python<'_>| {
                let _running = engine::nest::begin(engine::threads::thread_id(), &own);
                let mut bytes = vec![0; length];
                let (outcome, count) = repeats::of(|| reader.read(py, offset, &mut bytes, By::Library));
                theirs.store(count, Ordering::Relaxed); // before the answer
                outcome.map(|()| bytes)
            };
            let answer = readers::call(offset, how.limit, read);
            how.scratch.tally.repeated += repeated.load(Ordering::Relaxed);
            out.copy_from_slice(&answer?);
            return Ok(());
        }
        let read = enter(|py| {
            let watched = overdue::watch(how.limit);
            let (read, repeated) = repeats::of(|| self.0.read(py, offset, out, By::Toucher));
            how.scratch.tally.repeated += repeated;
            match read {
                Err(error) if watched.end() && kept::itself_of(py, error.cause).is_none() => {
                    Err(SourceError::new(offset, Cause::Timeout))
                }
                read => read,
            }
        });
        read.unwrap_or(Err(SourceError::new(offset, Cause::Os(libc::ESHUTDOWN))))
    }

    fn name(&self) -> String {
        self.0.called.name.clone()
    }

    fn preferred_unit(&self) -> usize {
        self.0.called.unit
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
        self.0.called.readahead
    }

    fn is_called(&self) -> bool {
        true
    }

    fn piece(&self) -> usize {
        self.0.called.piece
    }

    fn hint(&self, bytes: Range<u64>) {
        let Some(hint) = &self.0.called.prefetch_hint else { return };
        enter(|py| {
            // SAFETY: the GIL is held.
            let _pending = unsafe { Pending::set_aside() };
            later::call(py, Some(hint.bind(py)), || hint.call1(py, (bytes.start, bytes.end - bytes.start)));
        });
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if gil::is_finalizing() {
            return; // the interpreter ends: what the source has, it loses anyway
        }
        enter(|py| {
            // An error of this thread that has not surfaced yet would surface in `close`, and be lost there.
            if engine::latch::is_this_latched() {
                let callable = self.called.close.clone_ref(py);
                return readers::leave(move |py| close(py, &callable));
            }
            // SAFETY: the GIL is held.
            let _pending = unsafe { Pending::set_aside() };
            close(py, &self.called.close);
        });
    }
}

/// Call `Source.close`, or what counts for it.
fn close(py: Python<'_>, close: &Py<PyAny>) {
    later::call(py, None, || close.call0(py));
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
