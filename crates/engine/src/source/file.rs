//! A range of a file, read with pread: never mapped, so a bad sector is an errno (law 9).

use super::fd::FileHandle;
use super::{Reading, Source, SourceError};
use crate::error::Error;

/// `len` bytes of a file from `start`. The length is fixed at opening: growth is not seen, truncation is an error.
pub struct File {
    handle: FileHandle,
    start: u64,
    len: u64,
    name: String,
}

impl File {
    /// A range of a file; `len` `None`: to its end as it is now. `label`: what it is called.
    ///
    /// # Errors
    /// [`Error::Os`] when its size cannot be had, [`Error::Invalid`] when the range is not inside it.
    pub fn new(handle: FileHandle, label: &str, start: u64, len: Option<u64>) -> Result<Self, Error> {
        let size = handle.size().map_err(|error| Error::Os {
            what: format!("asking for the size of {label}"),
            errno: uffd::Errno(error.raw_os_error().unwrap_or(libc::EIO)),
        })?;
        let rest = size
            .checked_sub(start)
            .ok_or_else(|| Error::Invalid(format!("{label} has {size} bytes; offset {start} lies behind its end")))?;
        let len = len.unwrap_or(rest);
        if len > rest {
            return Err(Error::Invalid(format!(
                "{label} has {size} bytes; {len} bytes from offset {start} are more than it holds"
            )));
        }
        Ok(Self { handle, start, len, name: format!("File({label:?}, {start}, {len})") })
    }
}

impl Source for File {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_into(&self, offset: u64, out: &mut [u8], how: &mut Reading<'_>) -> Result<(), SourceError> {
        let outcome = self.handle.read_exact_at((how.table, how.patience), self.start + offset, out);
        outcome.map_err(|cause| SourceError::new(offset, cause))
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn signal_safe(&self) -> bool {
        true
    }

    fn page_granular(&self) -> bool {
        true
    }

    fn readahead_helps(&self) -> bool {
        false
    }
}
