//! `userfault._core`: the only crate that names pyo3. It converts; it never decides.

mod buffers;
mod called;
mod descriptor;
mod errors;
mod forked;
mod gil;
mod image;
mod kernel;
mod kept;
mod late;
mod mman;
mod overdue;
mod pager;
mod raise;
mod raised;
mod readers;
mod region;
mod sources;
mod volatile;

use pyo3::prelude::*;

/// The native half of `userfault`; its documents are in `_core.pyi`.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    // Before any thread can be about to start the engine: a fork at that moment is looked after too.
    engine::fork::hook();
    descriptor::register(module)?;
    image::register(module)?;
    kernel::register(module)?;
    mman::register(module)?;
    pager::register(module)?;
    raise::register(module)?;
    readers::register(module)?;
    region::register(module)?;
    sources::register(module)?;
    volatile::register(module)?;
    Ok(())
}
