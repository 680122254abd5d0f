//! The descriptor of 2014 for Python: `userfault.mman` gives it its name.
//!
//! *GIL*: released in everything that waits.

use crate::enter::enter;
use crate::errors::{closed, engine_error, option_error, os_error};
use crate::forked::{LOOK, NativeForkedUserfaultfd};
use crate::kernel::place::Place;
use crate::late::{self, LateLine, late_line};
use crate::mman::{because, named, room};
use crate::sources::seconds;
use engine::error::Error;
use engine::mman::descriptor::{Descriptor, Phase};
use engine::mman::protocol::{Command, Written};
use engine::mman::{self, why};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;
use uffd::Errno;

/// The native half of `userfault.mman.Userfaultfd2014`.
#[pyclass(subclass, frozen, module = "userfault._core")]
pub struct NativeUserfaultfd2014 {
    inner: Arc<Descriptor>,
    generation: u32,
}

#[pymethods]
impl NativeUserfaultfd2014 {
    #[new]
    #[pyo3(signature = (*, nonblocking, user_mode_only, timeout_seconds))]
    fn new(py: Python<'_>, nonblocking: bool, user_mode_only: bool, timeout_seconds: Option<f64>) -> PyResult<Self> {
        let mman = room(py)?;
        if let Some(wrong) = timeout_seconds.filter(|given| !given.is_finite() || *given < 0.0) {
            return Err(option_error(py, &format!("timeout_seconds={wrong}: must be finite, and 0 or more")));
        }
        let timeout = timeout_seconds.map(seconds);
        let opened = py.detach(|| mman.open_descriptor(nonblocking, user_mode_only, timeout));
        let inner = opened.map_err(|error| engine_error(py, error))?;
        Ok(Self { inner, generation: engine::fork::generation() })
    }

    /// Unique in this process.
    #[getter]
    fn ident(&self) -> u64 {
        self.inner.id
    }

    /// Read at most `n` bytes: always 8.
    fn read<'py>(&self, py: Python<'py>, n: usize) -> PyResult<Bound<'py, PyBytes>> {
        let word = self.next_word(py, n)?;
        Ok(PyBytes::new(py, &word.to_ne_bytes()))
    }

    /// The next address, as a number.
    fn read_fault(&self, py: Python<'_>) -> PyResult<u64> {
        self.check("read")?;
        self.check_running("read")?;
        self.next_word(py, 8)
    }

    /// Write a protocol or a command: any contiguous buffer.
    fn write(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<usize> {
        let data = &bytes_of(data)?[..];
        self.check("write")?;
        let phase = self.inner.standing().0; // before a write that changes it
        match self.inner.write(data).map_err(|errno| refused("write", errno, &why::of_write(data, phase)))? {
            Written::Taken(bytes) => Ok(bytes),
            Written::Do(command) => self.obey(py, command).map(|()| 16),
        }
    }

    /// The userfaultfd of the next forked child; None when `limit_seconds` are over.
    #[pyo3(signature = (limit_seconds=None))]
    fn next_fork(&self, py: Python<'_>, limit_seconds: Option<f64>) -> PyResult<Option<NativeForkedUserfaultfd>> {
        self.check("accept_fork")?;
        let end = limit_seconds.map(|limit| Instant::now() + seconds(limit));
        loop {
            if self.inner.standing().0 == Phase::Closed {
                return Err(closed());
            }
            let left = end.map_or(LOOK, |end| end.saturating_duration_since(Instant::now()).min(LOOK));
            if let Some(forked) = py.detach(|| self.inner.forks.take(left)) {
                return Ok(Some(NativeForkedUserfaultfd::of(forked)));
            }
            py.check_signals()?;
            if end.is_some_and(|end| Instant::now() >= end) {
                return Ok(None);
            }
        }
    }

    /// Does it hear of forks?
    #[getter]
    fn can_follow(&self) -> bool {
        self.inner.can_follow
    }

    fn register(&self, py: Python<'_>, place: Place) -> PyResult<()> {
        self.command(py, &place, Command::Register)
    }

    fn unregister(&self, py: Python<'_>, place: Place) -> PyResult<()> {
        self.command(py, &place, Command::Unregister)
    }

    fn wake(&self, py: Python<'_>, address: usize, length: usize) -> PyResult<()> {
        self.command(py, &Place::at(address, Some(length)), Command::Wake)
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<i32> {
        self.check("fileno")?;
        self.inner.poll_number().map_err(|error| match error {
            Error::Closed(_) => closed(),
            error => engine_error(py, error),
        })
    }

    /// Phase, unread faults, faults read and not woken, faults that ended by the timeout.
    fn standing(&self) -> (&'static str, usize, usize, u64) {
        if !self.is_ours() {
            return ("closed", 0, 0, 0);
        }
        let (phase, unread, read, timeouts) = self.inner.standing();
        let name = match phase {
            Phase::Ask => "ask",
            Phase::Ack => "ack",
            Phase::Unknown => "unknown",
            Phase::Running => "running",
            Phase::Closed => "closed",
        };
        (name, unread, read, timeouts)
    }

    /// The newest faults that ended by the timeout: address, thread, seconds, what the thread was doing.
    fn late(&self) -> Vec<LateLine> {
        if self.is_ours() { self.inner.late().iter().map(late_line).collect() } else { vec![] }
    }

    fn close(&self, py: Python<'_>) {
        if self.is_ours()
            && let Some(mman) = mman::current()
        {
            py.detach(|| mman.close(&self.inner));
        }
    }
}

impl NativeUserfaultfd2014 {
    fn is_ours(&self) -> bool {
        self.generation == engine::fork::generation()
    }

    fn check(&self, what: &str) -> PyResult<()> {
        if self.is_ours() {
            return Ok(());
        }
        Err(PyValueError::new_err(format!("{what} on a userfaultfd of the process this one was forked from")))
    }

    fn check_running(&self, what: &str) -> PyResult<()> {
        let why = "the handshake comes first: write 8 bytes of mman.PROTOCOL, read 8 back";
        self.inner.check_running().map_err(|errno| refused(what, errno, why))
    }

    fn next_word(&self, py: Python<'_>, room: usize) -> PyResult<u64> {
        self.check("read")?;
        loop {
            let rung = self.inner.rung();
            match self.inner.read(room) {
                Err(Errno(libc::EAGAIN)) if !self.inner.nonblocking => {}
                answer => return answer.map_err(|errno| refused("read", errno, &why::of_read(errno, room))),
            }
            py.detach(|| self.inner.wait(rung, LOOK));
            py.check_signals()?;
        }
    }

    fn command(&self, py: Python<'_>, place: &Place, command: fn(Range<usize>) -> Command) -> PyResult<()> {
        self.check("write")?;
        self.check_running("write")?;
        let (start, length) = place.range()?;
        self.obey(py, command(start..start.saturating_add(length)))
    }

    fn obey(&self, py: Python<'_>, command: Command) -> PyResult<()> {
        let mman = room(py)?;
        let inner = &self.inner;
        let (what, range) = match &command {
            Command::Wake(range) => ("wake", range.clone()),
            Command::Register(range) => ("register", range.clone()),
            Command::Unregister(range) => ("unregister", range.clone()),
        };
        let result = py.detach(|| match command {
            Command::Wake(range) => mman.wake(inner, range),
            Command::Register(range) => mman.register(inner, range),
            Command::Unregister(range) => mman.unregister(inner, range),
        });
        result.map_err(|failed| named(what, &range, &failed))
    }
}

impl Drop for NativeUserfaultfd2014 {
    fn drop(&mut self) {
        if let Some(mman) = mman::current().filter(|_| self.is_ours()) {
            let inner = self.inner.clone();
            let done = enter(|py| py.detach(|| mman.close(&inner)));
            if done.is_none() {
                mman.close(&inner); // the interpreter is going: nobody waits for it
            }
        }
    }
}

fn refused(what: &str, errno: Errno, why: &str) -> PyErr {
    match errno {
        Errno(libc::EBADF) => closed(),
        errno => os_error(errno, &because(format!("{what} of a userfaultfd"), why)),
    }
}

/// What a contiguous buffer holds, whatever its elements are: no more of it than any command has.
fn bytes_of(data: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    const MOST: usize = 64;
    let by_view =
        |_| PyMemoryView::from(data)?.call_method1("cast", ("B",)).and_then(|view| PyUntypedBuffer::get(&view));
    let buffer = PyUntypedBuffer::get(data).or_else(by_view)?;
    if !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err("the buffer must be contiguous"));
    }
    let (address, len) = (buffer.buf_ptr().cast::<u8>(), buffer.len_bytes().min(MOST));
    // SAFETY: the export keeps so many bytes there; the GIL is held, and the copy is made at once.
    Ok(if len == 0 { vec![] } else { unsafe { std::slice::from_raw_parts(address, len) }.to_vec() })
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    late::register(module)?;
    module.add_class::<NativeUserfaultfd2014>()?;
    module.add_class::<NativeForkedUserfaultfd>()
}
