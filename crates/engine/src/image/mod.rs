//! Memory at rest: standard seekable zstd, that is independent frames and a table of them in a skippable frame at the
//! end, so that any zstd restores the bytes and this crate finds any of them without the others.
//!
//! `index` reads the table and trusts none of it; `frame` makes and undoes single frames, and knows the frames that
//! hold nothing but zeros from their compressed bytes alone; `table` writes the end of a
//! file, `chunk` what is before it. `file` looks at images that are not mapped. `filter` is what may be done to an array's
//! bytes before zstd, `shuffle` the loops of it; `cache` keeps frames that are larger than what a touch wants.
//!
//! *Locks*: those of `cache`. *Blocks on*: [`Index::read`] reads a file.

pub mod cache;
pub mod shelf;
pub mod chunk;
pub mod file;
pub mod filter;
pub mod frame;
pub mod index;
pub mod shuffle;
pub mod table;
#[cfg(test)]
pub(crate) mod testing;

pub use file::{BadFrame, ImageFile};
pub use filter::{Filter, FilterFault};
pub use frame::{FrameEncoder, FrameFault};
pub use index::{Frame, Index};

/// A frame may not decode to more than this: a reader needs that much memory to look at one byte of it.
pub const MAX_FRAME_BYTES: u32 = 128 << 20;

/// Nor may one have more compressed bytes than this: the former and the most that blocks can add to it.
pub const MAX_COMPRESSED_BYTES: u32 = MAX_FRAME_BYTES + (1 << 20);

/// What the reference implementation allows as well.
pub const MAX_FRAMES: u32 = 0x0800_0000;

/// First bytes of a zstd frame.
pub(crate) const ZSTD_MAGIC: u32 = 0xFD2F_B528;
/// First bytes of a frame that decoders skip: the low four bits are free.
pub(crate) const SKIPPABLE_MAGIC: u32 = 0x184D_2A50;
/// The skippable frame that holds the seek table.
pub(crate) const TABLE_MAGIC: u32 = 0x184D_2A5E;
/// Last bytes of the file.
pub(crate) const FOOTER_MAGIC: u32 = 0x8F92_EAB1;
/// Number of frames, descriptor, magic.
pub(crate) const FOOTER_BYTES: u64 = 9;
/// Magic and size of a skippable frame.
pub(crate) const SKIPPABLE_HEADER_BYTES: u64 = 8;

/// Why a file is not an image that can be used. Every text says what and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// There is no such file, or it is refused.
    #[error("cannot be opened: {0}")]
    Open(#[source] std::io::Error),
    /// The file could not be read.
    #[error("cannot read {bytes} bytes at offset {offset}: {error}")]
    Io {
        /// Where in the file.
        offset: u64,
        /// How much was wanted.
        bytes: u64,
        /// What the kernel said.
        #[source]
        error: std::io::Error,
    },
    /// Neither a zstd frame nor a skippable one at the start.
    #[error("not a zstd image: it begins with {magic:#010x}, a zstd frame with 0xfd2fb528")]
    NotZstd {
        /// The first four bytes, little endian; fewer are padded with zeros.
        magic: u32,
    },
    /// Zstd data, but nothing to find a frame by.
    #[error(
        "no seek table at the end of {file_bytes} bytes of zstd data: a plain .zst file, or an image that was cut off; \
         make an image of it: zstd -dc FILE | userfault pack - -o OUT"
    )]
    NoSeekTable {
        /// The length of the file.
        file_bytes: u64,
    },
    /// Bits that the format keeps for later are set.
    #[error("the seek table's descriptor is {descriptor:#04x}: bits 2 to 6 must be zero")]
    Reserved {
        /// The descriptor byte.
        descriptor: u8,
    },
    /// More frames than the format allows.
    #[error("the seek table claims {frames} frames, more than the format's {MAX_FRAMES}")]
    TooManyFrames {
        /// The claim.
        frames: u32,
    },
    /// The table and the least that its frames take are more than the file has.
    #[error(
        "the seek table claims {frames} frames, which take at least {least_bytes} bytes; the file has {file_bytes}"
    )]
    TableTooLarge {
        /// The claim.
        frames: u32,
        /// What such a file has at least.
        least_bytes: u64,
        /// What it has.
        file_bytes: u64,
    },
    /// The skippable frame around the table does not match the footer.
    #[error(
        "at offset {offset} the seek table should begin with {expected_magic:#010x} and {expected_bytes} bytes, \
         but there are {magic:#010x} and {bytes}"
    )]
    TableHeader {
        /// Where in the file.
        offset: u64,
        /// What is there.
        magic: u32,
        /// The length it says.
        bytes: u32,
        /// What should be there.
        expected_magic: u32,
        /// The length that the footer implies.
        expected_bytes: u64,
    },
    /// Smaller than any frame.
    #[error("frame {frame} at offset {offset}: {compressed_bytes} compressed bytes are less than any frame has")]
    FrameTooSmall {
        /// Its number.
        frame: u32,
        /// Where in the file.
        offset: u64,
        /// The table's claim.
        compressed_bytes: u32,
    },
    /// More memory than a reader can be asked for.
    #[error(
        "frame {frame} at offset {offset}: {compressed_bytes} compressed and {decoded_bytes} decoded bytes; \
         the limits are {MAX_COMPRESSED_BYTES} and {MAX_FRAME_BYTES}"
    )]
    FrameTooLarge {
        /// Its number.
        frame: u32,
        /// Where in the file.
        offset: u64,
        /// The table's claim.
        compressed_bytes: u32,
        /// The table's claim.
        decoded_bytes: u32,
    },
    /// The table promises more than zstd can make of so few bytes.
    #[error(
        "frame {frame} at offset {offset}: {compressed_bytes} compressed bytes cannot hold {decoded_bytes}, \
         {possible_bytes} at most"
    )]
    Bomb {
        /// Its number.
        frame: u32,
        /// Where in the file.
        offset: u64,
        /// The table's claim.
        compressed_bytes: u32,
        /// The table's claim.
        decoded_bytes: u32,
        /// What so many bytes can hold at most.
        possible_bytes: u64,
    },
    /// A frame would lie in the table or behind it.
    #[error(
        "frame {frame} at offset {offset}, {compressed_bytes} bytes, does not end before the seek table at {table_offset}"
    )]
    FrameBeyondTable {
        /// Its number.
        frame: u32,
        /// Where in the file.
        offset: u64,
        /// The table's claim.
        compressed_bytes: u32,
        /// Where the table begins.
        table_offset: u64,
    },
    /// Bytes that belong to no frame.
    #[error("the frames end at offset {frames_end}, but the seek table begins at {table_offset}: {} bytes belong to no frame", table_offset - frames_end)]
    Unaccounted {
        /// The end of the last frame.
        frames_end: u64,
        /// Where the table begins.
        table_offset: u64,
    },
    /// The table is not the one that was written.
    #[error(
        "the seek table at offset {table_offset} is damaged: its checksum is {found:#018x}, the file says {expected:#018x}"
    )]
    TableDamaged {
        /// Where in the file.
        table_offset: u64,
        /// What the guard frame says.
        expected: u64,
        /// What the entries give.
        found: u64,
    },
    /// What was done to the bytes before zstd is not known, or impossible.
    #[error("the filter at offset {offset} cannot be undone: {fault}")]
    Filter {
        /// Where in the file it is recorded.
        offset: u64,
        /// Why.
        #[source]
        fault: FilterFault,
    },
    /// A frame whose bytes are not what the table or zstd says.
    #[error("frame {frame} at offset {offset} (bytes {decoded_offset} and on): {fault}")]
    Frame {
        /// Its number.
        frame: u32,
        /// Where in the file.
        offset: u64,
        /// Where in the decoded bytes.
        decoded_offset: u64,
        /// What is wrong with it.
        #[source]
        fault: FrameFault,
    },
    /// Compressing failed, which only a lack of memory or a bad level makes it do.
    #[error("zstd cannot compress {bytes} bytes at level {level}: {reason}")]
    Encode {
        /// How many.
        bytes: usize,
        /// How hard.
        level: i32,
        /// What zstd says.
        reason: &'static str,
    },
}
