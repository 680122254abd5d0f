//! One frame: made, undone, and recognised when it holds only zeros.
//!
//! A frame of zeros is written by hand: a header with the content size, then RLE blocks of byte 0, 128 KiB each. Its
//! bytes follow from its length alone, so comparing them is enough to know that it is one and nothing is decoded.
//! Every zstd decoder since 1.0 understands it.

use super::{ImageError, MAX_FRAME_BYTES, SKIPPABLE_MAGIC, ZSTD_MAGIC};
use xxhash_rust::xxh64::{Xxh64, xxh64};

/// The most that one block decodes to.
const BLOCK_BYTES: u32 = 128 << 10;
/// A block header and the repeated byte: nothing shorter gives as much.
const RLE_BLOCK_BYTES: u32 = 4;
/// Longest header of a zero frame: magic, descriptor, content size.
const MAX_HEADER_BYTES: usize = 9;
/// The shortest header of any frame: magic, descriptor, window or content size.
const LEAST_HEADER_BYTES: u32 = 6;
/// Frame header descriptor: one segment, hence no window byte.
const SINGLE_SEGMENT: u8 = 1 << 5;

/// What is wrong with the bytes of a frame. Plain data: it is made inside signal handlers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    /// Not zstd, or damaged.
    #[error("the compressed data is damaged")]
    Corrupt,
    /// Decodes to another length than the table says.
    #[error("it decodes to {found_bytes} bytes, the seek table says {expected_bytes}")]
    Length {
        /// What the table says.
        expected_bytes: usize,
        /// What came out.
        found_bytes: usize,
    },
    /// Decodes well, to something else.
    #[error("the decoded bytes have checksum {found:#010x}, the seek table says {expected:#010x}")]
    Checksum {
        /// What the table says.
        expected: u32,
        /// What came out.
        found: u32,
    },
}

/// The low half of XXH64, which is what the seek table keeps of a frame's decoded bytes.
#[must_use]
pub fn checksum(decoded: &[u8]) -> u32 {
    xxh64(decoded, 0) as u32
}

/// [`checksum`] of that many zeros.
#[must_use]
pub fn zero_checksum(decoded_bytes: u32) -> u32 {
    let zeros = [0; 4096];
    let mut hash = Xxh64::new(0);
    let mut left = decoded_bytes as usize;
    while left > 0 {
        let step = left.min(zeros.len());
        hash.update(&zeros[..step]);
        left -= step;
    }
    hash.digest() as u32
}

/// Are these bytes all zero? Looks at a word at a time and stops at the first that is not.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // SAFETY: any bytes are a valid u64; `align_to` gives only whole, aligned ones.
    let (head, words, tail) = unsafe { bytes.align_to::<u64>() };
    let quiet = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    quiet(head) && quiet(tail) && words.chunks(64).all(|chunk| chunk.iter().fold(0, |all, word| all | word) == 0)
}

/// The most that a frame of so many compressed bytes can decode to.
#[must_use]
pub fn most_decoded_bytes(compressed_bytes: u32) -> u64 {
    u64::from(compressed_bytes.saturating_sub(LEAST_HEADER_BYTES) / RLE_BLOCK_BYTES) * u64::from(BLOCK_BYTES)
}

/// Magic, descriptor and content size of a zero frame, and how many of these bytes count.
fn zero_header(decoded_bytes: u32) -> ([u8; MAX_HEADER_BYTES], usize) {
    let mut header = [0; MAX_HEADER_BYTES];
    header[..4].copy_from_slice(&ZSTD_MAGIC.to_le_bytes());
    // RFC 8878, 3.1.1.1.4: the content size takes 1, 2 (less 256) or 4 bytes.
    let (flag, size, width) = match decoded_bytes {
        0..256 => (0, decoded_bytes, 1),
        256..65_792 => (1 << 6, decoded_bytes - 256, 2),
        _ => (2 << 6, decoded_bytes, 4),
    };
    header[4] = SINGLE_SEGMENT | flag;
    header[5..5 + width].copy_from_slice(&size.to_le_bytes()[..width]);
    (header, 5 + width)
}

/// Block number `block` of a zero frame of `blocks` blocks.
fn zero_block(decoded_bytes: u32, block: u32, blocks: u32) -> [u8; 4] {
    let bytes = (decoded_bytes - block * BLOCK_BYTES).min(BLOCK_BYTES);
    // RFC 8878, 3.1.1.2: last flag, two bits of type (1 is RLE), 21 bits of size; then the byte to repeat.
    (u32::from(block + 1 == blocks) | 1 << 1 | bytes << 3).to_le_bytes()
}

/// How many bytes the frame of `decoded_bytes` zeros takes. Any other frame of this size is a stranger, not an error.
#[must_use]
pub fn zero_frame_bytes(decoded_bytes: u32) -> u32 {
    zero_header(decoded_bytes).1 as u32 + decoded_bytes.div_ceil(BLOCK_BYTES) * RLE_BLOCK_BYTES
}

/// The frame that decodes to `decoded_bytes` zeros (at least one).
///
/// # Panics
/// When there are none or more than [`MAX_FRAME_BYTES`].
#[must_use]
pub fn zero_frame(decoded_bytes: u32) -> Vec<u8> {
    assert!((1..=MAX_FRAME_BYTES).contains(&decoded_bytes), "a frame of {decoded_bytes} zeros");
    let (header, header_bytes) = zero_header(decoded_bytes);
    let blocks = decoded_bytes.div_ceil(BLOCK_BYTES);
    let mut frame = Vec::with_capacity(zero_frame_bytes(decoded_bytes) as usize);
    frame.extend_from_slice(&header[..header_bytes]);
    (0..blocks).for_each(|block| frame.extend_from_slice(&zero_block(decoded_bytes, block, blocks)));
    frame
}

/// Is this the frame of `decoded_bytes` zeros? No decoding, no allocation.
#[must_use]
pub fn is_zero_frame(compressed: &[u8], decoded_bytes: u32) -> bool {
    if decoded_bytes == 0 || compressed.len() != zero_frame_bytes(decoded_bytes) as usize {
        return false;
    }
    let (header, header_bytes) = zero_header(decoded_bytes);
    let blocks = decoded_bytes.div_ceil(BLOCK_BYTES);
    let (head, body) = compressed.split_at(header_bytes);
    head == &header[..header_bytes]
        && body.chunks_exact(4).zip(0..blocks).all(|(bytes, block)| bytes == zero_block(decoded_bytes, block, blocks))
}

/// Decode one frame into the whole of `out`. No allocation: `decoder` and `out` are the caller's.
///
/// # Errors
/// [`FrameFault`]; what is in `out` by then means nothing.
pub fn decode(
    decoder: &mut zstd_safe::DCtx<'static>,
    compressed: &[u8],
    out: &mut [u8],
    expected: Option<u32>,
) -> Result<(), FrameFault> {
    if is_skippable(compressed) {
        return if out.is_empty() { Ok(()) } else { Err(FrameFault::Corrupt) };
    }
    if let Ok(Some(says)) = zstd_safe::get_frame_content_size(compressed)
        && says != out.len() as u64
    {
        return Err(FrameFault::Length { expected_bytes: out.len(), found_bytes: says as usize });
    }
    let found_bytes = decoder.decompress(out, compressed).map_err(|_| FrameFault::Corrupt)?;
    if found_bytes != out.len() {
        return Err(FrameFault::Length { expected_bytes: out.len(), found_bytes });
    }
    match expected.map(|expected| (expected, checksum(out))) {
        Some((expected, found)) if expected != found => Err(FrameFault::Checksum { expected, found }),
        _ => Ok(()),
    }
}

/// Exactly one skippable frame, which holds no bytes for us?
fn is_skippable(compressed: &[u8]) -> bool {
    let word = |at: usize| {
        compressed.get(at..at + 4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    match (word(0), word(4)) {
        (Some(magic), Some(bytes)) => {
            magic & !0xF == SKIPPABLE_MAGIC && compressed.len() as u64 == u64::from(bytes) + 8
        }
        _ => false,
    }
}

/// Compresses frames, one after another.
pub struct FrameEncoder {
    context: zstd_safe::CCtx<'static>,
    level: i32,
}

impl FrameEncoder {
    /// An encoder of this level (see [`levels`]).
    ///
    /// # Errors
    /// [`ImageError::Encode`] when zstd does not take the level.
    pub fn new(level: i32) -> Result<Self, ImageError> {
        let mut context = zstd_safe::CCtx::create();
        let reject = |code| ImageError::Encode { bytes: 0, level, reason: zstd_safe::get_error_name(code) };
        context.set_parameter(zstd_safe::CParameter::CompressionLevel(level)).map_err(reject)?;
        context.set_parameter(zstd_safe::CParameter::ContentSizeFlag(true)).map_err(reject)?;
        // The seek table has a checksum for every frame already.
        context.set_parameter(zstd_safe::CParameter::ChecksumFlag(false)).map_err(reject)?;
        Ok(Self { context, level })
    }

    /// Append `decoded` as one frame to `out`; says how many bytes that took.
    ///
    /// # Errors
    /// [`ImageError::Encode`].
    pub fn encode(&mut self, decoded: &[u8], out: &mut Vec<u8>) -> Result<usize, ImageError> {
        let start = out.len();
        out.resize(start + zstd_safe::compress_bound(decoded.len()), 0);
        let written = self.context.compress2(&mut out[start..], decoded).map_err(|code| ImageError::Encode {
            bytes: decoded.len(),
            level: self.level,
            reason: zstd_safe::get_error_name(code),
        })?;
        out.truncate(start + written);
        Ok(written)
    }
}

/// The lowest and the highest level.
#[must_use]
pub fn levels() -> (i32, i32) {
    (zstd_safe::min_c_level(), zstd_safe::max_c_level())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_frames_decode_to_zeros_and_are_recognised() {
        let mut decoder = zstd_safe::DCtx::create();
        for bytes in [1, 255, 256, 4096, 65_535, 65_536, 65_791, 65_792, 131_072, 131_073, 1 << 20, (64 << 20) + 5] {
            let frame = zero_frame(bytes);
            assert_eq!(frame.len(), zero_frame_bytes(bytes) as usize);
            assert!(is_zero_frame(&frame, bytes));
            assert!(!is_zero_frame(&frame, bytes - 1));
            let mut out = vec![0xAA; bytes as usize];
            decode(&mut decoder, &frame, &mut out, Some(zero_checksum(bytes))).unwrap();
            assert!(is_zero(&out));
            assert_eq!(zero_checksum(bytes), checksum(&out));
            assert!(u64::from(bytes) <= most_decoded_bytes(frame.len() as u32), "{bytes} is no bomb");
        }
    }

    #[test]
    fn no_single_byte_of_a_zero_frame_can_change_unnoticed() {
        let frame = zero_frame(300_000);
        for at in 0..frame.len() {
            for bit in 0..8 {
                let mut damaged = frame.clone();
                damaged[at] ^= 1 << bit;
                assert!(!is_zero_frame(&damaged, 300_000));
            }
        }
    }

    #[test]
    fn zeros_are_told_from_anything_else_at_any_place() {
        let mut bytes = vec![0; 4099];
        assert!(is_zero(&bytes) && is_zero(&bytes[3..]) && is_zero(&[]));
        for at in 0..bytes.len() {
            bytes[at] = 1;
            assert!(!is_zero(&bytes));
            bytes[at] = 0;
        }
    }

    #[test]
    fn what_was_encoded_decodes_and_says_when_it_does_not() {
        let data: Vec<u8> = (0..100_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let mut decoder = zstd_safe::DCtx::create();
        let mut out = vec![0; data.len()];
        for level in [-5, 1, 3, 19] {
            let mut frame = vec![7; 3];
            let bytes = FrameEncoder::new(level).unwrap().encode(&data, &mut frame).unwrap();
            assert_eq!(frame.len(), bytes + 3);
            decode(&mut decoder, &frame[3..], &mut out, Some(checksum(&data))).unwrap();
            assert_eq!(out, data);
            let wrong = decode(&mut decoder, &frame[3..], &mut out, Some(1));
            assert!(matches!(wrong, Err(FrameFault::Checksum { expected: 1, .. })));
            let short = decode(&mut decoder, &frame[3..], &mut out[1..], None);
            assert!(matches!(short, Err(FrameFault::Length { .. })));
            assert_eq!(decode(&mut decoder, &frame[4..], &mut out, None), Err(FrameFault::Corrupt));
        }
    }

    #[test]
    fn a_skippable_frame_holds_nothing() {
        let mut decoder = zstd_safe::DCtx::create();
        let frame = [0x50, 0x2A, 0x4D, 0x18, 2, 0, 0, 0, 9, 9];
        assert_eq!(decode(&mut decoder, &frame, &mut [], None), Ok(()));
        assert_eq!(decode(&mut decoder, &frame, &mut [0], None), Err(FrameFault::Corrupt));
        assert!(decode(&mut decoder, &frame[..9], &mut [0], None).is_err());
    }
}
