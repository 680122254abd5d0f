//! Images for Python: reading a seek table, checking frames, making frames. The verbs are in `userfault.image`.

use crate::errors::page_error;
use engine::image::chunk::Cut;
use engine::image::chunk::{self, Piece};
use engine::image::{Filter, FrameEncoder, ImageError, ImageFile, MAX_FRAME_BYTES, filter, frame, table};
use engine::source::SourceError;
use pyo3::exceptions::{PyIndexError, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyList, PyType};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Adds this room's names to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<ImageIndex>()?;
    module.add_class::<FrameEncoders>()?;
    module.add_function(wrap_pyfunction!(zero_frame, module)?)?;
    module.add_function(wrap_pyfunction!(seek_table, module)?)?;
    module.add_function(wrap_pyfunction!(unshuffle, module)?)?;
    module.add("MAX_ITEM_BYTES", filter::MAX_ITEM_BYTES)?;
    module.add("MAX_BLOCK_BYTES", filter::MAX_BLOCK_BYTES)?;
    let (lowest, highest) = frame::levels();
    module.add("ZSTD_LEVELS", (lowest, highest))?;
    module.add("FRAME_ENTRY_BYTES", table::ENTRY_BYTES)?;
    module.add("MAX_FRAME_BYTES", MAX_FRAME_BYTES)
}

/// An `OSError` where the kernel said no, `userfault.errors.ImageError` where the file is at fault.
pub fn image_error(py: Python<'_>, error: &ImageError, path: &str) -> PyErr {
    if let Some(failed) = source_error(error) {
        return page_error(py, path, &failed);
    }
    let errno = match error {
        ImageError::Open(cause) | ImageError::Io { error: cause, .. } => cause.raw_os_error(),
        _ => None,
    };
    match errno {
        Some(errno) => os_error(py, errno, path).unwrap_or_else(|problem| problem),
        None => image_error_class(py, format!("{path}: {error}")),
    }
}

/// The failed read of a source that an image was to be made of.
fn source_error(error: &ImageError) -> Option<SourceError> {
    let ImageError::Io { error, .. } = error else { return None };
    error.get_ref()?.downcast_ref::<SourceError>().copied()
}

/// The `OSError` that `open()` would raise.
fn os_error(py: Python<'_>, errno: i32, path: &str) -> PyResult<PyErr> {
    let text: String = py.import("os")?.call_method1("strerror", (errno,))?.extract()?;
    Ok(PyOSError::new_err((errno, text, path.to_owned())))
}

fn image_error_class(py: Python<'_>, text: String) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    match CLASS.import(py, "userfault.errors", "ImageError") {
        Ok(class) => PyErr::from_type(class.clone(), (text,)),
        Err(problem) => problem,
    }
}

/// A frame for Python: offset, compressed bytes, decoded offset, decoded bytes, checksum.
type FrameTuple = (u64, u32, u64, u32, Option<u32>);

/// A filter for Python: bytes of an item, bytes of a block, where the first item begins.
type FilterNumbers = (u32, u32, u64);

fn filter_of((item_bytes, block_bytes, start): FilterNumbers) -> PyResult<Filter> {
    Filter::new(item_bytes, block_bytes, start).map_err(|fault| PyValueError::new_err(fault.to_string()))
}

/// The seek table of an image file.
#[pyclass(module = "userfault._core", frozen)]
struct ImageIndex {
    file: ImageFile,
    path: String,
}

impl ImageIndex {
    fn check(&self, number: u32) -> PyResult<()> {
        let frames = self.file.index().frame_count();
        if number < frames {
            return Ok(());
        }
        Err(PyIndexError::new_err(format!("frame {number} of {frames}")))
    }
}

#[pymethods]
impl ImageIndex {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let name = path.to_string_lossy().into_owned();
        let file = py.detach(|| ImageFile::open(&path)).map_err(|error| image_error(py, &error, &name))?;
        Ok(Self { file, path: name })
    }

    #[getter]
    fn path(&self) -> &str {
        &self.path
    }

    #[getter]
    fn decoded_bytes(&self) -> u64 {
        self.file.index().decoded_bytes()
    }

    #[getter]
    fn filled_frames(&self) -> u32 {
        self.file.index().filled_frame_count()
    }

    #[getter]
    fn file_bytes(&self) -> u64 {
        self.file.index().file_bytes()
    }

    #[getter]
    fn has_checksums(&self) -> bool {
        self.file.index().has_checksums()
    }

    #[getter]
    fn common_frame_bytes(&self) -> u32 {
        self.file.index().common_frame_bytes()
    }

    #[getter]
    fn largest_frame_bytes(&self) -> u32 {
        self.file.index().largest_data_bytes()
    }

    #[getter]
    fn filter(&self) -> Option<FilterNumbers> {
        self.file.index().filter().map(Filter::numbers)
    }

    fn __len__(&self) -> usize {
        self.file.index().frame_count() as usize
    }

    fn __repr__(&self) -> String {
        format!("ImageIndex({:?}, frames={}, decoded_bytes={})", self.path, self.__len__(), self.decoded_bytes())
    }

    fn frame(&self, number: u32) -> PyResult<FrameTuple> {
        self.check(number)?;
        let frame = self.file.index().frame(number);
        Ok((frame.offset, frame.compressed_bytes, frame.decoded_offset, frame.decoded_bytes, frame.checksum))
    }

    fn is_zero(&self, py: Python<'_>, number: u32) -> PyResult<bool> {
        self.check(number)?;
        let frame = self.file.index().frame(number);
        py.detach(|| self.file.is_zero(frame)).map_err(|error| image_error(py, &error, &self.path))
    }

    fn count_zeros(&self, py: Python<'_>) -> PyResult<(u32, u64)> {
        py.detach(|| self.file.count_zeros()).map_err(|error| image_error(py, &error, &self.path))
    }

    /// (frame, decoded offset, decoded bytes, what is wrong) of each bad one in [start, stop).
    fn verify(&self, py: Python<'_>, start: u32, stop: u32) -> Vec<(u32, u64, u32, String)> {
        let stop = stop.min(self.file.index().frame_count());
        let bad = py.detach(|| self.file.verify(start..stop));
        let tell = |bad: engine::image::BadFrame| {
            (bad.frame.number, bad.frame.decoded_offset, bad.frame.decoded_bytes, bad.error.to_string())
        };
        bad.into_iter().map(tell).collect()
    }
}

/// Makes frames, in as many threads at once as call it; encoders are kept and used again.
#[pyclass(module = "userfault._core", frozen)]
struct FrameEncoders {
    cut: Cut,
    level: i32,
    spare: Mutex<Vec<FrameEncoder>>,
}

impl FrameEncoders {
    fn encode_detached(&self, at: u64, data: &[u8]) -> Result<Vec<Piece>, ImageError> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut encoder = match spare {
            Some(encoder) => encoder,
            None => FrameEncoder::new(self.level)?,
        };
        let pieces = chunk::encode(&mut encoder, at, data, self.cut);
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(encoder);
        pieces
    }
}

#[pymethods]
impl FrameEncoders {
    #[new]
    #[pyo3(signature = (frame_bytes, level, filter=None))]
    fn new(py: Python<'_>, frame_bytes: usize, level: i32, filter: Option<FilterNumbers>) -> PyResult<Self> {
        if frame_bytes == 0 || frame_bytes > MAX_FRAME_BYTES as usize {
            return Err(PyValueError::new_err(format!(
                "frames of {frame_bytes} bytes: 1 to {MAX_FRAME_BYTES} are possible"
            )));
        }
        let (lowest, highest) = frame::levels();
        if !(lowest..=highest).contains(&level) {
            return Err(PyValueError::new_err(format!("level {level}: {lowest} to {highest} are possible")));
        }
        let filter = filter.map(filter_of).transpose()?;
        if let Some((_, block_bytes, _)) = filter.as_ref().map(Filter::numbers)
            && !frame_bytes.is_multiple_of(block_bytes as usize)
        {
            return Err(PyValueError::new_err(format!("blocks of {block_bytes} bytes in frames of {frame_bytes}")));
        }
        let first = FrameEncoder::new(level).map_err(|error| image_error_class(py, error.to_string()))?;
        Ok(Self { cut: Cut { frame_bytes, filter }, level, spare: Mutex::new(vec![first]) })
    }

    /// Pieces in order: an int is that many zero bytes, a pair is frames and their table entries. `data` lies at byte `at`.
    fn encode<'py>(&self, py: Python<'py>, data: &Bound<'py, PyBytes>, at: u64) -> PyResult<Bound<'py, PyList>> {
        let bytes = data.as_bytes();
        let pieces =
            py.detach(|| self.encode_detached(at, bytes)).map_err(|error| image_error_class(py, error.to_string()))?;
        let list = PyList::empty(py);
        for piece in pieces {
            match piece {
                Piece::Zeros(count) => list.append(count)?,
                Piece::Frames { payload, entries } => {
                    list.append((PyBytes::new(py, &payload), PyBytes::new(py, &entries)))?;
                }
            }
        }
        Ok(list)
    }
}

/// The frame of so many zeros and its table entry.
#[pyfunction]
fn zero_frame(py: Python<'_>, decoded_bytes: u32) -> PyResult<(Bound<'_, PyBytes>, Bound<'_, PyBytes>)> {
    if decoded_bytes == 0 || decoded_bytes > MAX_FRAME_BYTES {
        return Err(PyValueError::new_err(format!("{decoded_bytes} zeros: 1 to {MAX_FRAME_BYTES} fit a frame")));
    }
    let (frame, entry) = py.detach(|| chunk::zeros(decoded_bytes));
    Ok((PyBytes::new(py, &frame), PyBytes::new(py, &entry)))
}

/// Bytes as they were before the filter: `data` lies at byte `at` of the whole, a multiple of the block.
#[pyfunction]
fn unshuffle<'py>(
    py: Python<'py>,
    data: &Bound<'py, PyBytes>,
    filter: FilterNumbers,
    at: u64,
) -> PyResult<Bound<'py, PyBytes>> {
    let (filter, bytes) = (filter_of(filter)?, data.as_bytes());
    if !at.is_multiple_of(u64::from(filter.numbers().1)) {
        return Err(PyValueError::new_err(format!("byte {at} is not where a block begins")));
    }
    PyBytes::new_with(py, bytes.len(), |out| {
        py.detach(|| filter.undo(at, bytes, 0, out));
        Ok(())
    })
}

/// What follows the last frame, given all entries, and the filter if there is one.
#[pyfunction]
#[pyo3(signature = (entries, filter=None))]
fn seek_table<'py>(
    py: Python<'py>,
    entries: &Bound<'py, PyBytes>,
    filter: Option<FilterNumbers>,
) -> PyResult<Bound<'py, PyBytes>> {
    let filter = filter.map(filter_of).transpose()?;
    let bytes = entries.as_bytes();
    let frames = bytes.len() / table::ENTRY_BYTES;
    if bytes.len() % table::ENTRY_BYTES != 0 || frames + 1 >= engine::image::MAX_FRAMES as usize {
        return Err(PyValueError::new_err(format!("{} bytes are no entries, or too many", bytes.len())));
    }
    Ok(PyBytes::new(py, &py.detach(|| table::finish(bytes, filter.as_ref()))))
}
