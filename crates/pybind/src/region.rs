//! A region as Python holds it: the buffer protocol, and calls that release the GIL before they touch the engine.
//!
//! *Locks*: `memory`, taken only with the GIL released and held for a few instructions, or by `close`. *GIL*: released
//! in everything that waits.

use crate::enter::enter;
use crate::errors::{choice, engine_error, page_error};
use crate::pager::{NativePager, Raised};
use crate::sources::{NativeSource, seconds};
use crate::{helper, own};
use engine::cause::Kind;
use engine::counters::Snapshot;
use engine::error::Error;
use engine::mapping;
use engine::open::{Owned, load_eagerly, open};
use engine::region::{Delivery, Mode, OnError, Options};
use engine::source::bytes::copy_by_kernel;
use engine::source::{Cause, SourceError};
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyBytes, PyDict};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

/// What backs a region.
enum Memory {
    /// Pages arrive when touched.
    Lazy(Owned),
    /// Everything was loaded at the start; address and bytes.
    Eager(usize, usize),
    /// Gone.
    Closed,
}

/// The native half of `userfault.Region`.
#[pyclass(subclass, frozen, module = "userfault._core")]
pub struct NativeRegion {
    memory: RwLock<Memory>,
    /// In which of a line of forked processes it was opened. In a child nothing else is looked at: another thread of the
    /// parent may have held the lock for good.
    generation: u32,
    source_name: String,
    address: usize,
    len: usize,
    unit: usize,
    writable: bool,
    eager: bool,
    kernel_faults: bool,
    exports: AtomicUsize,
    /// Closed as soon as the last view dies.
    closing: AtomicBool,
}

#[pymethods]
impl NativeRegion {
    #[new]
    #[pyo3(signature = (source, *, delivery, unit, huge, resident, mode, on_error, timeout_seconds, shared, eager, served=None))]
    #[expect(clippy::too_many_arguments, reason = "mirrors the keywords of map()")]
    fn new(
        py: Python<'_>,
        source: PyRef<'_, NativeSource>,
        delivery: &str,
        unit: usize,
        huge: bool,
        resident: usize,
        mode: &str,
        on_error: &str,
        timeout_seconds: f64,
        shared: bool,
        eager: bool,
        served: Option<(PyRef<'_, NativePager>, Vec<u8>, String)>,
    ) -> PyResult<Self> {
        let deliveries = [("thread", Delivery::Thread), ("signal", Delivery::Signal), ("process", Delivery::Process)];
        let options = Options {
            delivery: choice(py, "delivery", delivery, &deliveries)?,
            unit,
            huge,
            resident,
            mode: choice(py, "mode", mode, &[("r", Mode::Read), ("c", Mode::Change)])?,
            on_error: choice(py, "on_error", on_error, &[("raise", OnError::Raise), ("abort", OnError::Abort)])?,
            timeout: seconds(timeout_seconds),
            shared,
            kind: Kind::Page,
        };
        let (delivery, writable) = (options.delivery, options.mode == Mode::Change);
        let inner = source.0.clone();
        let (name, length) = (inner.name(), usize::try_from(inner.len()).unwrap_or(usize::MAX));
        if eager {
            let (address, bytes) = py.detach(|| load_eagerly(&*inner)).map_err(|error| engine_error(py, error))?;
            let memory = Memory::Eager(address, bytes);
            return Ok(Self::of(memory, (name, length), address, bytes, writable, true));
        }
        let raised = Raised::default();
        let served =
            served.map(|(pager, source, on_death)| pager.serving(py, source, &on_death, &raised)).transpose()?;
        let opened = py.detach(|| {
            helper::ensure()?;
            open(inner, options, served)
        });
        if let Some(error) = raised.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        let owned = opened.map_err(|error| engine_error(py, error))?;
        let (address, unit, kernel) = match owned.get() {
            Ok(region) => (region.base, region.unit, engine::open::abilities().is_ok_and(|known| known.kernel_faults)),
            Err(error) => return Err(engine_error(py, error)),
        };
        let kernel = kernel && delivery != Delivery::Signal;
        Ok(Self::of(Memory::Lazy(owned), (name, length), address, unit, writable, kernel))
    }

    #[getter]
    fn address(&self) -> usize {
        self.address
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.len
    }

    #[getter]
    fn unit(&self) -> usize {
        self.unit
    }

    #[getter]
    fn kernel_faults(&self) -> bool {
        self.kernel_faults
    }

    #[getter]
    fn is_eager(&self) -> bool {
        self.eager
    }

    #[getter]
    fn views(&self) -> usize {
        self.exports.load(Ordering::Acquire)
    }

    /// "open", "closing", "closed" or "foreign" (of the process this one was forked from).
    #[getter]
    fn state(&self, py: Python<'_>) -> &'static str {
        if self.is_foreign() {
            return "foreign";
        }
        py.detach(|| match &*self.memory.read().unwrap_or_else(PoisonError::into_inner) {
            Memory::Closed => "closed",
            _ if self.closing.load(Ordering::Acquire) => "closing",
            _ => "open",
        })
    }

    fn fill_ahead(&self, py: Python<'_>, start: usize, stop: usize) -> PyResult<()> {
        self.with_lazy(py, move |owned| owned.fill(start..stop, false).map(|_| ())).map(|_| ())
    }

    /// Waits; Ctrl-C is seen every 50 ms.
    fn fill_now(&self, py: Python<'_>, start: usize, stop: usize) -> PyResult<()> {
        if own::is_here(self.address, self.len)
            && let Some(offset) = self.with_lazy(py, |owned| own::first_absent(owned, start..stop))?.flatten()
        {
            return Err(own::refused_read(py, &self.source_name, offset));
        }
        let Some(bulk) = self.with_lazy(py, move |owned| owned.fill(start..stop, true))? else { return Ok(()) };
        loop {
            match py.detach(|| bulk.wait(Duration::from_millis(50))) {
                Some(Ok(())) if bulk.region.is_closing() => {
                    let text = "the Region was closed while it was populated";
                    return Err(engine_error(py, Error::Closed(text.into())));
                }
                Some(Ok(())) => return Ok(()),
                Some(Err(error)) => return Err(page_error(py, &self.source_name, &error)),
                None => py.check_signals().inspect_err(|_| bulk.cancelled.store(true, Ordering::Release))?,
            }
        }
    }

    fn drop_units(&self, py: Python<'_>, start: usize, stop: usize) -> PyResult<usize> {
        Ok(self.with_lazy(py, move |owned| owned.evict(start..stop))?.unwrap_or(0))
    }

    /// Turn failed pages back into holes, now.
    fn rearm(&self, py: Python<'_>) -> PyResult<()> {
        self.with_lazy(py, Owned::rearm).map(|_| ())
    }

    /// A copy, made by the kernel: a page that cannot be had is PageError before any byte is seen.
    fn copy_bytes<'py>(&self, py: Python<'py>, offset: usize, length: usize) -> PyResult<Bound<'py, PyBytes>> {
        for _ in 0..READ_TRIES {
            self.fill_now(py, offset, offset + length)?;
            let mut whole = false;
            let bytes = PyBytes::new_with(py, length, |out| {
                whole = py.detach(|| self.copy_out(offset, out)).map_err(|error| engine_error(py, error))?;
                Ok(())
            })?;
            if whole {
                return Ok(bytes);
            }
        }
        let error = SourceError::new(offset as u64, Cause::Timeout);
        Err(page_error(py, &self.source_name, &error))
    }

    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let taken = self.with_lazy(py, |owned| owned.get().map(|region| region.statistics()))?;
        taken.unwrap_or_else(|| Snapshot::default().fields()).into_py_dict(py)
    }

    /// How a whole unit gets to its place at present, and why so; an eager region has nothing to fill.
    fn filling(&self, py: Python<'_>) -> PyResult<(&'static str, String)> {
        let words = |owned: &Owned| {
            let policy = &owned.get()?.policy;
            Ok((policy.method().name(), policy.why().to_string()))
        };
        Ok(self.with_lazy(py, words)?.unwrap_or(("eager", "everything was loaded at the start".into())))
    }

    /// May a page have shown the error pattern since `failure_epoch` was that?
    fn failed_since(&self, py: Python<'_>, epoch: u64) -> PyResult<bool> {
        let asked = self.with_lazy(py, |owned| owned.get().map(|region| region.exposures.any_since(epoch.into())))?;
        Ok(asked.unwrap_or(false))
    }

    /// One byte a unit: 0 absent, 1 filling, 2 present.
    fn unit_states<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let states =
            self.with_lazy(py, |owned| owned.get().map(|region| region.states.snapshot(0..region.states.len())))?;
        Ok(PyBytes::new(py, &states.unwrap_or_else(|| vec![2; self.len.div_ceil(self.unit)])))
    }

    /// The memory file of a shared region, as this process numbers it.
    fn file_descriptor(&self, py: Python<'_>) -> PyResult<Option<i32>> {
        let number = self.with_lazy(py, |owned| {
            owned.get().map(|region| region.file.as_ref().map(|file| file.number(engine::source::Table::Application)))
        })?;
        Ok(number.flatten())
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        if own::is_here(self.address, self.len) {
            return Err(own::refused_close());
        }
        let views = self.exports.load(Ordering::Acquire);
        if views > 0 && !self.is_foreign() {
            let text = format!("{views} view(s) of this Region are alive; drop them first, or leave its `with` block");
            return Err(PyBufferError::new_err(text));
        }
        if py.detach(|| self.shut()) {
            return Ok(());
        }
        Err(PyBufferError::new_err("a view of this Region was taken at the same moment; drop it first"))
    }

    /// Close now, or when the last view dies.
    fn close_when_free(&self, py: Python<'_>) {
        self.closing.store(true, Ordering::Release);
        py.detach(|| self.shut());
    }

    /// # Safety
    /// Called by the interpreter with a valid view.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: std::ffi::c_int) -> PyResult<()> {
        let this = slf.get();
        // Counted before looking: a close that comes between sees the view, or the look sees the close.
        this.exports.fetch_add(1, Ordering::AcqRel);
        let state = this.state(slf.py());
        if state != "open" {
            this.release(slf.py());
            return Err(PyBufferError::new_err(format!("this Region is {state}: it gives no new views")));
        }
        let (address, len, readonly) =
            (this.address as *mut std::ffi::c_void, this.len as isize, i32::from(!this.writable));
        // SAFETY: the view is the interpreter's; the memory stays mapped while exports are counted.
        if unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), address, len, readonly, flags) } != 0 {
            let error = PyErr::fetch(slf.py());
            this.release(slf.py());
            return Err(error);
        }
        Ok(())
    }

    /// # Safety
    /// Called by the interpreter once for each `__getbuffer__`.
    unsafe fn __releasebuffer__(&self, py: Python<'_>, _view: *mut ffi::Py_buffer) {
        self.release(py);
    }
}

/// How often a read starts over because pages left, or failed for others, meanwhile.
const READ_TRIES: usize = 64;

impl NativeRegion {
    fn of(
        memory: Memory,
        (source_name, len): (String, usize),
        address: usize,
        unit: usize,
        writable: bool,
        kernel_faults: bool,
    ) -> Self {
        let eager = matches!(memory, Memory::Eager(..));
        Self {
            memory: RwLock::new(memory),
            generation: engine::fork::generation(),
            source_name,
            address,
            len,
            unit,
            writable,
            eager,
            kernel_faults,
            exports: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
        }
    }

    /// Do something with the lazy region; `None` for an eager one, which has nothing to do.
    pub(crate) fn with_lazy<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&Owned) -> Result<T, Error> + Send,
    ) -> PyResult<Option<T>> {
        if self.is_foreign() {
            return Err(engine_error(py, engine::open::foreign()));
        }
        py.detach(|| match &*self.memory.read().unwrap_or_else(PoisonError::into_inner) {
            Memory::Lazy(owned) => work(owned).map(Some),
            Memory::Eager(..) => Ok(None),
            Memory::Closed => Err(Error::Closed("the Region is closed".into())),
        })
        .map_err(|error| engine_error(py, error))
    }

    /// Copy out what was populated; false: a page left, or shows another thread's error, so populate again.
    fn copy_out(&self, offset: usize, out: &mut [u8]) -> Result<bool, Error> {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        let region = match &*memory {
            Memory::Lazy(owned) => owned.get()?.clone(),
            Memory::Eager(..) => return Ok(copy_by_kernel(self.address + offset, out).is_ok()),
            Memory::Closed => return Err(Error::Closed("the Region is closed".into())),
        };
        drop(memory); // the pin keeps the pages; a close meanwhile waits for it
        Ok(region.copy_out(offset, out))
    }

    /// Of the process this one was forked from? Eager memory is inherited as any other.
    fn is_foreign(&self) -> bool {
        !self.eager && self.generation != engine::fork::generation()
    }

    /// A view is gone, or was not to be.
    fn release(&self, py: Python<'_>) {
        if self.exports.fetch_sub(1, Ordering::AcqRel) == 1 && self.closing.load(Ordering::Acquire) {
            py.detach(|| self.shut());
        }
    }

    /// Close, unless there are views: false. What takes time is done after the lock was given back.
    fn shut(&self) -> bool {
        if self.is_foreign() {
            return true; // nothing of it is here
        }
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        if self.exports.load(Ordering::Acquire) > 0 {
            return false;
        }
        let was = std::mem::replace(&mut *memory, Memory::Closed);
        drop(memory);
        match was {
            Memory::Lazy(mut owned) => owned.close(),
            Memory::Eager(address, bytes) => mapping::unmap(address, bytes),
            Memory::Closed => {}
        }
        true
    }
}

impl Drop for NativeRegion {
    fn drop(&mut self) {
        // Deallocation happens with the GIL held; what waits for the engine must not.
        if enter(|py| py.detach(|| self.shut())).is_none() {
            self.shut();
        }
    }
}

/// Does userfaultfd work for this process at all? Raises what `map()` would raise.
#[pyfunction]
fn start_engine(py: Python<'_>) -> PyResult<()> {
    py.detach(|| engine::open::engine().map(|_| ())).map_err(|error| engine_error(py, error))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<NativeRegion>()?;
    module.add_function(wrap_pyfunction!(start_engine, module)?)
}
