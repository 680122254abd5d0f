//! `userfault._core`: the only crate that names pyo3. It converts; it never decides.

mod buffers;
mod called;
mod descriptor;
mod enter;
mod errors;
mod finally;
mod forked;
mod gil;
mod helper;
mod image;
mod kernel;
mod kept;
mod later;
mod late;
mod mman;
mod overdue;
mod own;
mod pager;
mod pending;
mod raise;
mod raised;
mod readers;
mod repeats;
mod region;
mod sources;
mod surface;
mod turn;
mod volatile;

use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;

/// The native half of `userfault`; its documents are in `_core.pyi`.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    refuse_sub_interpreter()?;
    // Before any thread can be about to start the engine: a fork at that moment is looked after too.
    engine::fork::hook();
    descriptor::register(module)?;
    image::register(module)?;
    kernel::register(module)?;
    mman::register(module)?;
    pager::register(module)?;
    raise::register(module)?;
    readers::register(module)?;
    repeats::register(module)?;
    region::register(module)?;
    sources::register(module)?;
    surface::register(module)?;
    finally::register(module)?;
    turn::register(module)?;
    volatile::register(module)?;
    Ok(())
}

/// Signal handlers, the exceptions that they raise and the threads of the engine are one for the process: a second interpreter
/// would take them from the first.
fn refuse_sub_interpreter() -> PyResult<()> {
    // SAFETY: the GIL is held.
    match unsafe { ffi::PyInterpreterState_GetID(ffi::PyInterpreterState_Get()) } {
        0 => Ok(()),
        number => Err(PyImportError::new_err(format!(
            "userfault works in the main interpreter of a process alone, and this is sub-interpreter {number}: import it in the main \
             one (an embedding server may have a setting for that), or in a process of its own"
        ))),
    }
}
