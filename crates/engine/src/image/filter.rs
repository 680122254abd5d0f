//! The byte-shuffle: what is done to an array's bytes before zstd, so that zstd finds more in them and has less to do.
//!
//! The decoded whole is cut into *blocks* of equal length, counted from its first byte; every frame begins with a block.
//! In each block the whole items (which begin at byte `start` and follow each other) are shuffled (see `shuffle`); bytes
//! before the first and behind the last whole item stay where they are. So any block can be undone without the others,
//! and what `zstd -d` gives can be undone by whoever knows three numbers.
//!
//! They are kept in a skippable frame right before the guard, and the guard's digest covers that frame. This is why a
//! reader from before there were filters refuses such an image: to it the digest is wrong. A reader that meets a filter
//! frame of another version or kind, or at another place, refuses too.

use super::{ImageError, Index, SKIPPABLE_HEADER_BYTES, SKIPPABLE_MAGIC, shuffle};

/// Says that a skippable frame is a filter.
const FILTER_TAG: [u8; 8] = *b"uffilter";
/// One of the sixteen magics, neither the guard's nor the table's.
const FILTER_MAGIC: u32 = SKIPPABLE_MAGIC | 0xC;
/// Magic, size, tag, version, kind, two zeros, item, block, four zeros, start.
pub(crate) const FILTER_BYTES: u32 = 40;
/// Magic, size and tag: by these a filter of any version is known.
pub(crate) const FILTER_HEAD_BYTES: usize = 16;
const VERSION: u8 = 1;
const SHUFFLE: u8 = 1;

/// The largest item: more bytes in one are no number.
pub const MAX_ITEM_BYTES: u32 = 255;
/// The largest block.
pub const MAX_BLOCK_BYTES: u32 = 64 << 20;

/// Why a filter cannot be had, or not be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterFault {
    /// Made by a later version.
    #[error("it is of version {found}, and this reader knows version {VERSION}: its bytes would come out shuffled")]
    Version {
        /// What it says.
        found: u8,
    },
    /// Something else than a shuffle.
    #[error("it is of kind {found}, and this reader knows kind {SHUFFLE}, the byte-shuffle")]
    Kind {
        /// What it says.
        found: u8,
    },
    /// Its frame is not as long as the version has it, or bytes that must be zero are not.
    #[error("its frame is malformed")]
    Malformed,
    /// Not right before the guard at the end, or there are several.
    #[error("a filter must be the last but one frame and followed by the guard of the table; this one is not")]
    Misplaced,
    /// Items of one byte, or giants.
    #[error("items of {item_bytes} bytes: 2 to {MAX_ITEM_BYTES} can be shuffled")]
    Item {
        /// The claim.
        item_bytes: u32,
    },
    /// A block that holds no item, or is too much to be undone at once.
    #[error("blocks of {block_bytes} bytes: they must hold an item of {item_bytes} and are {MAX_BLOCK_BYTES} at most")]
    Block {
        /// The claim.
        block_bytes: u32,
        /// The claim.
        item_bytes: u32,
    },
    /// Items that begin behind the end.
    #[error("items begin at byte {start} of {decoded_bytes}")]
    Start {
        /// The claim.
        start: u64,
        /// How many bytes there are.
        decoded_bytes: u64,
    },
    /// A frame that begins within a block.
    #[error("frame {frame} begins at byte {decoded_offset}, which is no multiple of the blocks' {block_bytes}")]
    Frame {
        /// Its number.
        frame: u32,
        /// Where its bytes begin.
        decoded_offset: u64,
        /// The claim.
        block_bytes: u32,
    },
}

/// A byte-shuffle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    item_bytes: u32,
    block_bytes: u32,
    start: u64,
}

/// How a block is laid out: bytes before the first whole item, and how many items there are.
#[derive(Clone, Copy)]
struct Layout {
    head: usize,
    items: usize,
}

impl Filter {
    /// A filter for items of `item_bytes`, the first at byte `start`, in blocks of `block_bytes`.
    ///
    /// # Errors
    /// [`FilterFault::Item`], [`FilterFault::Block`].
    pub fn new(item_bytes: u32, block_bytes: u32, start: u64) -> Result<Self, FilterFault> {
        if !(2..=MAX_ITEM_BYTES).contains(&item_bytes) {
            return Err(FilterFault::Item { item_bytes });
        }
        if !(item_bytes..=MAX_BLOCK_BYTES).contains(&block_bytes) {
            return Err(FilterFault::Block { block_bytes, item_bytes });
        }
        Ok(Self { item_bytes, block_bytes, start })
    }

    /// Bytes of an item, bytes of a block, where the first item begins.
    #[must_use]
    pub fn numbers(&self) -> (u32, u32, u64) {
        (self.item_bytes, self.block_bytes, self.start)
    }

    /// The skippable frame that records it.
    #[must_use]
    pub(crate) fn frame(&self) -> [u8; FILTER_BYTES as usize] {
        let mut frame = [0; FILTER_BYTES as usize];
        frame[..4].copy_from_slice(&FILTER_MAGIC.to_le_bytes());
        frame[4..8].copy_from_slice(&(FILTER_BYTES - SKIPPABLE_HEADER_BYTES as u32).to_le_bytes());
        frame[8..16].copy_from_slice(&FILTER_TAG);
        (frame[16], frame[17]) = (VERSION, SHUFFLE);
        frame[20..24].copy_from_slice(&self.item_bytes.to_le_bytes());
        frame[24..28].copy_from_slice(&self.block_bytes.to_le_bytes());
        frame[32..].copy_from_slice(&self.start.to_le_bytes());
        frame
    }

    /// What a frame that [`is_filter`] records; `frame` is its first bytes, `frame_bytes` of them there are.
    pub(crate) fn parse(frame: &[u8], frame_bytes: u32) -> Result<Self, FilterFault> {
        let byte = |at: usize| frame.get(at).copied().ok_or(FilterFault::Malformed);
        let word = |at: usize| {
            let bytes = frame.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u32::from_le_bytes).ok_or(FilterFault::Malformed)
        };
        match (byte(16)?, byte(17)?) {
            (VERSION, SHUFFLE) => {}
            (VERSION, found) => return Err(FilterFault::Kind { found }),
            (found, _) => return Err(FilterFault::Version { found }),
        }
        let start = u64::from(word(32)?) | u64::from(word(36)?) << 32;
        let filter = Self::new(word(20)?, word(24)?, start)?;
        // Strictly: what this version would not write it does not read.
        if frame_bytes == FILTER_BYTES && frame == filter.frame() { Ok(filter) } else { Err(FilterFault::Malformed) }
    }

    /// Do its numbers fit the frames?
    pub(crate) fn check(&self, index: &Index) -> Result<(), FilterFault> {
        let (decoded_bytes, block_bytes) = (index.decoded_bytes(), self.block_bytes);
        if self.start > decoded_bytes {
            return Err(FilterFault::Start { start: self.start, decoded_bytes });
        }
        let within = |at: u64| !at.is_multiple_of(u64::from(block_bytes));
        match index.frames().find(|frame| frame.decoded_bytes > 0 && within(frame.decoded_offset)) {
            Some(frame) => {
                Err(FilterFault::Frame { frame: frame.number, decoded_offset: frame.decoded_offset, block_bytes })
            }
            None => Ok(()),
        }
    }

    fn layout(&self, block_at: u64, bytes: usize) -> Layout {
        let item = u64::from(self.item_bytes);
        let head = match self.start.checked_sub(block_at) {
            Some(before) => before,
            None => (item - (block_at - self.start) % item) % item,
        };
        let head = usize::try_from(head).unwrap_or(usize::MAX).min(bytes);
        Layout { head, items: (bytes - head) / self.item_bytes as usize }
    }

    /// Shuffle the blocks of `data`, which lies at byte `at` of the whole, a multiple of the block; `out` is as long.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn apply(&self, at: u64, data: &[u8], out: &mut [u8]) {
        assert_eq!(data.len(), out.len(), "shuffled bytes are as many as they were");
        let block_bytes = self.block_bytes as usize;
        for (number, (block, out)) in data.chunks(block_bytes).zip(out.chunks_mut(block_bytes)).enumerate() {
            let Layout { head, items } = self.layout(at + (number * block_bytes) as u64, block.len());
            let end = head + items * self.item_bytes as usize;
            out[..head].copy_from_slice(&block[..head]);
            shuffle::shuffle(&block[head..end], &mut out[head..end], self.item_bytes as usize);
            out[end..].copy_from_slice(&block[end..]);
        }
    }

    /// Undo it: `out` gets the bytes from `within` on of the frame at byte `at` of the whole, whose shuffled bytes are
    /// `shuffled`. No allocation.
    ///
    /// # Panics
    /// When they do not lie in the frame.
    pub fn undo(&self, at: u64, shuffled: &[u8], within: usize, out: &mut [u8]) {
        let block_bytes = self.block_bytes as usize;
        let mut done = 0;
        while done < out.len() {
            let from = within + done;
            let start = from / block_bytes * block_bytes;
            let block = &shuffled[start..(start + block_bytes).min(shuffled.len())];
            let step = (block.len() - (from - start)).min(out.len() - done);
            self.undo_block(self.layout(at + start as u64, block.len()), block, from - start, &mut out[done..][..step]);
            done += step;
        }
    }

    /// `out` gets the bytes from `within` on of one block.
    fn undo_block(&self, layout: Layout, block: &[u8], within: usize, out: &mut [u8]) {
        let item = self.item_bytes as usize;
        let Layout { head, items } = layout;
        let end = head + items * item;
        let planes = &block[head..end];
        let single = |at: usize| planes[(at - head) % item * items + (at - head) / item];
        let stop = within + out.len();
        // Five stretches, each of which may be empty: before the items, the rest of one, whole ones, a part of one, behind.
        let clamp = |at: usize| at.clamp(within, stop);
        let first = clamp((within.max(head) - head).div_ceil(item) * item + head).min(clamp(end));
        let last = ((stop.min(end).max(head) - head) / item * item + head).clamp(first, stop);
        let (head_end, items_end) = (clamp(head), clamp(end));
        out[..head_end - within].copy_from_slice(&block[within..head_end]);
        (head_end..first).for_each(|at| out[at - within] = single(at));
        if first < last {
            shuffle::unshuffle(planes, items, (first - head) / item, &mut out[first - within..last - within], item);
        }
        (last..items_end).for_each(|at| out[at - within] = single(at));
        out[items_end - within..].copy_from_slice(&block[items_end..stop]);
    }
}

/// Is this the beginning of a filter's frame, of whatever version?
pub(crate) fn is_filter(head: &[u8; FILTER_HEAD_BYTES]) -> bool {
    let magic = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    magic & !0xF == SKIPPABLE_MAGIC && head[8..] == FILTER_TAG
}

/// The error for the filter at `offset` of the file.
pub(crate) fn refuse(offset: u64) -> impl Fn(FilterFault) -> ImageError {
    move |fault| ImageError::Filter { offset, fault }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
