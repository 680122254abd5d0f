//! Where the bytes of an image lie: in a file, or in any source.
//!
//! *Locks*: none. *Blocks on*: the file or the source. *Signal safety*: that of the file (safe) or of the source.

use super::fd::FileHandle;
use super::{Cause, Reading, Scratch, ScratchNeeds, Source, SourceError};
use std::cell::RefCell;
use std::io;
use std::sync::Arc;

/// Bytes at offsets.
pub trait Stored: Send + Sync {
    /// How many there are.
    ///
    /// # Errors
    /// What the kernel says.
    fn size(&self) -> io::Result<u64>;

    /// Fill `out` with the bytes at `offset`.
    ///
    /// # Errors
    /// Why they could not be had.
    fn read(&self, offset: u64, out: &mut [u8], how: &mut Reading<'_>) -> Result<(), Cause>;

    /// Which bytes these are, and as of when: equal ones are shared by what caches them. `None`: nobody can tell.
    fn identity(&self) -> Option<[u64; 5]>;

    /// The source, where it is one.
    fn source(&self) -> Option<&dyn Source>;
}

impl Stored for FileHandle {
    fn size(&self) -> io::Result<u64> {
        FileHandle::size(self)
    }

    fn read(&self, offset: u64, out: &mut [u8], how: &mut Reading<'_>) -> Result<(), Cause> {
        self.read_exact_at((how.table, how.patience), offset, out)
    }

    fn identity(&self) -> Option<[u64; 5]> {
        FileHandle::identity(self).ok()
    }

    fn source(&self) -> Option<&dyn Source> {
        None
    }
}

impl Stored for Arc<dyn Source> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len())
    }

    fn read(&self, offset: u64, out: &mut [u8], how: &mut Reading<'_>) -> Result<(), Cause> {
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > self.len()) {
            return Err(Cause::Short);
        }
        self.read_into(offset, out, how).map_err(|error| error.cause)
    }

    fn identity(&self) -> Option<[u64; 5]> {
        None
    }

    fn source(&self) -> Option<&dyn Source> {
        Some(&**self)
    }
}

/// A request to a store costs far more than the bytes of a seek table: so many are asked for at once.
const WINDOW_BYTES: u64 = 256 << 10;

/// What reads while an image is opened, in a thread of the application that may wait. From a source it reads in windows, so
/// that the table at the end comes with one request, or with few.
pub struct Opening<'a> {
    bytes: &'a dyn Stored,
    scratch: RefCell<Scratch>,
    /// Where the last window begins, and what it holds.
    window: RefCell<(u64, Vec<u8>)>,
    size: u64,
}

impl<'a> Opening<'a> {
    /// For these bytes.
    ///
    /// # Errors
    /// As [`Stored::size`].
    pub fn new(bytes: &'a dyn Stored) -> io::Result<Self> {
        let scratch = RefCell::new(Scratch::new(uffd::page_size(), ScratchNeeds::default()));
        Ok(Self { bytes, scratch, window: RefCell::default(), size: bytes.size()? })
    }

    /// How many bytes there are.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fill `out`.
    ///
    /// # Errors
    /// The errno, or the [`SourceError`] inside.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.bytes.source().is_none() || out.len() as u64 >= WINDOW_BYTES {
            return self.read_now(offset, out);
        }
        let end = offset.saturating_add(out.len() as u64);
        let mut window = self.window.borrow_mut();
        if offset < window.0 || end > window.0 + window.1.len() as u64 {
            // The last bytes are asked for first, and what is before them next.
            let start = offset.min(self.size.saturating_sub(WINDOW_BYTES));
            let bytes = if offset == 0 { out.len() as u64 } else { WINDOW_BYTES.min(self.size - start) };
            let mut fresh = vec![0; bytes.max(end.saturating_sub(start)) as usize];
            self.read_now(start, &mut fresh)?;
            *window = (start, fresh);
        }
        let at = (offset - window.0) as usize;
        out.copy_from_slice(&window.1[at..at + out.len()]);
        Ok(())
    }

    fn read_now(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let scratch = &mut *self.scratch.borrow_mut();
        let mut how = Reading::plain(scratch);
        self.bytes.read(offset, out, &mut how).map_err(|cause| match cause {
            Cause::Os(errno) => io::Error::from_raw_os_error(errno),
            Cause::Short => io::ErrorKind::UnexpectedEof.into(),
            other => io::Error::other(SourceError::new(offset, other)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Extent;
    use super::super::image::ImageSource;
    use super::*;
    use crate::image::testing::{Random, image};
    use std::sync::Mutex;

    /// Bytes that note how they are read.
    struct Noted(Vec<u8>, Arc<Mutex<Vec<(u64, usize)>>>);

    impl Source for Noted {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_into(&self, offset: u64, out: &mut [u8], _how: &mut Reading<'_>) -> Result<(), SourceError> {
            self.1.lock().unwrap().push((offset, out.len()));
            out.copy_from_slice(&self.0[offset as usize..offset as usize + out.len()]);
            Ok(())
        }

        fn name(&self) -> String {
            "Noted".into()
        }
    }

    #[test]
    fn an_image_in_a_source_asks_for_what_is_wanted() {
        let mut random = Random(11);
        let (a, zeros, b) = (random.bytes(65_536), vec![0; 65_536], random.bytes(65_536));
        let packed = image(&[&a, &zeros, &b], true);
        let reads = Arc::new(Mutex::new(Vec::new()));
        let source = ImageSource::inside(Arc::new(Noted(packed, reads.clone()))).unwrap();
        assert_eq!((source.len(), source.name()), (3 << 16, "Image(Noted)".to_owned()));
        let mut scratch = Scratch::new(65_536, source.needs());
        let mut how = Reading::plain(&mut scratch);
        reads.lock().unwrap().clear();
        // What lies there is told only as far as it is known: a store is not asked.
        assert_eq!(source.extent(65_536, 65_536, &mut how), Extent::Data(65_536));
        assert_eq!(*reads.lock().unwrap(), []);
        for (offset, part) in [(0, &a), (1, &zeros), (2, &b)] {
            let mut out = vec![1; 65_536];
            source.read_into(offset << 16, &mut out, &mut how).unwrap();
            assert!(out == *part, "frame {offset}");
        }
        assert_eq!(reads.lock().unwrap().len(), 3);
        assert_eq!(source.extent(65_536, 65_536, &mut how), Extent::Zero(65_536));
    }

    #[test]
    fn a_table_at_the_end_comes_with_one_request() {
        let bytes: Vec<u8> = (0..1_000_000u32).map(|number| (number % 251) as u8).collect();
        let reads = Arc::new(Mutex::new(Vec::new()));
        let source: Arc<dyn Source> = Arc::new(Noted(bytes.clone(), reads.clone()));
        let opening = Opening::new(&source).unwrap();
        for (offset, length) in [(0, 4), (999_991, 9), (900_000, 8), (900_008, 65_536), (999_000, 16)] {
            let mut out = vec![0; length];
            opening.read(offset, &mut out).unwrap();
            assert_eq!(out, bytes[offset as usize..offset as usize + length]);
        }
        assert_eq!(*reads.lock().unwrap(), [(0, 4), (1_000_000 - 262_144, 262_144)]);
        assert!(opening.read(999_999, &mut [0; 2]).is_err());
    }
}
