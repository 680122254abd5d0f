//! The kernel's error numbers, with the names people search for.

use std::ffi::CStr;
use std::fmt;

/// An errno value as the kernel returned it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Errno(pub i32);

impl Errno {
    /// The errno of the last failed call of this thread. Async-signal-safe.
    #[inline]
    pub fn last() -> Self {
        // SAFETY: libc gives a valid pointer to the errno of the calling thread, for as long as the thread lives.
        Self(unsafe { *libc::__errno_location() })
    }

    /// The symbolic name, such as `EAGAIN`, where this crate knows one.
    pub fn name(self) -> Option<&'static str> {
        NAMES.iter().find(|(number, _)| *number == self.0).map(|(_, name)| *name)
    }

    /// What the C library says about this number.
    pub fn text(self) -> String {
        let mut buffer = [0u8; 128];
        // SAFETY: the buffer is ours and its true length is passed; the XSI strerror_r always ends it with NUL.
        let failed = unsafe { libc::strerror_r(self.0, buffer.as_mut_ptr().cast(), buffer.len()) };
        match CStr::from_bytes_until_nul(&buffer) {
            Ok(text) if failed == 0 => text.to_string_lossy().into_owned(),
            _ => format!("unknown error {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({})", self.text()),
            None => write!(f, "errno {} ({})", self.0, self.text()),
        }
    }
}

impl std::error::Error for Errno {}

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}

macro_rules! names {
    ($($name:ident)*) => { &[$((libc::$name, stringify!($name)),)*] };
}

/// Names of the numbers that calls of this crate can return.
const NAMES: &[(i32, &str)] = names!(
    EPERM ENOENT ESRCH EINTR EIO ENXIO EBADF EAGAIN ENOMEM EACCES EFAULT EBUSY EEXIST ENODEV ENOTDIR EINVAL ENFILE
    EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EPIPE ERANGE ENOSYS EOVERFLOW ENOTSUP ETIMEDOUT EALREADY
    EINPROGRESS EHWPOISON ECANCELED EDEADLK ELOOP ENAMETOOLONG ENODATA
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_shows_name_and_text() {
        assert_eq!(Errno(libc::EPERM).to_string(), "EPERM (Operation not permitted)");
        assert!(Errno(4_000).to_string().starts_with("errno 4000"));
    }
}
