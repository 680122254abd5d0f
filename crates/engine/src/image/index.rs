//! The seek table: read, distrusted, kept.
//!
//! Nothing is allocated for a claim before the file is known to be large enough for it: a table of n frames needs a
//! file of 17 n bytes or more, and 20 bytes of memory are kept for each frame.

use super::filter::{FILTER_BYTES, FILTER_HEAD_BYTES, Filter, FilterFault, is_filter, refuse};
use super::frame::{most_decoded_bytes, zero_frame_bytes};
use super::table::{GUARD_BYTES, HAS_CHECKSUMS, read_guard};
use super::{
    FOOTER_BYTES, FOOTER_MAGIC, ImageError, MAX_COMPRESSED_BYTES, MAX_FRAME_BYTES, MAX_FRAMES, SKIPPABLE_HEADER_BYTES,
    SKIPPABLE_MAGIC, TABLE_MAGIC, ZSTD_MAGIC,
};
use std::io;
use xxhash_rust::xxh64::Xxh64;

/// The shortest zstd frame has 9 bytes, the shortest skippable one 8.
const LEAST_FRAME_BYTES: u32 = 8;
/// The table is read in pieces of about this size.
const CHUNK_BYTES: usize = 64 << 10;
/// A unit is wished for only up to this frame size.
const MAX_UNIT_BYTES: u64 = 2 << 20;
/// Descriptor: bits that must be zero.
const RESERVED: u8 = 0b0111_1100;

/// Reads exactly that many bytes at that offset of a file, or fails.
pub type ReadAt<'a> = dyn Fn(u64, &mut [u8]) -> io::Result<()> + 'a;

/// Where a frame begins, in the file and in the decoded bytes. The next one's start is its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Start {
    compressed: u64,
    decoded: u64,
}

/// One entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its number, from 0.
    pub number: u32,
    /// Where it begins in the file.
    pub offset: u64,
    /// Its length in the file.
    pub compressed_bytes: u32,
    /// Where its bytes begin in the decoded whole.
    pub decoded_offset: u64,
    /// How many bytes it decodes to; 0 for a frame that is to be skipped.
    pub decoded_bytes: u32,
    /// The low half of XXH64 of the decoded bytes, if the file keeps checksums.
    pub checksum: Option<u32>,
}

impl Frame {
    /// Has it the size of a frame of zeros? Then its few compressed bytes tell (`frame::is_zero_frame`).
    #[must_use]
    pub fn may_be_zero(&self) -> bool {
        self.decoded_bytes > 0 && self.compressed_bytes == zero_frame_bytes(self.decoded_bytes)
    }

    /// The first decoded byte behind it.
    #[must_use]
    pub fn decoded_end(&self) -> u64 {
        self.decoded_offset + u64::from(self.decoded_bytes)
    }
}

/// The seek table of an image, checked.
#[derive(Debug)]
pub struct Index {
    /// One more than there are frames.
    starts: Vec<Start>,
    /// As many as there are frames, or none.
    checksums: Vec<u32>,
    file_bytes: u64,
    shape: Shape,
    filter: Option<Filter>,
    digest: u64,
}

/// What is asked of all frames together.
#[derive(Clone, Copy, Debug, Default)]
struct Shape {
    /// Largest compressed frame.
    compressed: u32,
    /// Largest decoded frame, those that may be zero left out.
    data: u32,
    /// How many are not only to be skipped.
    filled: u32,
}

/// Where the table lies and how its entries look.
#[derive(Clone, Copy, Debug)]
struct Layout {
    frames: u32,
    table_offset: u64,
    entry_bytes: usize,
    checksums: bool,
}

impl Index {
    /// Read and check the table of a file of `file_bytes` bytes.
    ///
    /// # Errors
    /// [`ImageError`]: the first thing that is wrong and where.
    pub fn read(file_bytes: u64, read: &ReadAt<'_>) -> Result<Self, ImageError> {
        check_start(file_bytes, read)?;
        let layout = read_layout(file_bytes, read)?;
        let mut index = Self {
            // Both grow with the entries that were found good: a claim alone costs nothing.
            starts: vec![Start::default()],
            checksums: Vec::new(),
            file_bytes,
            shape: Shape::default(),
            filter: None,
            digest: 0,
        };
        let mut digest = index.read_entries(layout, read)?;
        index.starts.shrink_to_fit();
        index.checksums.shrink_to_fit();
        let frames_end = index.last().compressed;
        if frames_end != layout.table_offset {
            return Err(ImageError::Unaccounted { frames_end, table_offset: layout.table_offset });
        }
        let filter = index.read_filter(&mut digest, read)?;
        index.digest = digest.digest();
        let guarded = index.check_guard(index.digest, read)?;
        if let Some((frame, filter)) = filter {
            let refuse = refuse(frame.offset);
            if !guarded {
                return Err(refuse(FilterFault::Misplaced));
            }
            filter.check(&index).map_err(refuse)?;
            index.filter = Some(filter);
        }
        Ok(index)
    }

    /// The filter that is recorded, and where; its record is part of the guard's digest. One at another place than right
    /// before the guard is refused, or bytes that were shuffled would be taken for those that were packed.
    fn read_filter(&self, digest: &mut Xxh64, read: &ReadAt<'_>) -> Result<Option<(Frame, Filter)>, ImageError> {
        let mut found = None;
        let skipped = |frame: &Frame| frame.decoded_bytes == 0 && frame.compressed_bytes as usize >= FILTER_HEAD_BYTES;
        for frame in self.frames().filter(skipped) {
            let mut head = [0; FILTER_HEAD_BYTES];
            read_exact(read, frame.offset, &mut head)?;
            if !is_filter(&head) {
                continue;
            }
            let mut record = [0; FILTER_BYTES as usize];
            let record = &mut record[..frame.compressed_bytes.min(FILTER_BYTES) as usize];
            read_exact(read, frame.offset, record)?;
            let filter = Filter::parse(record, frame.compressed_bytes).map_err(refuse(frame.offset))?;
            if u64::from(frame.number) + 2 != u64::from(self.frame_count()) {
                return Err(refuse(frame.offset)(FilterFault::Misplaced));
            }
            digest.update(record);
            found = Some((frame, filter));
        }
        Ok(found)
    }

    /// Take in all entries; what their digest is made from.
    fn read_entries(&mut self, layout: Layout, read: &ReadAt<'_>) -> Result<Xxh64, ImageError> {
        let mut digest = Xxh64::new(0);
        let per_chunk = CHUNK_BYTES / layout.entry_bytes;
        let mut chunk = vec![0; per_chunk.min(layout.frames as usize) * layout.entry_bytes];
        let mut offset = layout.table_offset + SKIPPABLE_HEADER_BYTES;
        let mut left = layout.frames as usize;
        while left > 0 {
            let entries = left.min(per_chunk);
            let bytes = &mut chunk[..entries * layout.entry_bytes];
            read_exact(read, offset, bytes)?;
            digest.update(bytes);
            bytes.chunks_exact(layout.entry_bytes).try_for_each(|entry| self.push(entry, layout))?;
            offset += bytes.len() as u64;
            left -= entries;
        }
        Ok(digest)
    }

    /// Is the last frame a guard (whatever its entry says)? The digest in it must be the one found.
    fn check_guard(&self, found: u64, read: &ReadAt<'_>) -> Result<bool, ImageError> {
        let Some(last) = self.frame_count().checked_sub(1).map(|number| self.frame(number)) else {
            return Ok(false);
        };
        if last.compressed_bytes != GUARD_BYTES {
            return Ok(false);
        }
        let mut bytes = [0; GUARD_BYTES as usize];
        read_exact(read, last.offset, &mut bytes)?;
        match read_guard(&bytes) {
            Some(expected) if expected != found => {
                let table_offset = last.offset + u64::from(GUARD_BYTES);
                Err(ImageError::TableDamaged { table_offset, expected, found })
            }
            guard => Ok(guard.is_some()),
        }
    }

    fn push(&mut self, entry: &[u8], layout: Layout) -> Result<(), ImageError> {
        let (frame, start) = (self.frame_count(), self.last());
        let (offset, compressed_bytes, decoded_bytes) = (start.compressed, word(entry, 0), word(entry, 4));
        if compressed_bytes < LEAST_FRAME_BYTES {
            return Err(ImageError::FrameTooSmall { frame, offset, compressed_bytes });
        }
        let end = offset + u64::from(compressed_bytes);
        if end > layout.table_offset {
            let table_offset = layout.table_offset;
            return Err(ImageError::FrameBeyondTable { frame, offset, compressed_bytes, table_offset });
        }
        let possible_bytes = most_decoded_bytes(compressed_bytes);
        if u64::from(decoded_bytes) > possible_bytes {
            return Err(ImageError::Bomb { frame, offset, compressed_bytes, decoded_bytes, possible_bytes });
        }
        let skipped = decoded_bytes == 0;
        if decoded_bytes > MAX_FRAME_BYTES || (compressed_bytes > MAX_COMPRESSED_BYTES && !skipped) {
            return Err(ImageError::FrameTooLarge { frame, offset, compressed_bytes, decoded_bytes });
        }
        self.starts.push(Start { compressed: end, decoded: start.decoded + u64::from(decoded_bytes) });
        if layout.checksums {
            self.checksums.push(word(entry, 8));
        }
        if !skipped {
            self.shape.compressed = self.shape.compressed.max(compressed_bytes);
            self.shape.filled += 1;
        }
        if compressed_bytes != zero_frame_bytes(decoded_bytes) {
            self.shape.data = self.shape.data.max(decoded_bytes);
        }
        Ok(())
    }

    fn last(&self) -> Start {
        self.starts.last().copied().unwrap_or_default()
    }

    /// How many frames there are.
    #[must_use]
    pub fn frame_count(&self) -> u32 {
        (self.starts.len() - 1) as u32
    }

    /// How many of them hold bytes: the others are to be skipped.
    #[must_use]
    pub fn filled_frame_count(&self) -> u32 {
        self.shape.filled
    }

    /// How many bytes all frames decode to.
    #[must_use]
    pub fn decoded_bytes(&self) -> u64 {
        self.last().decoded
    }

    /// The length of the file, the table included.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// What was done to the bytes before zstd.
    #[must_use]
    pub fn filter(&self) -> Option<&Filter> {
        self.filter.as_ref()
    }

    /// XXH64 of all entries, and of the filter's record.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Does the table keep checksums?
    #[must_use]
    pub fn has_checksums(&self) -> bool {
        !self.checksums.is_empty()
    }

    /// The most compressed bytes that a frame has.
    #[must_use]
    pub fn largest_compressed_bytes(&self) -> u32 {
        self.shape.compressed
    }

    /// The most that a frame decodes to, those left out whose size says that they may be zeros.
    #[must_use]
    pub fn largest_data_bytes(&self) -> u32 {
        self.shape.data
    }

    /// Frame `number`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn frame(&self, number: u32) -> Frame {
        let at = number as usize;
        let (start, end) = (self.starts[at], self.starts[at + 1]);
        Frame {
            number,
            offset: start.compressed,
            compressed_bytes: (end.compressed - start.compressed) as u32,
            decoded_offset: start.decoded,
            decoded_bytes: (end.decoded - start.decoded) as u32,
            checksum: self.checksums.get(at).copied(),
        }
    }

    /// The frame that holds decoded byte `offset`, by binary search; `None` behind the end.
    #[must_use]
    pub fn find(&self, offset: u64) -> Option<Frame> {
        if offset >= self.decoded_bytes() {
            return None;
        }
        // The last frame that starts at or before it; frames that hold nothing share their start with the next one.
        let behind = self.starts.partition_point(|start| start.decoded <= offset);
        Some(self.frame(behind as u32 - 1))
    }

    /// All frames, in order.
    pub fn frames(&self) -> impl Iterator<Item = Frame> + Clone + '_ {
        (0..self.frame_count()).map(|number| self.frame(number))
    }

    /// The one size that frames have (the last and runs of zeros aside) and at whose multiples all begin; 0 if there
    /// is none.
    #[must_use]
    pub fn common_frame_bytes(&self) -> u32 {
        let mut filled = self.frames().filter(|frame| frame.decoded_bytes > 0);
        let Some(common) = filled.clone().find(|frame| !frame.may_be_zero()).map(|frame| frame.decoded_bytes) else {
            return 0;
        };
        let fits = |frame: Frame| {
            frame.decoded_offset.is_multiple_of(u64::from(common))
                && (frame.decoded_bytes <= common || frame.may_be_zero())
        };
        if filled.all(fits) { common } else { 0 }
    }

    /// The unit to map it with: the common frame size if it is a power of two from `page_bytes` to 2 MiB, else 0.
    #[must_use]
    pub fn natural_unit(&self, page_bytes: usize) -> usize {
        let common = u64::from(self.common_frame_bytes());
        let fits = common.is_power_of_two() && (page_bytes as u64..=MAX_UNIT_BYTES).contains(&common);
        if fits { common as usize } else { 0 }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn read_exact(read: &ReadAt<'_>, offset: u64, out: &mut [u8]) -> Result<(), ImageError> {
    let bytes = out.len() as u64;
    read(offset, out).map_err(|error| ImageError::Io { offset, bytes, error })
}

/// A zstd frame or a skippable one at the start?
fn check_start(file_bytes: u64, read: &ReadAt<'_>) -> Result<(), ImageError> {
    let mut start = [0; 4];
    let bytes = file_bytes.min(4) as usize;
    read_exact(read, 0, &mut start[..bytes])?;
    let magic = u32::from_le_bytes(start);
    if magic == ZSTD_MAGIC || magic & !0xF == SKIPPABLE_MAGIC { Ok(()) } else { Err(ImageError::NotZstd { magic }) }
}

/// Find the table from the last bytes of the file and check that there is room for all it claims.
fn read_layout(file_bytes: u64, read: &ReadAt<'_>) -> Result<Layout, ImageError> {
    if file_bytes < SKIPPABLE_HEADER_BYTES + FOOTER_BYTES {
        return Err(ImageError::NoSeekTable { file_bytes });
    }
    let mut footer = [0; FOOTER_BYTES as usize];
    read_exact(read, file_bytes - FOOTER_BYTES, &mut footer)?;
    let (frames, descriptor) = (word(&footer, 0), footer[4]);
    if word(&footer, 5) != FOOTER_MAGIC {
        return Err(ImageError::NoSeekTable { file_bytes });
    }
    if descriptor & RESERVED != 0 {
        return Err(ImageError::Reserved { descriptor });
    }
    if frames > MAX_FRAMES {
        return Err(ImageError::TooManyFrames { frames });
    }
    let checksums = descriptor & HAS_CHECKSUMS != 0;
    let entry_bytes = if checksums { 12 } else { 8 };
    let payload_bytes = u64::from(frames) * entry_bytes + FOOTER_BYTES;
    let table_bytes = SKIPPABLE_HEADER_BYTES + payload_bytes;
    let least_bytes = table_bytes + u64::from(frames) * u64::from(LEAST_FRAME_BYTES);
    if least_bytes > file_bytes {
        return Err(ImageError::TableTooLarge { frames, least_bytes, file_bytes });
    }
    let table_offset = file_bytes - table_bytes;
    check_table_header(table_offset, payload_bytes, read)?;
    Ok(Layout { frames, table_offset, entry_bytes: entry_bytes as usize, checksums })
}

fn check_table_header(offset: u64, payload_bytes: u64, read: &ReadAt<'_>) -> Result<(), ImageError> {
    let mut header = [0; SKIPPABLE_HEADER_BYTES as usize];
    read_exact(read, offset, &mut header)?;
    let (magic, bytes) = (word(&header, 0), word(&header, 4));
    if magic == TABLE_MAGIC && u64::from(bytes) == payload_bytes {
        return Ok(());
    }
    Err(ImageError::TableHeader { offset, magic, bytes, expected_magic: TABLE_MAGIC, expected_bytes: payload_bytes })
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
