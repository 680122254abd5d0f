//! A piece of a file on its way into an image: cut into frames, zeros set aside, the rest compressed.

use super::frame::{FrameEncoder, checksum, is_zero, zero_checksum, zero_frame};
use super::table::{ENTRY_BYTES, entry};
use super::{Filter, ImageError, MAX_FRAME_BYTES};

/// What became of some neighbouring frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// So many bytes, all zero: whoever writes the file joins them with their neighbours (see [`zeros`]).
    Zeros(u64),
    /// Frames, ready to be written.
    Frames {
        /// Their compressed bytes.
        payload: Vec<u8>,
        /// Their entries for the seek table.
        entries: Vec<u8>,
    },
}

/// How a file is cut and what is done to it before zstd.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Bytes of a frame.
    pub frame_bytes: usize,
    /// Its blocks fit a frame a whole number of times.
    pub filter: Option<Filter>,
}

/// Compress `data`, which lies at byte `at` of the file, in frames (the last may be shorter).
///
/// # Errors
/// [`ImageError::Encode`].
pub fn encode(encoder: &mut FrameEncoder, at: u64, data: &[u8], cut: Cut) -> Result<Vec<Piece>, ImageError> {
    let (mut pieces, mut shuffled) = (Vec::new(), Vec::new());
    let frame_bytes = cut.frame_bytes.clamp(1, MAX_FRAME_BYTES as usize);
    for (number, frame) in data.chunks(frame_bytes).enumerate() {
        if is_zero(frame) {
            let bytes = frame.len() as u64;
            match pieces.last_mut() {
                Some(Piece::Zeros(before)) => *before += bytes,
                _ => pieces.push(Piece::Zeros(bytes)),
            }
            continue;
        }
        if !matches!(pieces.last(), Some(Piece::Frames { .. })) {
            pieces.push(Piece::Frames { payload: Vec::new(), entries: Vec::new() });
        }
        let frame = match cut.filter {
            None => frame,
            Some(filter) => {
                shuffled.resize(frame.len(), 0);
                filter.apply(at + (number * frame_bytes) as u64, frame, &mut shuffled);
                &shuffled[..]
            }
        };
        if let Some(Piece::Frames { payload, entries }) = pieces.last_mut() {
            let compressed = encoder.encode(frame, payload)?;
            entries.extend(entry(compressed as u32, frame.len() as u32, checksum(frame)));
        }
    }
    Ok(pieces)
}

/// A frame of so many zeros and its entry.
///
/// # Panics
/// When there are none or more than a frame may hold.
#[must_use]
pub fn zeros(decoded_bytes: u32) -> (Vec<u8>, [u8; ENTRY_BYTES]) {
    let frame = zero_frame(decoded_bytes);
    let entry = entry(frame.len() as u32, decoded_bytes, zero_checksum(decoded_bytes));
    (frame, entry)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, index};
    use super::*;

    #[test]
    fn pieces_keep_their_order_and_zeros_are_counted() {
        let mut random = Random(3);
        let data = [random.bytes(9000), vec![0; 4096 * 3 + 1], random.bytes(3), vec![0; 5000]].concat();
        let mut encoder = FrameEncoder::new(1).unwrap();
        let pieces = encode(&mut encoder, 0, &data, Cut { frame_bytes: 4096, filter: None }).unwrap();
        let kinds: Vec<_> = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Zeros(bytes) => (true, *bytes),
                Piece::Frames { entries, .. } => (false, (entries.len() / ENTRY_BYTES) as u64),
            })
            .collect();
        // 9000 bytes end within the third frame; the 3 bytes lie in the sixth; the last 5000 fill the rest.
        assert_eq!(kinds, [(false, 3), (true, 8192), (false, 1), (true, data.len() as u64 - 6 * 4096)]);
    }

    #[test]
    fn pieces_make_an_image() {
        let (mut bytes, mut table) = (Vec::new(), Vec::new());
        let data = [vec![7; 5000], vec![0; 5000]].concat();
        let cut = Cut { frame_bytes: 5000, filter: None };
        for piece in encode(&mut FrameEncoder::new(3).unwrap(), 0, &data, cut).unwrap() {
            match piece {
                Piece::Frames { payload, entries } => {
                    bytes.extend(payload);
                    table.extend(entries);
                }
                Piece::Zeros(count) => {
                    let (frame, entry) = zeros(count as u32);
                    bytes.extend(frame);
                    table.extend(entry);
                }
            }
        }
        bytes.extend(super::super::table::finish(&table, None));
        let index = index(&bytes).unwrap();
        assert_eq!((index.decoded_bytes(), index.common_frame_bytes()), (10_000, 5000));
    }
}
