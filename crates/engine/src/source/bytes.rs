//! Bytes that are in memory already. Unless they are known to be the heap's, the engine never reads them itself: only
//! the kernel does (UFFDIO_COPY, process_vm_readv), so a buffer over a file with a bad sector gives an errno and no
//! signal. A plain copy takes half the time, which huge units notice.

use super::{Cause, Extent, Latency, Reading, Source, SourceError};

/// Keeps whatever owns the bytes alive; dropped with the source.
pub type Owner = Box<dyn Send + Sync>;

/// A range of this process's memory.
pub struct Bytes {
    address: usize,
    len: usize,
    heap: bool,
    _owner: Owner,
}

impl Bytes {
    /// The `len` bytes at `address`; `heap`: they were allocated, and reading them cannot fail.
    ///
    /// # Safety
    /// The range stays mapped, and is not lazy memory of this engine, as long as `owner` lives. With `heap` it is private
    /// anonymous memory, readable as long.
    #[must_use]
    pub unsafe fn new(address: usize, len: usize, heap: bool, owner: Owner) -> Self {
        Self { address, len, heap, _owner: owner }
    }
}

/// Have the kernel copy this process's own memory: a bad address is EFAULT. Async-signal-safe.
///
/// # Errors
/// The errno, and how many bytes were copied before it.
pub fn copy_by_kernel(from: usize, out: &mut [u8]) -> Result<(), (usize, i32)> {
    let mut done = 0;
    while done < out.len() {
        let local = libc::iovec { iov_base: out[done..].as_mut_ptr().cast(), iov_len: out.len() - done };
        let remote = libc::iovec { iov_base: (from + done) as *mut libc::c_void, iov_len: out.len() - done };
        // SAFETY: `local` is the rest of `out`; `remote` is only ever read, and by the kernel, which checks it.
        let got = unsafe { libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0) };
        match got {
            1.. => done += got as usize,
            0 => return Err((done, libc::EFAULT)),
            _ => return Err((done, uffd::Errno::last().0)),
        }
    }
    Ok(())
}

impl Source for Bytes {
    fn len(&self) -> u64 {
        self.len as u64
    }

    fn read_into(&self, offset: u64, out: &mut [u8], _how: &mut Reading<'_>) -> Result<(), SourceError> {
        let from = self.address + offset as usize;
        if self.heap {
            // SAFETY: by the contract of `new` the range is readable; `out` is another object's memory. The bytes may be
            // changed meanwhile by their owner, who then gets a mixture, as with any copy.
            unsafe { std::ptr::copy_nonoverlapping(from as *const u8, out.as_mut_ptr(), out.len()) };
            return Ok(());
        }
        copy_by_kernel(from, out).map_err(|(done, errno)| SourceError::new(offset + done as u64, Cause::Os(errno)))
    }

    fn extent(&self, offset: u64, len: usize, _how: &mut Reading<'_>) -> Extent {
        Extent::Memory(self.address + offset as usize, len)
    }

    fn name(&self) -> String {
        format!("Bytes({} bytes)", self.len)
    }

    fn latency(&self) -> Latency {
        if self.heap { Latency::Fast } else { Latency::MayBlock }
    }

    fn readahead_helps(&self) -> bool {
        false
    }

    fn signal_safe(&self) -> bool {
        true
    }

    fn page_granular(&self) -> bool {
        true
    }
}
