//! Handing something over to another Python thread and waiting for it, without a quarrel about the GIL.
//!
//! With a lock of Python's whoever rings still has the GIL, so that the thread that is woken wants it, sleeps again, and is woken
//! a second time. Here the GIL is given up first.
//!
//! *Locks*: none. *GIL*: given up to ring and to wait. *Blocks on*: the other thread, up to a limit.

use crate::enter::sheltered;
use crate::sources::seconds;
use engine::futex;
use pyo3::prelude::*;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Rung by one thread, awaited by one other.
#[pyclass(frozen, module = "userfault._core")]
#[derive(Default)]
pub struct Turn(AtomicU32);

impl Turn {
    fn set(&self) {
        self.0.store(1, Ordering::Release);
        futex::wake_one(&self.0);
    }

    fn take(&self) -> bool {
        self.0.swap(0, Ordering::AcqRel) == 1
    }
}

#[pymethods]
impl Turn {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    fn ring(&self) {
        self.set();
    }

    #[pyo3(signature = (limit_seconds=None, ring=None))]
    fn wait(&self, py: Python<'_>, limit_seconds: Option<f64>, ring: Option<&Bound<'_, Self>>) -> PyResult<bool> {
        let mut other = ring.map(Bound::get);
        let began = Instant::now();
        loop {
            let left = limit_seconds.map(|limit| seconds(limit).saturating_sub(began.elapsed()));
            let ringing = other.take();
            // Should the interpreter end meanwhile, this thread stays here.
            let rung = sheltered(|| py.detach(|| self.wait_once(left, ringing)));
            if rung {
                return Ok(true);
            }
            py.check_signals()?;
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
        }
    }
}

impl Turn {
    /// Until it is rung, a signal comes, or the time is up.
    fn wait_once(&self, limit: Option<Duration>, ring: Option<&Self>) -> bool {
        if let Some(other) = ring {
            other.set();
        }
        if limit.is_none_or(|limit| !limit.is_zero()) {
            futex::wait(&self.0, 0, limit);
        }
        self.take()
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Turn>()
}
