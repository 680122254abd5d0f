//! `userfault._core`: the only crate that names pyo3. It converts; it never decides.

mod errors;
mod image;
mod kernel;
mod raise;
mod region;
mod sources;

use pyo3::prelude::*;

/// The native half of `userfault`; its documents are in `_core.pyi`.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    image::register(module)?;
    kernel::register(module)?;
    raise::register(module)?;
    region::register(module)?;
    sources::register(module)?;
    Ok(())
}
