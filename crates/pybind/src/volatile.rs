//! Volatile memory as Python calls it. The GIL is released in all of it.

use crate::enter::sheltered;
use crate::errors::{engine_error, option_error};
use crate::region::NativeRegion;
use crate::sources::NativeSource;
use engine::source::volatile::Volatile;
use engine::volatile;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::ops::Range;
use std::sync::Arc;

/// A source for `NativeRegion`: zeros, and lost pages from `refill`.
#[pyfunction]
fn volatile_source(py: Python<'_>, length: u64, refill: Option<PyRef<'_, NativeSource>>) -> PyResult<NativeSource> {
    let made = Volatile::new(length, refill.map(|refill| refill.0.clone()));
    made.map(|source| NativeSource(Arc::new(source))).map_err(|text| option_error(py, &text))
}

#[pyfunction]
fn volatile_unpin(py: Python<'_>, region: &Bound<'_, NativeRegion>, start: usize, stop: usize) -> PyResult<()> {
    region.get().with_lazy(py, move |owned| volatile::unpin(owned.get()?, start..stop)).map(|_| ())
}

/// Numbers of pages, half-open.
type Runs = Vec<(usize, usize)>;

fn runs(found: &[Range<usize>]) -> Runs {
    found.iter().map(|run| (run.start, run.end)).collect()
}

/// Answers the pages that were lost, and those that were volatile.
#[pyfunction]
fn volatile_pin(py: Python<'_>, region: &Bound<'_, NativeRegion>, start: usize, stop: usize) -> PyResult<(Runs, Runs)> {
    let mut raised = None;
    let mut interrupted = || {
        raised = sheltered(|| Python::attach(|py| py.check_signals())).err();
        raised.is_some()
    };
    // Not with the region's lock held: a refill may be slow, and who closes the region waits for it to notice only.
    let Some(kept) = region.get().with_lazy(py, |owned| owned.get().cloned())? else { return Ok(Default::default()) };
    let pinned = sheltered(|| py.detach(|| volatile::pin(&kept, start..stop, &mut interrupted)));
    match (pinned, raised) {
        (Err(_), Some(interrupt)) => Err(interrupt),
        (pinned, _) => {
            let found = pinned.map_err(|error| engine_error(py, error))?;
            Ok((runs(&found.lost), runs(&found.were_volatile)))
        }
    }
}

#[pyfunction]
fn volatile_discard(py: Python<'_>, region: &Bound<'_, NativeRegion>, start: usize, stop: usize) -> PyResult<()> {
    region.get().with_lazy(py, move |owned| volatile::discard(owned.get()?, start..stop)).map(|_| ())
}

/// One byte a page: 0 untouched, 1 pinned, 2 volatile, 3 purged, 4 refilled.
#[pyfunction]
fn volatile_pages<'py>(py: Python<'py>, region: &Bound<'py, NativeRegion>) -> PyResult<Bound<'py, PyBytes>> {
    let states = region.get().with_lazy(py, |owned| volatile::page_states(owned.get()?))?;
    Ok(PyBytes::new(py, &states.unwrap_or_default()))
}

/// A read-only part of a buffer: it lives until its last view is released, and `holder` does with it.
#[pyclass(frozen, module = "userfault._core")]
pub struct Window {
    whole: PyBuffer<u8>,
    part: Range<usize>,
    #[expect(dead_code, reason = "it is there to be dropped")]
    holder: Py<PyAny>,
}

#[pymethods]
impl Window {
    #[new]
    fn new(py: Python<'_>, buffer: PyBuffer<u8>, start: usize, stop: usize, holder: Py<PyAny>) -> PyResult<Self> {
        if !buffer.is_c_contiguous() || start > stop || stop > buffer.len_bytes() {
            return Err(option_error(py, "a window must lie in a contiguous buffer"));
        }
        Ok(Self { whole: buffer, part: start..stop, holder })
    }

    /// # Safety
    /// Called by the interpreter with a valid view.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: std::ffi::c_int) -> PyResult<()> {
        let this = slf.get();
        let address = this.whole.buf_ptr() as usize + this.part.start;
        let (address, len) = (address as *mut std::ffi::c_void, this.part.len() as isize);
        // SAFETY: the view is the interpreter's and keeps this object alive, whose own export keeps the memory mapped.
        if unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), address, len, 1, flags) } != 0 {
            return Err(PyErr::take(slf.py()).unwrap_or_else(|| PyBufferError::new_err("no such view")));
        }
        Ok(())
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Window>()?;
    module.add_function(wrap_pyfunction!(volatile_source, module)?)?;
    module.add_function(wrap_pyfunction!(volatile_unpin, module)?)?;
    module.add_function(wrap_pyfunction!(volatile_pin, module)?)?;
    module.add_function(wrap_pyfunction!(volatile_discard, module)?)?;
    module.add_function(wrap_pyfunction!(volatile_pages, module)?)
}
