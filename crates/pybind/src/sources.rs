//! Native sources as Python names them: opaque handles that `userfault.sources` wraps in picklable objects.

use crate::called::{Called, PythonSource};
use crate::errors::{engine_error, option_error, page_error};
use crate::repeats;
use engine::cause::Kind;
use engine::scratch::Scratch;
use engine::source::bytes::Bytes;
use engine::source::fd::FileHandle;
use engine::source::file::File;
use engine::source::image::ImageSource;
use engine::source::layers::{Chaos, Checksum, Deadline, Retry};
use engine::source::remote::Remote;
use engine::source::zero::Zero;
use engine::source::{Reading, ScratchNeeds, Source};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A source of the engine.
#[pyclass(frozen, module = "userfault._core")]
#[derive(Clone)]
pub struct NativeSource(pub Arc<dyn Source>);

impl NativeSource {
    fn of(source: impl Source + 'static) -> Self {
        Self(Arc::new(source))
    }
}

#[pymethods]
impl NativeSource {
    #[staticmethod]
    fn zero(length: u64) -> Self {
        Self::of(Zero::new(length))
    }

    /// The buffer stays exported as long as the source lives; `heap`: it is that of a bytes or bytearray object.
    #[staticmethod]
    #[pyo3(signature = (buffer, heap))]
    fn bytes(py: Python<'_>, buffer: PyBuffer<u8>, heap: bool) -> PyResult<Self> {
        if !buffer.is_c_contiguous() {
            return Err(option_error(py, "the buffer must be contiguous"));
        }
        let (address, len) = (buffer.buf_ptr() as usize, buffer.len_bytes());
        if let Some(what) = lazy_memory_at(address, len) {
            let text = format!("these bytes are {what}: filling pages from them would fault on itself");
            return Err(option_error(py, &text));
        }
        // SAFETY: the export keeps the bytes where they are until the buffer is dropped, and they are not lazy memory; the
        // caller says `heap` of bytes and bytearray objects only, whose memory the interpreter allocated.
        Ok(Self::of(unsafe { Bytes::new(address, len, heap, Box::new(buffer)) }))
    }

    #[staticmethod]
    #[pyo3(signature = (path, offset, length, seen=None))]
    fn file(py: Python<'_>, path: PathBuf, offset: u64, length: Option<u64>, seen: Option<[u64; 5]>) -> PyResult<Self> {
        let label = path.display().to_string();
        let opened =
            py.detach(|| FileHandle::open_same(&path, seen).and_then(|file| File::new(file, &label, offset, length)));
        opened.map(Self::of).map_err(|error| engine_error(py, error))
    }

    #[staticmethod]
    #[pyo3(signature = (path, seen=None))]
    fn image(py: Python<'_>, path: PathBuf, seen: Option<[u64; 5]>) -> PyResult<Self> {
        let handle = py.detach(|| FileHandle::open_same(&path, seen)).map_err(|error| engine_error(py, error))?;
        let label = path.display().to_string();
        let opened = py.detach(|| ImageSource::open(handle, &label));
        opened.map(Self::of).map_err(|error| crate::image::image_error(py, &error, &label))
    }

    /// Of the bytes that this source gives.
    fn unpacked(&self, py: Python<'_>) -> PyResult<Self> {
        if self.0.needs() != ScratchNeeds::default() {
            return Err(option_error(
                py,
                "an image inside an image is not unpacked: map the outer one and copy the inner one out",
            ));
        }
        let (inner, label) = (self.0.clone(), self.0.name());
        let opened = py.detach(|| ImageSource::inside(inner));
        opened.map(Self::of).map_err(|error| crate::image::image_error(py, &error, &label))
    }

    /// Fill a writable buffer with the bytes from `offset` on.
    #[pyo3(signature = (offset, buffer))]
    fn read_into(&self, py: Python<'_>, offset: u64, buffer: PyBuffer<u8>) -> PyResult<()> {
        if buffer.readonly() || !buffer.is_c_contiguous() {
            return Err(option_error(py, "the buffer must be writable and contiguous"));
        }
        let (address, len) = (buffer.buf_ptr().cast::<u8>(), buffer.len_bytes());
        if offset.checked_add(len as u64).is_none_or(|end| end > self.0.len()) {
            let text =
                format!("{len} bytes at offset {offset} do not lie in the {} bytes of {}", self.0.len(), self.0.name());
            return Err(option_error(py, &text));
        }
        if len == 0 {
            return Ok(());
        }
        // SAFETY: the export keeps these bytes where they are until the buffer is dropped, and the caller gives them away for
        // the call, as with `readinto` of files.
        let out = unsafe { std::slice::from_raw_parts_mut(address, len) };
        let outcome = py.detach(|| {
            let mut scratch = Scratch::new(uffd::page_size(), self.0.needs());
            let outcome = self.0.read_into(offset, out, &mut Reading::plain(&mut scratch));
            repeats::count(scratch.tally.repeated); // of the source that is being read with this one
            outcome
        });
        outcome.map_err(|error| page_error(py, &self.0.name(), &error))
    }

    /// `source`: what `userfault.sources.called` made of it.
    #[staticmethod]
    fn called(source: Called) -> Self {
        Self::of(PythonSource::new(source))
    }

    /// What the owner of a region knows of a source that its pager reads.
    #[staticmethod]
    fn remote(length: u64, name: String, unit: usize) -> Self {
        Self::of(Remote::new(length, name, unit))
    }

    fn retry(&self, attempts: u32, pause_seconds: f64) -> Self {
        Self::of(Retry::new(self.0.clone(), attempts, seconds(pause_seconds)))
    }

    fn deadline(&self, py: Python<'_>, limit_seconds: f64) -> PyResult<Self> {
        if self.0.is_called() {
            let text = "Deadline reads in a thread of its own, where a Python source may not run; userfault.map(timeout=...) is a \
                        deadline for each touch";
            return Err(option_error(py, text));
        }
        Ok(Self::of(Deadline::new(self.0.clone(), seconds(limit_seconds))))
    }

    fn checksum(&self, py: Python<'_>, block: usize, sums: Vec<u64>) -> PyResult<Self> {
        let made = Checksum::new(self.0.clone(), block, sums.into());
        made.map(Self::of).map_err(|text| option_error(py, &text))
    }

    #[pyo3(signature = (fail, delay_seconds, failures))]
    fn chaos(&self, fail: Vec<(u64, u64)>, delay_seconds: f64, failures: Option<i64>) -> Self {
        let fail: Vec<Range<u64>> = fail.into_iter().map(|(start, stop)| start..stop).collect();
        Self::of(Chaos::new(self.0.clone(), fail, seconds(delay_seconds), failures))
    }

    #[getter]
    fn length(&self) -> u64 {
        self.0.len()
    }

    #[getter]
    fn name(&self) -> String {
        self.0.name()
    }

    #[getter]
    fn is_called(&self) -> bool {
        self.0.is_called()
    }

    #[getter]
    fn signal_safe(&self) -> bool {
        self.0.signal_safe()
    }

    #[getter]
    fn preferred_unit(&self) -> usize {
        self.0.preferred_unit()
    }
}

/// Thirty years: added to a moment it is still one.
const LONGEST_SECONDS: f64 = 1e9;

/// A duration from Python seconds, which the caller has checked.
pub fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, LONGEST_SECONDS))
}

/// What lazy memory some bytes lie in, if they do.
fn lazy_memory_at(address: usize, len: usize) -> Option<&'static str> {
    if engine::mman::is_flagged(&(address..address + len)) {
        return Some("flagged or registered memory (userfault.mman)");
    }
    let mut hit = false;
    engine::engine::Engine::current()?.table.for_each(|region| {
        // What stands behind flagged memory is noted with the range that it was made for, and that may be ordinary memory by now.
        let is_here = region.options.kind != Kind::UserFault;
        hit |= is_here && address < region.base + region.mapped && region.base < address + len;
    });
    hit.then_some("lazy memory of a Region")
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<NativeSource>()
}
