//! `PAGEMAP_SCAN` for Python.

use crate::errors::{os_error, range_error};
use pyo3::prelude::*;
use uffd::{Categories, PagemapScan, ScanFlags, ScanQuery};

/// Scans `[start, stop)` of a process (of this one without `pid`); returns (start, stop, categories) triples.
#[pyfunction]
#[pyo3(signature = (start, stop, *, pid, flags, inverted, all_of, any_of, report, max_pages))]
#[allow(clippy::too_many_arguments)] // one per field of the kernel's structure; Python names them
pub fn pagemap_scan(
    py: Python<'_>,
    start: usize,
    stop: usize,
    pid: Option<i32>,
    flags: u64,
    inverted: u64,
    all_of: u64,
    any_of: u64,
    report: u64,
    max_pages: usize,
) -> PyResult<Vec<(u64, u64, u64)>> {
    let query = ScanQuery {
        flags: ScanFlags(flags),
        inverted: Categories(inverted),
        all_of: Categories(all_of),
        any_of: Categories(any_of),
        report: Categories(report),
        max_pages,
    };
    let scan = pid.map_or_else(PagemapScan::open_self, PagemapScan::open_pid);
    let scan = scan.map_err(|errno| os_error(errno, "pagemap"))?;
    let found = py.detach(|| scan.collect(start..stop, &query));
    let found = found.map_err(|errno| range_error(py, "PAGEMAP_SCAN", start, stop.saturating_sub(start), errno))?;
    Ok(found.into_iter().map(|region| (region.start, region.end, region.categories)).collect())
}
