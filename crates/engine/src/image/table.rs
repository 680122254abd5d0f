//! The end of an image as it is written, and the guard that the format itself lacks.
//!
//! The format keeps a checksum of each frame but none of the table: one flipped bit in a length would move all bytes
//! behind it, and every frame would still match its checksum. So an image of ours ends with one more skippable frame,
//! the *guard*, which holds the XXH64 of all entries (its own included), and of the filter's frame if there is one (see
//! `filter`). Other readers skip both.

use super::filter::{FILTER_BYTES, Filter};
use super::{FOOTER_MAGIC, SKIPPABLE_MAGIC, TABLE_MAGIC};
use xxhash_rust::xxh64::{Xxh64, xxh64};

/// Says that a skippable frame is a guard.
const GUARD_TAG: [u8; 8] = *b"uftable1";
/// One of the sixteen magics, and not the table's.
const GUARD_MAGIC: u32 = SKIPPABLE_MAGIC | 0xD;
/// Magic, size, tag, digest.
pub(crate) const GUARD_BYTES: u32 = 24;
/// Compressed bytes, decoded bytes, checksum.
pub const ENTRY_BYTES: usize = 12;
/// Descriptor: each entry has a checksum.
pub(crate) const HAS_CHECKSUMS: u8 = 1 << 7;

/// One entry of the table: what a frame takes in the file, what it decodes to, and `frame::checksum` of that.
#[must_use]
pub fn entry(compressed_bytes: u32, decoded_bytes: u32, checksum: u32) -> [u8; ENTRY_BYTES] {
    let mut bytes = [0; ENTRY_BYTES];
    bytes[..4].copy_from_slice(&compressed_bytes.to_le_bytes());
    bytes[4..8].copy_from_slice(&decoded_bytes.to_le_bytes());
    bytes[8..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// What follows the last frame: the filter's record if there is one, the guard and the seek table, given all entries one
/// after another.
///
/// # Panics
/// When `entries` is not a whole number of entries, or more of them than `MAX_FRAMES` less two.
#[must_use]
pub fn finish(entries: &[u8], filter: Option<&Filter>) -> Vec<u8> {
    let frames = entries.len() / ENTRY_BYTES + 1 + usize::from(filter.is_some());
    assert!(entries.len().is_multiple_of(ENTRY_BYTES), "{} bytes are no whole entries", entries.len());
    assert!(frames <= super::MAX_FRAMES as usize, "{frames} frames are more than the format allows");
    let mut entries = entries.to_vec();
    let record = filter.map(Filter::frame);
    if record.is_some() {
        entries.extend(skipped_entry(FILTER_BYTES));
    }
    entries.extend(skipped_entry(GUARD_BYTES));
    let mut bytes = Vec::with_capacity(entries.len() + 128);
    bytes.extend(record.iter().flatten());
    for word in [GUARD_MAGIC, GUARD_BYTES - 8] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(GUARD_TAG);
    let mut digest = Xxh64::new(0);
    digest.update(&entries);
    record.iter().for_each(|record| digest.update(record));
    bytes.extend(digest.digest().to_le_bytes());
    for word in [TABLE_MAGIC, entries.len() as u32 + super::FOOTER_BYTES as u32] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(&entries);
    bytes.extend((frames as u32).to_le_bytes());
    bytes.push(HAS_CHECKSUMS);
    bytes.extend(FOOTER_MAGIC.to_le_bytes());
    bytes
}

fn skipped_entry(bytes: u32) -> [u8; ENTRY_BYTES] {
    entry(bytes, 0, xxh64(&[], 0) as u32)
}

/// The digest that a guard holds; `None` when these bytes are something else.
pub(crate) fn read_guard(frame: &[u8; GUARD_BYTES as usize]) -> Option<u64> {
    let (head, digest) = frame.split_at(16);
    let is_guard = head[..4] == GUARD_MAGIC.to_le_bytes()
        && head[4..8] == (GUARD_BYTES - 8).to_le_bytes()
        && head[8..] == GUARD_TAG;
    is_guard.then(|| u64::from_le_bytes(digest.try_into().expect("24 less 16 are 8")))
}
