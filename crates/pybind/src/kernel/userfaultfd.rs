//! `_core.Userfaultfd`: one descriptor. `userfault.kernel.Userfaultfd` is its public face.
//!
//! *Locks*: `shared`, for the moment it takes to copy a reference; never across a system call. *Threads*: any. The
//! descriptor is closed when the last call in progress has left, so that no call can meet a number that was reused.
//! *Blocks on*: the kernel, with the GIL released: COPY may read memory that is itself lazy.

use super::place::{Place, transfer_length};
use super::reader::{Shared, Waited};
use crate::errors::{closed, open_error, os_error, range_error};
use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use uffd::{
    ContinueMode, CopyMode, Errno, Event, Features, Handle, MoveMode, OpenOptions, Outcome, ProtectMode, RegisterModes,
    RwProtectMode, UffdMsg, Via, Wake,
};

/// How an operation ended: (kind, bytes done, errno or 0). The kinds are `userfault.kernel.OutcomeKind`.
type Ended = (u8, usize, i32);

fn ended(outcome: Outcome, length: usize) -> Ended {
    let kind = match outcome {
        Outcome::Done => 0,
        Outcome::Partial(_) => 1,
        Outcome::Exists => 2,
        Outcome::Retry => 3,
        Outcome::Gone => 4,
        Outcome::Failed(_) => 5,
    };
    (kind, outcome.bytes(length), outcome.errno().map_or(0, |errno| errno.0))
}

const fn wake_or_not(wake: bool) -> Wake {
    if wake { Wake::Yes } else { Wake::No }
}

/// One userfaultfd.
#[pyclass(frozen, module = "userfault._core")]
pub struct Userfaultfd {
    shared: Mutex<Option<Arc<Shared>>>,
}

impl Userfaultfd {
    fn from_fd(fd: uffd::Userfaultfd) -> PyResult<Self> {
        let shared = Shared::new(fd).map_err(|errno| os_error(errno, "eventfd"))?;
        Ok(Self { shared: Mutex::new(Some(Arc::new(shared))) })
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<Shared>>> {
        // Nothing under this lock can panic; were it poisoned all the same, the option would still be whole.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> PyResult<Arc<Shared>> {
        self.slot().clone().ok_or_else(closed)
    }

    /// Runs one operation with the GIL released, while the descriptor cannot be closed.
    fn run<T: Send>(&self, py: Python<'_>, operation: impl FnOnce(Handle) -> T + Send) -> PyResult<T> {
        let shared = self.open()?;
        Ok(py.detach(move || operation(shared.fd.handle())))
    }

    fn resolve(
        &self,
        py: Python<'_>,
        place: &Place,
        operation: impl FnOnce(Handle, usize, usize) -> Outcome + Send,
    ) -> PyResult<Ended> {
        let (start, length) = place.range()?;
        let outcome = self.run(py, |handle| operation(handle, start, length))?;
        Ok(ended(outcome, length))
    }
}

#[pymethods]
impl Userfaultfd {
    #[new]
    #[pyo3(signature = (features, user_mode_only, device))]
    fn new(py: Python<'_>, features: u64, user_mode_only: bool, device: Option<bool>) -> PyResult<Self> {
        let via = match device {
            None => Via::Auto,
            Some(true) => Via::Device,
            Some(false) => Via::Syscall,
        };
        // Always nonblocking: poll(2) reports an error otherwise, and waiting is done by poll.
        let options = OpenOptions { nonblocking: true, user_mode_only, via };
        let opened = py.detach(|| uffd::Userfaultfd::open_with(options, Features(features)));
        Self::from_fd(opened.map_err(|error| open_error(py, &error))?)
    }

    /// Takes over a descriptor from elsewhere.
    #[staticmethod]
    fn adopt(fd: RawFd) -> PyResult<Self> {
        Handle::from_raw(fd).fdinfo().map_err(|errno| os_error(errno, &format!("descriptor {fd}")))?;
        // SAFETY: fdinfo has just said that it is an open userfaultfd, and the caller gives it away.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: setting the status flags of a descriptor we own. It has no flag but O_NONBLOCK that could be set.
        let changed = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        if changed == -1 {
            return Err(os_error(Errno::last(), "fcntl"));
        }
        Self::from_fd(uffd::Userfaultfd::from_owned(fd))
    }

    fn fileno(&self) -> PyResult<RawFd> {
        Ok(self.open()?.fd.as_raw_fd())
    }

    #[getter]
    fn closed(&self) -> bool {
        self.slot().is_none()
    }

    fn close(&self, py: Python<'_>) {
        let taken = self.slot().take();
        if let Some(shared) = taken {
            py.detach(move || {
                shared.stop_readers();
                drop(shared);
            });
        }
    }

    fn register(&self, py: Python<'_>, place: Place, modes: u64) -> PyResult<u64> {
        let (start, length) = place.range()?;
        // SAFETY: the caller named this memory; that its pages now wait for him is what he asked for, and documented.
        let result = self.run(py, move |handle| unsafe { handle.register(start, length, RegisterModes(modes)) })?;
        result.map(|ioctls| ioctls.0).map_err(|errno| range_error(py, "UFFDIO_REGISTER", start, length, errno))
    }

    fn unregister(&self, py: Python<'_>, place: Place) -> PyResult<()> {
        let (start, length) = place.range()?;
        // SAFETY: as for register; that missing pages become zeros is documented.
        let result = self.run(py, move |handle| unsafe { handle.unregister(start, length) })?;
        result.map_err(|errno| range_error(py, "UFFDIO_UNREGISTER", start, length, errno))
    }

    fn wake(&self, py: Python<'_>, place: Place) -> PyResult<()> {
        let (start, length) = place.range()?;
        let result = self.run(py, move |handle| handle.wake(start, length))?;
        result.map_err(|errno| range_error(py, "UFFDIO_WAKE", start, length, errno))
    }

    fn copy(&self, py: Python<'_>, dst: Place, src: Place, length: Option<usize>, mode: u64) -> PyResult<Ended> {
        let length = transfer_length(&dst, &src, length)?;
        let (to, from) = (dst.address, src.address);
        let outcome = self.run(py, move |handle| handle.copy(to, from, length, CopyMode(mode)))?;
        Ok(ended(outcome, length))
    }

    #[pyo3(name = "move")]
    fn move_pages(&self, py: Python<'_>, dst: Place, src: Place, length: Option<usize>, mode: u64) -> PyResult<Ended> {
        let length = transfer_length(&dst, &src, length)?;
        let (to, from) = (dst.address, src.address);
        // SAFETY: the caller named the source and wants its pages taken from there; the kernel takes private anonymous
        // writable memory only.
        let outcome = self.run(py, move |handle| unsafe { handle.move_pages(to, from, length, MoveMode(mode)) })?;
        Ok(ended(outcome, length))
    }

    fn zeropage(&self, py: Python<'_>, place: Place, wake: bool) -> PyResult<Ended> {
        self.resolve(py, &place, move |handle, start, length| handle.zeropage(start, length, wake_or_not(wake)))
    }

    fn poison(&self, py: Python<'_>, place: Place, wake: bool) -> PyResult<Ended> {
        self.resolve(py, &place, move |handle, start, length| handle.poison(start, length, wake_or_not(wake)))
    }

    fn continue_(&self, py: Python<'_>, place: Place, mode: u64) -> PyResult<Ended> {
        self.resolve(py, &place, move |handle, start, length| handle.continue_(start, length, ContinueMode(mode)))
    }

    fn write_protect(&self, py: Python<'_>, place: Place, mode: u64) -> PyResult<Ended> {
        self.resolve(py, &place, move |handle, start, length| handle.write_protect(start, length, ProtectMode(mode)))
    }

    fn rw_protect(&self, py: Python<'_>, place: Place, mode: u64) -> PyResult<Ended> {
        self.resolve(py, &place, move |handle, start, length| handle.rw_protect(start, length, RwProtectMode(mode)))
    }

    fn set_mode(&self, py: Python<'_>, enable: u64, disable: u64) -> PyResult<()> {
        let result = self.run(py, move |handle| handle.set_mode(Features(enable), Features(disable)))?;
        result.map_err(|errno| os_error(errno, "UFFDIO_SET_MODE"))
    }

    /// (unread faults, waiting faults, features in force)
    fn fdinfo(&self, py: Python<'_>) -> PyResult<(u64, u64, u64)> {
        let info = self.run(py, Handle::fdinfo)?.map_err(|errno| os_error(errno, "fdinfo"))?;
        Ok((info.pending, info.total, info.features.0))
    }

    /// Waits for messages; each becomes a tuple that begins with the kernel's event number.
    fn read_events<'py>(
        &self,
        py: Python<'py>,
        max: usize,
        timeout: Option<f64>,
    ) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        if max == 0 {
            return Err(PyValueError::new_err("max must be at least 1"));
        }
        let deadline = timeout.map(deadline_after).transpose()?;
        // Before the wait, never in it: a thread that forks may hold malloc's locks until its event was read.
        let mut messages = vec![UffdMsg::ZERO; max.min(4096)];
        loop {
            let shared = self.open()?;
            let buffer = &mut messages;
            // The reference is dropped inside, with the GIL released: close() must not have to wait for it.
            match py.detach(move || shared.wait_and_read(buffer, deadline)) {
                Waited::Messages(count) => {
                    // SAFETY: these messages were read just now, and each is decoded once: here.
                    let events: Vec<Event> = messages[..count].iter().map(|m| unsafe { m.decode() }).collect();
                    return events.into_iter().map(|event| event_tuple(py, event)).collect();
                }
                Waited::TimedOut => return Ok(Vec::new()),
                Waited::Signal => py.check_signals()?,
                Waited::Closed => return Err(closed()),
                Waited::Failed(errno) => return Err(os_error(errno, "reading userfaultfd")),
            }
        }
    }
}

fn deadline_after(seconds: f64) -> PyResult<Instant> {
    let wait = Duration::try_from_secs_f64(seconds.max(0.0));
    let deadline = wait.ok().and_then(|wait| Instant::now().checked_add(wait));
    deadline.ok_or_else(|| PyOverflowError::new_err("timeout is too long"))
}

fn event_tuple(py: Python<'_>, event: Event) -> PyResult<Bound<'_, PyTuple>> {
    use uffd::abi::*;
    match event {
        Event::PageFault { address, flags, thread } => {
            (UFFD_EVENT_PAGEFAULT, address, flags.0, thread).into_pyobject(py)
        }
        Event::Fork { fd } => {
            let child = Userfaultfd::from_fd(uffd::Userfaultfd::from_owned(fd))?;
            (UFFD_EVENT_FORK, child).into_pyobject(py)
        }
        Event::Remap { from, to, len } => (UFFD_EVENT_REMAP, from, to, len).into_pyobject(py),
        Event::Remove { start, end } => (UFFD_EVENT_REMOVE, start, end).into_pyobject(py),
        Event::Unmap { start, end } => (UFFD_EVENT_UNMAP, start, end).into_pyobject(py),
        Event::Unknown(number) => (number,).into_pyobject(py),
    }
}
