//! Images for tests, and a random number generator that prints nothing and needs nobody.

use super::chunk::{Cut, Piece, encode, zeros};
use super::frame::{FrameEncoder, checksum, is_zero, zero_frame};
use super::table::{entry, finish};
use super::{FOOTER_MAGIC, Filter, Index, TABLE_MAGIC};
use std::io;

/// A table entry as it is written.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) compressed: u32,
    pub(crate) decoded: u32,
    pub(crate) checksum: u32,
}

/// The skippable frame with these entries.
pub(crate) fn table(entries: &[Entry], checksums: bool) -> Vec<u8> {
    let entry_bytes = if checksums { 12 } else { 8 };
    let mut bytes = TABLE_MAGIC.to_le_bytes().to_vec();
    bytes.extend((entries.len() as u32 * entry_bytes + 9).to_le_bytes());
    for entry in entries {
        bytes.extend(entry.compressed.to_le_bytes());
        bytes.extend(entry.decoded.to_le_bytes());
        if checksums {
            bytes.extend(entry.checksum.to_le_bytes());
        }
    }
    bytes.extend((entries.len() as u32).to_le_bytes());
    bytes.push(if checksums { 0x80 } else { 0 });
    bytes.extend(FOOTER_MAGIC.to_le_bytes());
    bytes
}

/// An image of `pieces`, each a frame; with checksums it is one as we write them, without as others may.
pub(crate) fn image(pieces: &[&[u8]], checksums: bool) -> Vec<u8> {
    let mut encoder = FrameEncoder::new(1).unwrap();
    let (mut bytes, mut entries) = (Vec::new(), Vec::new());
    for piece in pieces {
        let before = bytes.len();
        if !piece.is_empty() && is_zero(piece) {
            bytes.extend(zero_frame(piece.len() as u32));
        } else {
            encoder.encode(piece, &mut bytes).unwrap();
        }
        let compressed = (bytes.len() - before) as u32;
        entries.push(Entry { compressed, decoded: piece.len() as u32, checksum: checksum(piece) });
    }
    if checksums {
        let entries: Vec<u8> = entries.iter().flat_map(|e| entry(e.compressed, e.decoded, e.checksum)).collect();
        bytes.extend(finish(&entries, None));
    } else {
        bytes.extend(table(&entries, false));
    }
    bytes
}

/// Read the index of an image in memory.
pub(crate) fn index(bytes: &[u8]) -> Result<Index, super::ImageError> {
    Index::read(bytes.len() as u64, &|offset, out: &mut [u8]| {
        let start = offset as usize;
        let have = bytes.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(have);
        Ok(())
    })
}

/// Xorshift: the same numbers every time.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// Bytes that compress to about half.
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| (self.next() & 0xF) as u8 | 0x40).collect()
    }
}

/// `data` as an image whose frames went through a filter.
pub(crate) fn filtered(data: &[u8], frame_bytes: usize, filter: Filter) -> Vec<u8> {
    let (mut bytes, mut table) = (Vec::new(), Vec::new());
    let cut = Cut { frame_bytes, filter: Some(filter) };
    for piece in encode(&mut FrameEncoder::new(1).unwrap(), 0, data, cut).unwrap() {
        let (payload, entries) = match piece {
            Piece::Frames { payload, entries } => (payload, entries),
            Piece::Zeros(count) => {
                let (frame, entry) = zeros(count as u32);
                (frame, entry.to_vec())
            }
        };
        bytes.extend(payload);
        table.extend(entries);
    }
    bytes.extend(finish(&table, Some(&filter)));
    bytes
}
