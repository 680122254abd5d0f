//! What a pager is told in bytes: its settings, and what its sources are. It gets them in a file that nobody can change any more.
//!
//! Were they in the file that both write, a source could set what its successor believes: that needs no sandbox, or another pickle.
//!
//! *Locks*: none. *Threads*: engine threads, in whose descriptor table everything is close-on-exec; [`read`]: the pager's.
//! *Blocks on*: nothing; copying takes its time.

use crate::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use uffd::Errno;

const SEALS: libc::c_int = libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;

/// A memory file of these bytes, for one pager.
///
/// # Errors
/// [`Error::Os`]: no descriptor or no memory.
pub fn seal(bytes: &[u8]) -> Result<OwnedFd, Error> {
    let failed = |errno| Error::Os { what: "writing what a pager is told".into(), errno: Errno(errno) };
    // SAFETY: the name is a C string; the descriptor is new and nobody else's.
    let file = unsafe {
        let fd = libc::memfd_create(c"userfault-told".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
        if fd < 0 {
            return Err(failed(Errno::last().0));
        }
        File::from_raw_fd(fd)
    };
    // At offsets: whoever reads it begins where the descriptor stands.
    file.write_all_at(bytes, 0).map_err(|error| failed(error.raw_os_error().unwrap_or(libc::EIO)))?;
    // SAFETY: seals of our own file.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, SEALS) } != 0 {
        return Err(failed(Errno::last().0));
    }
    Ok(file.into())
}

/// The bytes that the owner has sent. They are read, never mapped: a file that a client of a service cuts off is no SIGBUS.
///
/// # Errors
/// What read(2) says.
pub fn read(file: OwnedFd) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::from(file).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_changes_what_was_sealed() {
        let told = seal(b"sandbox").unwrap();
        let file = File::from(told.try_clone().unwrap());
        assert_eq!(file.write_at(b"S", 0).unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(file.set_len(0).unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(file.set_len(100).unwrap_err().raw_os_error(), Some(libc::EPERM));
        // SAFETY: asks for a mapping, which is refused.
        let mapped = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), 7, protection, libc::MAP_SHARED, told.as_raw_fd(), 0)
        };
        assert_eq!(mapped, libc::MAP_FAILED);
        assert_eq!(read(told).unwrap(), b"sandbox");
    }
}
