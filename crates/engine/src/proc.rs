//! Files of /proc, read without allocating: whoever waits for us may hold malloc's lock (law 1).
//!
//! *Locks*: none. *Threads*: any, handlers and forked children too. *Blocks on*: nothing but /proc.

use std::ffi::{CStr, c_char};
use std::fmt;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Room for a path of /proc with its numbers, and a zero byte.
const PATH_BYTES: usize = 64;

/// A path on the stack, for system calls.
///
/// ```
/// let path = engine::proc::Path::new(format_args!("/proc/self/fd/{}", 7)).unwrap();
/// assert_eq!(path.as_c_str(), c"/proc/self/fd/7");
/// ```
pub struct Path {
    bytes: [u8; PATH_BYTES],
    used: usize,
}

impl Path {
    /// Put it together. `None`: it has no room, or a zero byte in it.
    #[must_use]
    pub fn new(path: fmt::Arguments<'_>) -> Option<Self> {
        let mut made = Self { bytes: [0; PATH_BYTES], used: 0 };
        fmt::write(&mut made, path).ok()?;
        (!made.bytes[..made.used].contains(&0)).then_some(made)
    }

    /// As C wants it.
    #[must_use]
    pub fn as_c_str(&self) -> &CStr {
        // The rest of the buffer is zeros, and there is at least one.
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }

    /// The same, for a system call.
    #[must_use]
    pub fn as_ptr(&self) -> *const c_char {
        self.as_c_str().as_ptr()
    }
}

impl fmt::Write for Path {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.used + text.len();
        if end >= PATH_BYTES {
            return Err(fmt::Error);
        }
        self.bytes[self.used..end].copy_from_slice(text.as_bytes());
        self.used = end;
        Ok(())
    }
}

/// Open for reading; `None`: it is not there, or there is no descriptor left.
#[must_use]
pub fn open(path: fmt::Arguments<'_>) -> Option<OwnedFd> {
    let path = Path::new(path)?;
    // SAFETY: a path that ends in a zero byte; the descriptor is new and nobody else's.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
    }
}

/// What it says now, as much as `room` takes. The thread it tells about may be gone: `None`.
#[must_use]
pub fn read<'a>(file: &OwnedFd, room: &'a mut [u8]) -> Option<&'a [u8]> {
    // SAFETY: `room` is writable for the call.
    let count = unsafe { libc::pread(file.as_raw_fd(), room.as_mut_ptr().cast(), room.len(), 0) };
    usize::try_from(count).ok().map(|count| &room[..count])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_without_room_or_with_a_zero_is_none() {
        assert!(Path::new(format_args!("/proc/{:063}", 1)).is_none());
        assert!(Path::new(format_args!("/proc/\0")).is_none());
        let longest = Path::new(format_args!("/{:062}", 1)).unwrap();
        assert_eq!(longest.as_c_str().count_bytes(), PATH_BYTES - 1);
    }

    #[test]
    fn what_is_there_is_read_and_what_is_not_is_none() {
        // SAFETY: gettid has no preconditions.
        let file = open(format_args!("/proc/self/task/{}/comm", unsafe { libc::gettid() })).unwrap();
        let mut room = [0; 64];
        let name = std::thread::current().name().map(|name| name.as_bytes()[..name.len().min(15)].to_vec());
        assert_eq!(read(&file, &mut room).map(<[u8]>::trim_ascii_end), name.as_deref());
        assert_eq!(read(&file, &mut room[..3]), name.as_deref().map(|name| &name[..3]));
        assert!(open(format_args!("/proc/self/task/{}/comm", i32::MAX)).is_none());
    }
}
