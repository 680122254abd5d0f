//! Fresh address space of our own (law 7), and nothing else.
//!
//! What is to be registered is mapped without access, and opened when it is: a program that locks its memory (mlockall with
//! MCL_FUTURE) has the kernel fill whatever may be written at once, with zeros, and those would stand in for data (law 3).

use crate::error::Error;
use crate::table::CHUNK;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// A private anonymous range aligned to 2 MiB: not reserved, not inherited by a fork (law 3), huge pages or none; without
/// access until [`open`].
///
/// # Errors
/// [`Error::Os`] when there is no room.
pub fn map_private(bytes: usize, huge: bool) -> Result<usize, Error> {
    let base = map_aligned(bytes, None)?;
    hide_from_forks(base, bytes)?;
    // Below 2 MiB units a huge page would be split at every turn, and khugepaged would build more (docs/facts.md, Filling). Kernels
    // without huge pages refuse both advices; there is nothing to prevent then.
    let _ = advise(base, bytes, if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE });
    Ok(base)
}

/// Ordinary memory that a forked child inherits a copy of.
///
/// # Errors
/// [`Error::Os`] when there is no room.
pub fn map_ordinary(bytes: usize) -> Result<usize, Error> {
    let base = map_aligned(bytes, None)?;
    open(base, bytes).inspect_err(|_| unmap(base, bytes))?;
    Ok(base)
}

/// Let a range that was mapped here be read and written: once it is registered. Even where the program locked all its memory
/// since, the kernel makes no page of it then.
///
/// # Errors
/// [`Error::Os`].
pub fn open(base: usize, bytes: usize) -> Result<(), Error> {
    // SAFETY: the caller mapped the range, and nobody uses it yet.
    if unsafe { libc::mprotect(base as *mut libc::c_void, bytes, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
        return Err(Error::last_os(format!("giving access to {bytes} bytes")));
    }
    Ok(())
}

/// A memory file mapped shared and aligned to 2 MiB, without access until [`open`]; others may map it too.
///
/// # Errors
/// [`Error::Os`] when the file cannot be made or mapped.
pub fn map_shared(bytes: usize) -> Result<(usize, OwnedFd), Error> {
    // SAFETY: the name is a C string; the result is checked.
    let fd = unsafe { libc::memfd_create(c"userfault".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(Error::last_os("creating a memory file"));
    }
    // SAFETY: memfd_create just made it and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let size = libc::off_t::try_from(bytes).map_err(|_| Error::Invalid("the region is too long for a file".into()))?;
    // SAFETY: sets the size of our own file.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), size) } != 0 {
        return Err(Error::last_os(format!("giving a memory file {bytes} bytes")));
    }
    let base = map_aligned(bytes, Some(fd.as_raw_fd()))?;
    hide_from_forks(base, bytes)?;
    Ok((base, fd))
}

/// A mapping that a fork would inherit is of no use: it goes.
fn hide_from_forks(base: usize, bytes: usize) -> Result<(), Error> {
    advise(base, bytes, libc::MADV_DONTFORK).inspect_err(|_| unmap(base, bytes))
}

fn map_aligned(bytes: usize, file: Option<RawFd>) -> Result<usize, Error> {
    let room = bytes
        .checked_add(CHUNK)
        .ok_or_else(|| Error::Invalid(format!("{bytes} bytes do not fit the address space")))?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh reservation where the kernel likes.
    let raw = unsafe { libc::mmap(std::ptr::null_mut(), room, libc::PROT_NONE, flags, -1, 0) };
    if raw == libc::MAP_FAILED {
        return Err(Error::last_os(match std::io::Error::last_os_error().raw_os_error() {
            Some(libc::EAGAIN) => format!(
                "mapping {bytes} bytes of address space, of a process that locks its memory (mlockall) beyond RLIMIT_MEMLOCK"
            ),
            _ => format!("mapping {bytes} bytes of address space"),
        }));
    }
    let raw = raw as usize;
    let base = raw.next_multiple_of(CHUNK);
    unmap(raw, base - raw);
    unmap(base + bytes, raw + room - (base + bytes));
    if let Some(fd) = file {
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: replaces a part of our own reservation.
        let mapped = unsafe { libc::mmap(base as *mut libc::c_void, bytes, libc::PROT_NONE, flags, fd, 0) };
        if mapped == libc::MAP_FAILED {
            let error = Error::last_os(format!("mapping {bytes} bytes"));
            unmap(base, bytes);
            return Err(error);
        }
    }
    // Locked pages are moved to locked ones only, and staging is ours: nothing we map is locked, unless somebody does it later.
    // SAFETY: acts on our own range.
    unsafe { libc::munlock(base as *const libc::c_void, bytes) };
    Ok(base)
}

/// Nobody may touch these bytes any more: a touch is SIGSEGV, EFAULT in a system call.
pub fn forbid(address: usize, bytes: usize) {
    // SAFETY: the caller's own mapping, which no reference points into.
    unsafe { libc::mprotect(address as *mut libc::c_void, bytes, libc::PROT_NONE) };
}

/// Give address space back. For ranges of our own only.
pub fn unmap(start: usize, bytes: usize) {
    if bytes > 0 {
        // SAFETY: callers pass ranges they mapped and no longer use.
        unsafe { libc::munmap(start as *mut libc::c_void, bytes) };
    }
}

/// madvise on a range of our own.
///
/// # Errors
/// [`Error::Os`].
pub fn advise(start: usize, bytes: usize, advice: libc::c_int) -> Result<(), Error> {
    // SAFETY: callers pass ranges they mapped, and own the pages they drop.
    let done = |advice| unsafe { libc::madvise(start as *mut libc::c_void, bytes, advice) == 0 };
    // The plain form refuses memory that somebody has locked, and an error pattern would stay for good.
    if done(advice) || advice == libc::MADV_DONTNEED && done(libc::MADV_DONTNEED_LOCKED) {
        return Ok(());
    }
    Err(Error::last_os(format!("madvise({advice}) on {bytes} bytes at {start:#x}")))
}

/// Drop pages of a memory file, offsets in bytes, where it is mapped too: MADV_REMOVE would refuse memory that is locked.
pub fn punch(file: RawFd, bytes: &std::ops::Range<usize>) {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: changes a file of our own. Offsets fit: the file was given its length by `map_shared`.
    unsafe { libc::fallocate(file, mode, bytes.start as libc::off_t, bytes.len() as libc::off_t) };
}

/// Is the private page at `address` there? A swapped-out page answers no: resolving it then answers EEXIST, which is right
/// too. Of a memory file this would say whether the file has the page: see [`is_mapped`].
#[must_use]
pub fn is_resident(address: usize) -> bool {
    let mut answer = 0u8;
    // SAFETY: one page, one byte of answer.
    let done = unsafe { libc::mincore(address as *mut libc::c_void, uffd::page_size(), &raw mut answer) };
    done == 0 && answer & 1 == 1
}

const PRESENT: u64 = 1 << 63;
const SWAP_OR_MARKER: u64 = 1 << 62;

/// Is the page at `address` poisoned? Its entry in the page table is then neither a page nor nothing. System calls only:
/// signal handlers call it.
#[must_use]
pub fn is_poisoned(address: usize) -> bool {
    let mut entry = [0];
    entries(address, &mut entry) && entry[0] & (PRESENT | SWAP_OR_MARKER) == SWAP_OR_MARKER
}

/// Are so many pages from `address` on in this process's page table? A page of a memory file may be in the file only: never
/// touched here, or unmapped by the kernel when memory was short. System calls only: signal handlers call it.
#[must_use]
pub fn is_mapped(address: usize, pages: usize) -> bool {
    let mut answers = [0; 64];
    (0..pages).step_by(answers.len()).all(|first| {
        let answers = &mut answers[..(pages - first).min(64)];
        entries(address + first * uffd::page_size(), answers) && answers.iter().all(|entry| entry & PRESENT != 0)
    })
}

/// Is the page at `address` there and this process's own, no page of a file?
#[cfg(test)]
pub fn is_own(address: usize) -> bool {
    const OF_FILE: u64 = 1 << 61;
    let mut entry = [0];
    entries(address, &mut entry) && entry[0] & (PRESENT | OF_FILE) == PRESENT
}

/// The entries of pagemap from the page at `address` on; false: they cannot be read.
fn entries(address: usize, answers: &mut [u64]) -> bool {
    let at = (address / uffd::page_size() * size_of::<u64>()) as libc::off_t;
    // SAFETY: a constant path; room for as many bytes as are asked for.
    let got = unsafe {
        let fd = libc::open(c"/proc/self/pagemap".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        let got = libc::pread(fd, answers.as_mut_ptr().cast(), size_of_val(answers), at);
        libc::close(fd);
        got
    };
    usize::try_from(got) == Ok(size_of_val(answers))
}
