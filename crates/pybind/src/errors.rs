//! Rust errors become Python exceptions here and nowhere else.
//!
//! An errno becomes the OSError subclass that Python has for it. A hint travels twice: as the attribute `hint`, for
//! programs, and as a note of the exception, which a traceback shows.

use crate::kept;
use engine::cause::Remote;
use engine::error::Error;
use engine::pager::spawn::How;
use engine::source::{Cause, SourceError};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use std::borrow::Cow;
use uffd::{Errno, OpenError};

/// The OSError subclass for `errno`, saying `what` failed.
pub fn os_error(errno: Errno, what: &str) -> PyErr {
    // Called with two arguments, OSError picks the subclass (PermissionError, FileNotFoundError...) itself.
    PyOSError::new_err((errno.0, format!("{what}: {errno}")))
}

/// As [`os_error`], for an operation on a range of addresses; says why where the range itself is at fault.
pub fn range_error(py: Python<'_>, what: &str, start: usize, length: usize, errno: Errno) -> PyErr {
    let error = os_error(errno, &format!("{what} of {length} bytes at {start:#x}"));
    let page = uffd::page_size();
    if errno == Errno(libc::EINVAL) && (!start.is_multiple_of(page) || !length.is_multiple_of(page) || length == 0) {
        let hint = format!("start and length must be whole pages of {page} bytes, as memory of mmap.mmap is");
        return with_hint(py, error, &hint);
    }
    error
}

/// No descriptor: PermissionError where it was refused, with the command that would change it.
pub fn open_error(py: Python<'_>, error: &OpenError) -> PyErr {
    let raised = PyOSError::new_err((error.errno().0, error.to_string()));
    match error.hint() {
        Some(hint) => with_hint(py, raised, hint),
        None => raised,
    }
}

/// The descriptor was closed.
pub fn closed() -> PyErr {
    PyValueError::new_err("operation on a closed userfaultfd")
}

/// Attaches a hint; an exception that cannot carry one stays as it is.
pub fn with_hint(py: Python<'_>, error: PyErr, hint: &str) -> PyErr {
    let error = made(py, error);
    let value = error.value(py);
    let noted = value.setattr("hint", hint).and_then(|()| value.call_method1("add_note", (format!("hint: {hint}"),)));
    if let Err(problem) = noted {
        problem.write_unraisable(py, None);
    }
    error
}

/// The exception object of `error`. While the interpreter ends, pyo3 makes none by itself: it takes it for ended.
fn made(py: Python<'_>, error: PyErr) -> PyErr {
    error.restore(py);
    PyErr::fetch(py)
}

/// `userfault.errors`: kept, since nothing can be imported while the interpreter ends.
pub fn module(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    Ok(MODULE.get_or_try_init(py, || py.import("userfault.errors").map(Bound::unbind))?.bind(py))
}

/// An exception class by its name: exceptions over the stable ABI are Python classes.
fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    module(py)?.getattr(name)
}

/// A class that stands for the exception `value`: raised without arguments, it is `value` itself.
pub fn itself(py: Python<'_>, value: &Py<PyAny>) -> Option<Py<PyAny>> {
    let made = class(py, "standing_for").and_then(|make| make.call1((value,)));
    made.map(Bound::unbind).map_err(|problem| problem.write_unraisable(py, None)).ok()
}

/// The exception of `userfault.errors` with that name, made of these arguments.
pub fn raised(py: Python<'_>, name: &str, arguments: impl for<'py> pyo3::call::PyCallArgs<'py>) -> PyErr {
    match class(py, name).and_then(|class| class.call1(arguments)) {
        Ok(error) => PyErr::from_value(error),
        Err(problem) => problem,
    }
}

/// Each variant has exactly one class.
pub fn engine_error(py: Python<'_>, error: Error) -> PyErr {
    match error {
        Error::Refused(ref refusal) => {
            let raised = raised(py, "RefusedError", (libc::EPERM, error.to_string()));
            let hint = refusal.hint().map_or(Ok(()), |hint| raised.value(py).setattr("command", hint));
            hint.map_or_else(|problem| problem, |()| raised)
        }
        Error::Unsupported(_) => raised(py, "UnsupportedError", (libc::ENOSYS, error.to_string())),
        Error::Invalid(text) => option_error(py, &text),
        Error::Os { what, errno } => os_error(errno, &what),
        Error::Closed(text) => raised(py, "RegionClosedError", (text,)),
        Error::Page { source_name, error } => page_error(py, &source_name, &error),
    }
}

/// A parameter that makes no sense.
pub fn option_error(py: Python<'_>, text: &str) -> PyErr {
    raised(py, "OptionError", (text,))
}

/// The value that a word stands for.
pub fn choice<T: Copy>(py: Python<'_>, name: &str, given: &str, known: &[(&str, T)]) -> PyResult<T> {
    known.iter().find(|(word, _)| *word == given).map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<String> = known.iter().map(|(word, _)| format!("{word:?}")).collect();
        option_error(py, &format!("{name}={given:?}: must be {}", words.join(" or ")))
    })
}

/// A page that cannot be had, known before it was touched.
pub fn page_error(py: Python<'_>, source: &str, error: &SourceError) -> PyErr {
    let offset = i64::try_from(error.offset).unwrap_or(-1);
    match error.cause {
        Cause::Os(errno) => {
            let cause = made(py, PyOSError::new_err((errno, Errno(errno).to_string()))).into_value(py);
            raised(py, "PageError", (source, offset, cause))
        }
        Cause::Raised(ticket) => match kept::take(py, ticket) {
            Some(exception) => raised(py, "PageError", (source, offset, exception)),
            None => raised(py, "PageError", (source, offset, error.cause.describe())),
        },
        Cause::Remote(remote) => raised(py, "PageError", (source, offset, remote_error(py, remote))),
        Cause::Purged => raised(py, "PagePurged", (source, offset, error.cause.describe())),
        cause => raised(py, "PageError", (source, offset, said_of(cause))),
    }
}

/// What a pager said of an exception in it. Text: nothing that comes from there is ever unpickled.
pub fn remote_error(py: Python<'_>, remote: Remote) -> Py<PyAny> {
    let text = engine::shared::text_of(remote).unwrap_or_default();
    let mut parts = text.split('\0').map(str::to_owned);
    let (kind, message, trace) =
        (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    raised(py, "RemoteError", (kind, message, trace)).into_value(py).into_any()
}

/// A cause in a sentence.
pub fn said_of(cause: Cause) -> Cow<'static, str> {
    match cause {
        Cause::PagerLost(how) => format!("{} ({})", cause.describe(), How(how)).into(),
        cause => cause.describe().into(),
    }
}
