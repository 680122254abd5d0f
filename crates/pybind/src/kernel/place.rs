//! A place in memory, as Python names it: an address, an (address, length) pair, or an object with the buffer protocol.

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyMemoryView, PyTuple};

/// Where something is; the buffer, if it came from one, stays exported as long as this lives.
pub struct Place {
    pub address: usize,
    pub length: Option<usize>,
    _buffer: Option<PyUntypedBuffer>,
}

impl Place {
    /// A place that no buffer keeps.
    pub fn at(address: usize, length: Option<usize>) -> Self {
        Self { address, length, _buffer: None }
    }

    fn of_buffer(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        // Some exporters, ctypes among them, leave out the strides; a memoryview has them.
        let with_strides = || PyMemoryView::from(object).and_then(|view| PyUntypedBuffer::get(&view));
        let Ok(buffer) = PyUntypedBuffer::get(object).or_else(|_| with_strides()) else {
            let refused = |_| PyTypeError::new_err("a place is an address, (address, length), or a bytes-like object");
            return Ok(Self::at(object.extract().map_err(refused)?, None));
        };
        if buffer.dimensions() == 0 {
            // A numpy scalar: it has a buffer, but whoever passes one means its value.
            return Ok(Self::at(object.extract()?, None));
        }
        if !buffer.is_c_contiguous() {
            return Err(PyValueError::new_err("the buffer must be contiguous (C order)"));
        }
        let (address, length) = (buffer.buf_ptr() as usize, Some(buffer.len_bytes()));
        Ok(Self { address, length, _buffer: Some(buffer) })
    }

    /// Start and length of a place that must say how long it is.
    pub fn range(&self) -> PyResult<(usize, usize)> {
        match self.length {
            Some(length) => Ok((self.address, length)),
            None => Err(PyTypeError::new_err("a bare address has no length: pass (address, length) or a buffer")),
        }
    }
}

impl<'py> FromPyObject<'_, 'py> for Place {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if object.is_instance_of::<PyInt>() {
            // A resolver's calls have addresses: those are not to cost more than they must.
            // SAFETY: an int, borrowed for the call; the GIL is held.
            let address = unsafe { ffi::PyLong_AsSize_t(object.as_ptr()) };
            if address != usize::MAX {
                return Ok(Self::at(address, None));
            }
            drop(PyErr::take(object.py())); // an error, or this very number: the slow way says which
            return Ok(Self::at(object.to_owned().extract()?, None));
        }
        let object = object.to_owned();
        if object.is_instance_of::<PyTuple>() {
            let (address, length) = object.extract()?;
            return Ok(Self::at(address, Some(length)));
        }
        Self::of_buffer(&object)
    }
}

/// Address and length of the memory a buffer (or pair) names.
#[pyfunction]
pub fn range_of(place: Place) -> PyResult<(usize, usize)> {
    place.range()
}

/// How many bytes go from `src` to `dst`: as said, else as long as the source, else as long as the destination.
pub fn transfer_length(dst: &Place, src: &Place, length: Option<usize>) -> PyResult<usize> {
    let length = length.or(src.length).or(dst.length);
    let length = length.ok_or_else(|| PyTypeError::new_err("two bare addresses need a length"))?;
    for (name, place) in [("destination", dst), ("source", src)] {
        if place.length.is_some_and(|room| room < length) {
            let room = place.length.unwrap_or(0);
            return Err(PyValueError::new_err(format!("{length} bytes do not fit the {name} of {room} bytes")));
        }
    }
    Ok(length)
}
