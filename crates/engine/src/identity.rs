//! Which file a descriptor's number means: the application may close what is ours, and open another file under the number.
//!
//! *Locks*: none. *Threads*: any, signal handlers too; each asks about its own table.

use crate::proc;
use std::os::fd::RawFd;

/// Which file a number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity(u64, u64);

/// Of `number` in the calling thread's table; `None`: nothing is open there. Each userfaultfd has an inode of its own.
#[must_use]
pub fn identity(number: RawFd) -> Option<Identity> {
    // SAFETY: fills our structure.
    unsafe {
        let mut found: libc::stat = std::mem::zeroed();
        (libc::fstat(number, &raw mut found) == 0).then_some(Identity(found.st_dev, found.st_ino))
    }
}

/// Close a userfaultfd, unless somebody closed it and the number is another file's now. System calls only.
pub fn close_if_userfaultfd(fd: i32) {
    let Some(path) = proc::Path::new(format_args!("/proc/self/fd/{fd}")) else { return };
    let mut name = [0u8; 32];
    // SAFETY: a path that ends in a zero byte, and room for 32 bytes; closing acts on a number known to be ours.
    unsafe {
        let count = libc::readlink(path.as_ptr(), name.as_mut_ptr().cast(), name.len());
        if count > 0 && name.starts_with(b"anon_inode:[userfaultfd]") {
            libc::close(fd);
        }
    }
}
