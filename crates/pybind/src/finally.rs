//! What has to be done whatever comes, as a `with` block or as long as something lives. Python's own `finally` has gaps: an
//! exception from outside (Ctrl-C, another thread's) may come after any call, the one that was to clean up too. Here a call goes on
//! a list in one step that nothing comes between, and somebody does it then.
//!
//! *Locks*: none. *GIL*: held. *Blocks on*: what it is told to call.

use crate::enter::sheltered;
use crate::later;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use std::sync::atomic::{AtomicU8, Ordering};

const NEW: u8 = 0;
const ENTERED: u8 = 1;
const OVER: u8 = 2;

/// Ends with the block, or with its life, once.
#[pyclass(frozen, module = "userfault._core")]
pub struct Finally {
    end: Py<PyAny>,
    append: Py<PyAny>,
    after: Py<PyAny>,
    begin: Py<PyAny>,
    phase: AtomicU8,
}

#[pymethods]
impl Finally {
    #[new]
    fn new(end: Py<PyAny>, calls: &Bound<'_, PyAny>, after: Py<PyAny>, begin: Py<PyAny>) -> PyResult<Self> {
        // Here, and no name that is made once for all: were it being made at a fork, the child would wait for it for ever.
        let append = calls.getattr("append")?.unbind();
        Ok(Self { end, append, after, begin, phase: AtomicU8::new(NEW) })
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        if self.phase.compare_exchange(NEW, ENTERED, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return Err(PyRuntimeError::new_err(
                "a block like this is entered once: call the method again for another one",
            ));
        }
        sheltered(|| self.begin.call0(py)).inspect_err(|_| drop(self.finish(py)))
    }

    fn __exit__(&self, py: Python<'_>, _kind: Py<PyAny>, _error: Py<PyAny>, _trace: Py<PyAny>) -> PyResult<bool> {
        self.finish(py).map(|()| false)
    }
}

impl Finally {
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        if self.phase.swap(OVER, Ordering::Relaxed) == OVER {
            return Ok(());
        }
        sheltered(|| self.append.call1(py, (&self.end,)))?;
        let after = || sheltered(|| self.after.call0(py)).map(drop);
        // One exception from outside ends it at most: then it is called once more.
        after().inspect_err(|_| drop(after()))
    }
}

impl Drop for Finally {
    fn drop(&mut self) {
        Python::try_attach(|py| {
            let raised = PyErr::take(py); // it may die while an exception passes
            later::call(py, None, || self.finish(py)); // no exception can be raised here
            if let Some(raised) = raised {
                raised.restore(py);
            }
        });
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Finally>()
}
