//! The pager: its owner's handle, and the program itself.
//!
//! *GIL*: released in everything that waits; a server takes it to call a source, and no more.

use crate::enter::enter;
use crate::errors::{choice, engine_error, os_error};
use crate::kept;
use crate::sources::{NativeSource, seconds};
use engine::error::Error;
use engine::pager::connect::Start;
use engine::pager::opening::Served;
use engine::pager::owner::Pager;
use engine::pager::policy::{Limit, OnDeath};
use engine::pager::serve::{Language, Request, Server};
use engine::pager::spawn::{How, Program};
use engine::pager::watch;
use engine::source::Cause;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::ffi::CString;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

/// An exception of a signal handler, for whoever waits without the GIL.
pub type Raised = Arc<Mutex<Option<PyErr>>>;

/// A pager as its owner has it; `userfault.pager.Pager` is its face.
#[pyclass(frozen, module = "userfault._core")]
pub struct NativePager {
    pager: Arc<Pager>,
    /// In which of a line of forked processes it was started.
    generation: u32,
}

fn c_strings(texts: Vec<Vec<u8>>) -> PyResult<Vec<CString>> {
    texts.into_iter().map(|text| CString::new(text).map_err(Into::into)).collect()
}

#[pymethods]
impl NativePager {
    /// Start `arguments` with `environment` (`NAME=value`), whose program is to run `PagerServer`; or, where there are none, ask
    /// who serves at `path`. Not waited for.
    #[new]
    fn new(
        py: Python<'_>,
        path: Option<Vec<u8>>,
        arguments: Vec<Vec<u8>>,
        environment: Vec<Vec<u8>>,
        settings: Vec<u8>,
        restarts: usize,
        within_seconds: f64,
    ) -> PyResult<Self> {
        let start = match path {
            Some(path) => Start::Path(CString::new(path)?),
            None => Start::Program(Program { arguments: c_strings(arguments)?, environment: c_strings(environment)? }),
        };
        let limit = Limit { restarts, within: seconds(within_seconds) };
        let started = py.detach(|| watch::start(engine::open::engine()?, start, settings, limit));
        let pager = started.map_err(|error| engine_error(py, error))?;
        Ok(Self { pager, generation: engine::fork::generation() })
    }

    /// Process number (0: none runs), regions, restarts, and how it ended for good.
    fn facts(&self, py: Python<'_>) -> (i32, usize, u64, Option<String>) {
        if self.is_foreign() {
            return (0, 0, 0, Some("it belongs to the process this one was forked from".into()));
        }
        let (pid, regions, restarts, lost) = py.detach(|| self.pager.facts());
        (pid, regions, restarts, lost.map(|how| How(how).to_string()))
    }

    /// End it; false: it serves regions.
    fn close(&self, py: Python<'_>) -> bool {
        self.is_foreign() || py.detach(|| self.pager.close())
    }
}

impl NativePager {
    fn is_foreign(&self) -> bool {
        self.generation != engine::fork::generation()
    }

    /// For a region to be opened. What a signal handler raises meanwhile goes into `raised`.
    pub fn serving(&self, py: Python<'_>, source: Vec<u8>, on_death: &str, raised: &Raised) -> PyResult<Served> {
        if self.is_foreign() {
            return Err(engine_error(
                py,
                Error::Closed("this pager belongs to the process this one was forked from".into()),
            ));
        }
        let known = [("restart", OnDeath::Restart), ("poison", OnDeath::Poison), ("abort", OnDeath::Abort)];
        let on_death = choice(py, "on_pager_death", on_death, &known)?;
        let raised = raised.clone();
        let interrupted = Box::new(move || {
            let error = enter(|py| py.check_signals().err()).flatten();
            let stop = error.is_some();
            if stop {
                *raised.lock().unwrap_or_else(PoisonError::into_inner) = error;
            }
            stop
        });
        Ok(Served { pager: self.pager.clone(), source, on_death, interrupted })
    }
}

impl Drop for NativePager {
    fn drop(&mut self) {
        // Its regions hold on to the pager itself.
        if !self.is_foreign() && enter(|py| py.detach(|| self.pager.let_go())).is_none() {
            self.pager.let_go();
        }
    }
}

/// The program: serves the regions of the process at the other end of a socket.
#[pyclass(frozen, module = "userfault._core")]
pub struct PagerServer {
    server: Arc<Server>,
}

struct PythonLanguage;

impl Language for PythonLanguage {
    fn describe(&self, cause: Cause) -> String {
        let Cause::Raised(raised) = cause else { return String::new() };
        let described = enter(|py| {
            let error = kept::take(py, raised)?;
            let described = py
                .import("userfault.pager.remote")
                .and_then(|module| module.getattr("described")?.call1((error,))?.extract::<String>());
            described.ok()
        });
        described.flatten().unwrap_or_default()
    }

    fn run(&self) {
        enter(|_| ());
    }
}

#[pymethods]
impl PagerServer {
    /// Hear the owner's first words on `socket`, which is taken over.
    #[new]
    fn new(py: Python<'_>, socket: i32) -> PyResult<Self> {
        if socket < 3 {
            return Err(os_error(uffd::Errno(libc::EBADF), "the owner's socket"));
        }
        // SAFETY: the program was started with the descriptor, for this.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let started = py.detach(|| Server::start(socket, Box::new(PythonLanguage)));
        let server = started.map_err(|error| engine_error(py, error))?;
        Ok(Self { server })
    }

    fn settings<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.server.settings())
    }

    /// Wait for a source to be opened: the number of the request, and the bytes that describe it. None: the owner is gone.
    fn next_region<'py>(&self, py: Python<'py>) -> Option<(u64, Bound<'py, PyBytes>)> {
        py.detach(|| self.server.next_region()).map(|request| given(py, &request))
    }

    /// One that had to wait for a thread, if there is any.
    fn waiting_region<'py>(&self, py: Python<'py>) -> Option<(u64, Bound<'py, PyBytes>)> {
        py.detach(|| self.server.waiting_region()).map(|request| given(py, &request))
    }

    /// Serve the region of a request from this source; where nobody wants it any more it is let go.
    fn accept(&self, py: Python<'_>, number: u64, source: PyRef<'_, NativeSource>) -> PyResult<()> {
        let source = source.0.clone();
        py.detach(|| self.server.accept(number, source)).map_err(|error| engine_error(py, error))
    }

    /// Its source cannot be had, for the reason in `text`: class, message and traceback with zero bytes between them.
    fn refuse(&self, py: Python<'_>, number: u64, text: &str) {
        py.detach(|| self.server.refuse(number, text));
    }

    /// Answer faults, for good, in the calling thread.
    fn serve(&self, py: Python<'_>) {
        py.detach(|| self.server.serve());
    }
}

fn given<'py>(py: Python<'py>, request: &Request) -> (u64, Bound<'py, PyBytes>) {
    (request.number, PyBytes::new(py, &request.told))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<NativePager>()?;
    module.add_class::<PagerServer>()
}
