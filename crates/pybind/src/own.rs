//! A region inside its own source: a touch of another unit is served there and then, but calls that have other threads fill it, or
//! that wait until nobody does, would wait for their own caller. They are refused.

use crate::errors::raised;
use engine::error::Error;
use engine::open::Owned;
use engine::states::State;
use engine::threads::thread_id;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use std::ops::Range;

/// Is the calling thread inside the source of the region with this memory? Not known of a coroutine, nor of a thread that the
/// source has started.
pub fn is_here(address: usize, length: usize) -> bool {
    engine::nest::resolves_some_of(thread_id(), &(address..address + length))
}

/// Where the first unit of `bytes` begins that is not there.
pub fn first_absent(owned: &Owned, bytes: Range<usize>) -> Result<Option<usize>, Error> {
    let region = owned.get()?;
    let absent = region.units_touching(bytes).find(|unit| region.states.get(*unit) != State::Present);
    Ok(absent.map(|unit| unit * region.unit))
}

/// `read` or `populate` of what is not there.
pub fn refused_read(py: Python<'_>, source: &str, offset: usize) -> PyErr {
    let text = "read() and populate() inside the Region's own read_into would wait for what it has to fill: get the bytes from the \
                source itself, or touch another unit through a view";
    raised(py, "PageError", (source, offset, text))
}

/// `close`.
pub fn refused_close() -> PyErr {
    let text = "close() inside the Region's own read_into would wait for that read: close it when the touch is over";
    PyRuntimeError::new_err(text)
}
