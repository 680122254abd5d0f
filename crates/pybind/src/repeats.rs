//! How often Python sources made a read again: counted by themselves while they are read, by the thread that does.
//!
//! *Threads*: each has its own count, and only such as run Python. *Locks*: none.

use pyo3::prelude::*;
use std::cell::Cell;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

/// The source that this thread is reading made so many reads again.
#[pyfunction]
#[pyo3(name = "count_repeats")]
pub fn count(repeats: usize) {
    COUNT.set(COUNT.get() + repeats);
}

/// What `read` answers, and how often it made a read again. Reads within reads keep their own count.
pub fn of<T>(read: impl FnOnce() -> T) -> (T, usize) {
    let outer = COUNT.take();
    let answer = read();
    (answer, COUNT.replace(outer))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(count, module)?)
}
