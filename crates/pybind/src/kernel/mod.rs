//! The kernel layer for Python: conversions only. Names, enums and documents for people are in `userfault.kernel`.

mod capabilities;
mod pagemap;
pub mod place;
mod reader;
mod userfaultfd;

use pyo3::prelude::*;

/// Adds this room's names to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<userfaultfd::Userfaultfd>()?;
    module.add_function(wrap_pyfunction!(capabilities::capabilities, module)?)?;
    module.add_function(wrap_pyfunction!(capabilities::kernel_names, module)?)?;
    module.add_function(wrap_pyfunction!(place::range_of, module)?)?;
    module.add_function(wrap_pyfunction!(pagemap::pagemap_scan, module)?)?;
    Ok(())
}
