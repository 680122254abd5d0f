//! The buffers that Python sources fill: used again for the next read of any source, once nobody refers to them.
//!
//! *Locks*: `SPARE`, taken only with the GIL held, for a few instructions in which no Python runs.

use pyo3::prelude::*;
use pyo3::types::PyByteArray;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a source leaves unwritten reads as the error pattern does: never as zeros, never as other pages.
const UNWRITTEN: u8 = 0xFF;
/// Kept for all sources together, and in how many buffers.
const MOST_BYTES: usize = 16 << 20;
const MOST: usize = 64;

#[derive(Default)]
struct Spare {
    /// With their lengths; the one that was used last is last.
    buffers: VecDeque<(usize, Py<PyByteArray>)>,
    bytes: usize,
}

static SPARE: Mutex<Spare> = Mutex::new(Spare { buffers: VecDeque::new(), bytes: 0 });

fn spare() -> MutexGuard<'static, Spare> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One of `length` bytes, none of them written.
pub fn take(py: Python<'_>, length: usize) -> PyResult<Bound<'_, PyByteArray>> {
    let mut spare = spare();
    let found = spare.buffers.iter().rposition(|(known, _)| *known == length);
    let found = found.and_then(|index| spare.buffers.remove(index));
    spare.bytes -= found.as_ref().map_or(0, |(length, _)| *length);
    drop(spare);
    let fill = |bytes: &mut [u8]| bytes.fill(UNWRITTEN);
    match found.map(|(_, buffer)| buffer.into_bound(py)).filter(|buffer| buffer.len() == length) {
        Some(buffer) => {
            // SAFETY: the GIL is held, and nobody else refers to the buffer.
            fill(unsafe { buffer.as_bytes_mut() });
            Ok(buffer)
        }
        None => PyByteArray::new_with(py, length, |bytes| {
            fill(bytes);
            Ok(())
        }),
    }
}

/// Nobody else refers to it any more.
pub fn put_back(buffer: Bound<'_, PyByteArray>) {
    let length = buffer.len();
    if length > MOST_BYTES {
        return;
    }
    let mut spare = spare();
    let mut dropped = None;
    while spare.bytes + length > MOST_BYTES || spare.buffers.len() >= MOST {
        let Some((length, oldest)) = spare.buffers.pop_front() else { break };
        spare.bytes -= length;
        dropped = Some(oldest);
    }
    spare.bytes += length;
    spare.buffers.push_back((length, buffer.unbind()));
    drop(spare);
    drop(dropped);
}
