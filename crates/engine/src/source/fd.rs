//! A file as both descriptor tables know it.

use super::{Cause, Patience, Table};
use crate::error::Error;
use crate::threads::Root;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

/// A file open in the application's descriptor table and in the engine's.
pub struct FileHandle {
    application: OwnedFd,
    engine: RawFd,
    /// Whose table `engine` is a number of: in a forked child it is nobody's.
    root: &'static Root,
    /// The filesystem cannot say whether data is in the page cache.
    no_nowait: AtomicBool,
}

impl FileHandle {
    /// Share an open file with the engine's threads.
    ///
    /// # Errors
    /// [`Error::Os`] when it cannot be brought there.
    pub fn new(fd: OwnedFd) -> Result<Self, Error> {
        let root = Root::get()?;
        let engine = root.adopt(&fd)?;
        Ok(Self { application: fd, engine, root, no_nowait: AtomicBool::new(false) })
    }

    /// Open a path for reading.
    ///
    /// # Errors
    /// [`Error::Os`] names the path.
    pub fn open(path: &std::path::Path) -> Result<Self, Error> {
        // A FIFO would be waited for, for ever; on regular files the flag has no effect.
        let opened = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = opened.map_err(|error| Error::Os {
            what: format!("opening {}", path.display()),
            errno: uffd::Errno(error.raw_os_error().unwrap_or(libc::EINVAL)),
        })?;
        check_kind(&file, path)?;
        Self::new(OwnedFd::from(file))
    }

    /// The same, if it is the file of which this is the [`FileHandle::identity`]: a name may be another file's by now.
    ///
    /// # Errors
    /// As [`FileHandle::open`]; ESTALE: it is another one, or was changed.
    pub fn open_same(path: &std::path::Path, identity: Option<[u64; 5]>) -> Result<Self, Error> {
        let handle = Self::open(path)?;
        if identity.is_some_and(|known| handle.identity().ok() != Some(known)) {
            let what = format!("opening {}, which was replaced or changed since its region was made", path.display());
            return Err(Error::Os { what, errno: uffd::Errno(libc::ESTALE) });
        }
        Ok(handle)
    }

    /// Its size now, bytes.
    ///
    /// # Errors
    /// What fstat says.
    pub fn size(&self) -> std::io::Result<u64> {
        Ok(std::fs::File::from(self.application.try_clone()?).metadata()?.len())
    }

    /// Which file it is, and as of when: device, inode, length, and its last change in seconds and nanoseconds.
    ///
    /// # Errors
    /// What fstat says.
    pub fn identity(&self) -> std::io::Result<[u64; 5]> {
        let about = std::fs::File::from(self.application.try_clone()?).metadata()?;
        Ok([about.dev(), about.ino(), about.len(), about.ctime() as u64, about.ctime_nsec() as u64])
    }

    /// Read exactly `out.len()` bytes at `offset`. Safe in a signal handler.
    ///
    /// # Errors
    /// `Os`, `Short` where the file ends, `WouldBlock` when `NoWait` was asked and the page cache does not have it.
    pub fn read_exact_at(&self, how: (Table, Patience), offset: u64, out: &mut [u8]) -> Result<(), Cause> {
        let fd = match how.0 {
            Table::Application => self.application.as_raw_fd(),
            Table::Engine => self.engine,
        };
        let mut done = 0;
        while done < out.len() {
            let flags = if how.1 == Patience::NoWait {
                if self.no_nowait.load(Ordering::Relaxed) {
                    return Err(Cause::WouldBlock);
                }
                libc::RWF_NOWAIT
            } else {
                0
            };
            let piece = libc::iovec { iov_base: out[done..].as_mut_ptr().cast(), iov_len: out.len() - done };
            let at = libc::off_t::try_from(offset + done as u64).map_err(|_| Cause::Os(libc::EOVERFLOW))?;
            // SAFETY: the vector describes the rest of `out`, which is writable for the call.
            let got = unsafe { libc::preadv2(fd, &raw const piece, 1, at, flags) };
            match got {
                0 => return Err(Cause::Short),
                1.. => done += got as usize,
                _ => self.look_at(uffd::Errno::last().0)?,
            }
        }
        Ok(())
    }

    /// Ok: try again.
    fn look_at(&self, errno: i32) -> Result<(), Cause> {
        match errno {
            libc::EINTR => Ok(()),
            libc::EAGAIN => Err(Cause::WouldBlock),
            libc::EOPNOTSUPP => {
                self.no_nowait.store(true, Ordering::Relaxed);
                Err(Cause::WouldBlock)
            }
            errno => Err(Cause::Os(errno)),
        }
    }
}

/// Only what has a length and can be read at any offset.
fn check_kind(file: &std::fs::File, path: &std::path::Path) -> Result<(), Error> {
    let about = file.metadata().ok().filter(std::fs::Metadata::is_file);
    let Some(about) = about else {
        return Err(Error::Invalid(format!(
            "{} is not a regular file: its bytes have no fixed places",
            path.display()
        )));
    };
    if about.len() == 0 && file.read_at(&mut [0], 0).is_ok_and(|count| count > 0) {
        let text = "does not tell its length (a file of /proc?): read it, and map the bytes";
        return Err(Error::Invalid(format!("{} {text}", path.display())));
    }
    Ok(())
}

impl Drop for FileHandle {
    fn drop(&mut self) {
        if Root::current().is_some_and(|root| std::ptr::eq(root, self.root)) {
            self.root.close(self.engine);
        }
    }
}
