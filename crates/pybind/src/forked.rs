//! The userfaultfd of a forked child that follows, for Python: `userfault.mman` gives it its name.
//!
//! *GIL*: released in everything that waits.

use crate::enter::enter;
use crate::errors::{closed, os_error};
use engine::mman::{self, Mman, forked::Forked};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::sync::Arc;
use std::time::Duration;
use uffd::Errno;

/// A blocked call looks for Ctrl-C this often; a signal to its own thread wakes it at once.
pub const LOOK: Duration = Duration::from_millis(50);

/// The native half of `userfault.mman.ForkedUserfaultfd`.
#[pyclass(frozen, module = "userfault._core")]
pub struct NativeForkedUserfaultfd {
    inner: Arc<Forked>,
    generation: u32,
}

impl NativeForkedUserfaultfd {
    pub fn of(inner: Arc<Forked>) -> Self {
        Self { inner, generation: engine::fork::generation() }
    }

    fn room(&self) -> PyResult<&'static Mman> {
        let ours = mman::current().filter(|_| self.generation == engine::fork::generation());
        ours.ok_or_else(|| PyValueError::new_err("a userfaultfd of the process this one was forked from"))
    }

    fn refused(&self, what: &str, errno: Errno) -> PyErr {
        match errno {
            Errno(libc::EBADF) => closed(),
            errno => os_error(errno, &format!("{what} of the userfaultfd of a forked child")),
        }
    }

    fn page(address: usize) -> usize {
        address / uffd::page_size() * uffd::page_size()
    }
}

#[pymethods]
impl NativeForkedUserfaultfd {
    /// Unique in this process.
    #[getter]
    fn ident(&self) -> u64 {
        self.inner.id
    }

    /// The next address.
    fn read_fault(&self, py: Python<'_>) -> PyResult<usize> {
        self.room()?;
        loop {
            let rung = self.inner.rung();
            match self.inner.read() {
                Err(Errno(libc::EAGAIN)) => {}
                answer => return answer.map_err(|errno| self.refused("read", errno)),
            }
            py.detach(|| self.inner.wait(rung, LOOK));
            py.check_signals()?;
        }
    }

    /// Fill whole pages with a copy of `data`.
    fn fill(&self, py: Python<'_>, address: usize, data: &[u8]) -> PyResult<usize> {
        let mman = self.room()?;
        if data.is_empty() || !data.len().is_multiple_of(uffd::page_size()) {
            let text = format!("{} bytes are no whole number of pages of {}", data.len(), uffd::page_size());
            return Err(PyValueError::new_err(text));
        }
        // A copy of our own: the caller's may be lazy memory, and the engine's thread must not wait for that.
        let (start, data, inner) = (Self::page(address), data.to_vec(), self.inner.clone());
        let filled = py.detach(|| mman.engine.root.run(move || inner.fill(start, &data)));
        filled.map_err(|errno| self.refused("fill", errno))
    }

    /// Have those in the range ask again.
    fn wake(&self, py: Python<'_>, address: usize, length: usize) -> PyResult<()> {
        let mman = self.room()?;
        if length == 0 || !length.is_multiple_of(uffd::page_size()) {
            return Err(PyValueError::new_err(format!("{length} bytes are no whole number of pages")));
        }
        let (start, inner) = (Self::page(address), self.inner.clone());
        let woken = py.detach(|| mman.engine.root.run(move || inner.wake(&(start..start.saturating_add(length)))));
        woken.map_err(|errno| self.refused("wake", errno))
    }

    /// Closed here, child gone, unread faults.
    fn standing(&self) -> (bool, bool, usize) {
        self.inner.standing()
    }

    fn close(&self, py: Python<'_>) {
        if let Ok(mman) = self.room() {
            py.detach(|| mman.close_forked(&self.inner));
        }
    }
}

impl Drop for NativeForkedUserfaultfd {
    fn drop(&mut self) {
        if let Ok(mman) = self.room() {
            let inner = &self.inner;
            let done = enter(|py| py.detach(|| mman.close_forked(inner)));
            if done.is_none() {
                mman.close_forked(inner);
            }
        }
    }
}
