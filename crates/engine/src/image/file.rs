//! An image file opened to be looked at, not mapped: inspected and verified frame by frame.

use super::frame::{FrameFault, decode, is_zero_frame, zero_checksum};
use super::{Frame, ImageError, Index};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// An open image and its seek table.
///
/// *Locks*: one around the list of spare verifiers, held for a push or a pop. *Threads*: safe from any.
pub struct ImageFile {
    file: File,
    index: Index,
    /// Verifiers that nobody uses now.
    spare: Mutex<Vec<Verifier>>,
}

/// A frame that is not what it should be.
#[derive(Debug)]
pub struct BadFrame {
    /// Which one.
    pub frame: Frame,
    /// What is wrong with it.
    pub error: ImageError,
}

impl ImageFile {
    /// Open an image and check its seek table.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        // Non-blocking, so that a pipe's missing writer keeps nobody waiting: it is no image anyway.
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let mut file = opened.map_err(ImageError::Open)?;
        // Where seeking tells the size of a block device, its metadata does not.
        let file_bytes = file.seek(SeekFrom::End(0)).map_err(ImageError::Open)?;
        let index = Index::read(file_bytes, &|offset, out: &mut [u8]| file.read_exact_at(out, offset))?;
        Ok(Self { file, index, spare: Mutex::default() })
    }

    /// Its seek table.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    fn read_compressed<'a>(&self, frame: Frame, buffer: &'a mut Vec<u8>) -> Result<&'a [u8], ImageError> {
        buffer.resize(frame.compressed_bytes as usize, 0);
        let (offset, bytes) = (frame.offset, u64::from(frame.compressed_bytes));
        self.file.read_exact_at(buffer, offset).map_err(|error| ImageError::Io { offset, bytes, error })?;
        Ok(buffer)
    }

    /// Does the frame hold only zeros, written as such?
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn is_zero(&self, frame: Frame) -> Result<bool, ImageError> {
        if !frame.may_be_zero() {
            return Ok(false);
        }
        let mut buffer = Vec::new();
        Ok(is_zero_frame(self.read_compressed(frame, &mut buffer)?, frame.decoded_bytes))
    }

    /// How many frames hold only zeros, and how many bytes they make.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn count_zeros(&self) -> Result<(u32, u64), ImageError> {
        let mut count = (0, 0);
        for frame in self.index.frames() {
            if self.is_zero(frame)? {
                count = (count.0 + 1, count.1 + u64::from(frame.decoded_bytes));
            }
        }
        Ok(count)
    }

    /// Decode these frames and compare their checksums; those that fail.
    ///
    /// # Panics
    /// When there are no such frames.
    #[must_use]
    pub fn verify(&self, frames: Range<u32>) -> Vec<BadFrame> {
        let mut verifier = self.spare().pop().unwrap_or_default();
        let bad = frames
            .map(|number| self.index.frame(number))
            .filter_map(|frame| verifier.check(self, frame).err().map(|error| BadFrame { frame, error }))
            .collect();
        self.spare().push(verifier);
        bad
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Verifier>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What checking frames needs, used again for each.
#[derive(Default)]
struct Verifier {
    decoder: zstd_safe::DCtx<'static>,
    compressed: Vec<u8>,
    decoded: Vec<u8>,
    /// The last length of zeros and its checksum: runs have few lengths, and long ones take their time.
    zeros: Option<(u32, u32)>,
}

impl Verifier {
    fn check(&mut self, image: &ImageFile, frame: Frame) -> Result<(), ImageError> {
        if frame.decoded_bytes == 0 && frame.compressed_bytes > super::MAX_COMPRESSED_BYTES {
            // A long frame to be skipped: nothing of it is wanted.
            return Ok(());
        }
        let compressed = image.read_compressed(frame, &mut self.compressed)?;
        let checked = if is_zero_frame(compressed, frame.decoded_bytes) {
            self.check_zeros(frame)
        } else {
            self.decoded.resize(frame.decoded_bytes as usize, 0);
            // The checksum of nothing says nothing, and writers of skippable frames put what they like there.
            let expected = frame.checksum.filter(|_| frame.decoded_bytes > 0);
            decode(&mut self.decoder, compressed, &mut self.decoded, expected)
        };
        checked.map_err(|fault| ImageError::Frame {
            frame: frame.number,
            offset: frame.offset,
            decoded_offset: frame.decoded_offset,
            fault,
        })
    }

    fn check_zeros(&mut self, frame: Frame) -> Result<(), FrameFault> {
        let Some(expected) = frame.checksum else {
            return Ok(());
        };
        let found = match self.zeros {
            Some((bytes, checksum)) if bytes == frame.decoded_bytes => checksum,
            _ => zero_checksum(frame.decoded_bytes),
        };
        self.zeros = Some((frame.decoded_bytes, found));
        if found == expected { Ok(()) } else { Err(FrameFault::Checksum { expected, found }) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, image};
    use super::*;

    fn written(bytes: &[u8]) -> (Result<ImageFile, ImageError>, std::path::PathBuf) {
        let name = format!("image-{}-{:p}", std::process::id(), bytes);
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, bytes).unwrap();
        (ImageFile::open(&path), path)
    }

    #[test]
    fn a_good_image_verifies_and_counts_its_zeros() {
        let mut random = Random(5);
        let (a, zeros) = (random.bytes(5000), vec![0; 1 << 20]);
        let (file, path) = written(&image(&[&a, &zeros, b"", &zeros, &a], true));
        std::fs::remove_file(path).unwrap();
        let file = file.unwrap();
        assert!(file.verify(0..file.index().frame_count()).is_empty());
        assert_eq!(file.count_zeros().unwrap(), (2, 2 << 20));
    }

    #[test]
    fn each_damaged_frame_is_named() {
        let mut random = Random(6);
        let pieces: Vec<Vec<u8>> = (0..10).map(|_| random.bytes(3000)).collect();
        let mut bytes = image(&pieces.iter().map(Vec::as_slice).collect::<Vec<_>>(), true);
        let index = super::super::testing::index(&bytes).unwrap();
        for number in [2, 7] {
            bytes[index.frame(number).offset as usize + 100] ^= 4;
        }
        let (file, path) = written(&bytes);
        std::fs::remove_file(path).unwrap();
        let bad = file.unwrap().verify(0..11);
        assert_eq!(bad.iter().map(|bad| bad.frame.number).collect::<Vec<_>>(), [2, 7]);
        assert!(bad[0].error.to_string().starts_with("frame 2 at offset"), "{}", bad[0].error);
    }

    #[test]
    fn what_cannot_be_opened_says_so() {
        assert!(matches!(ImageFile::open(Path::new("/nonexistent/image")).err(), Some(ImageError::Open(_))));
        assert!(ImageFile::open(&std::env::temp_dir()).is_err());
    }
}
