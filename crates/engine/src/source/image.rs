//! Pages from an image: a whole frame is decoded straight into the page's memory, a part of one by way of the image's
//! cache of decoded frames. Where the image has a filter, its undoing is the copy into the page's memory.
//!
//! *Locks*: that of the cache, never while anything is read; what was learnt about frames is kept in atomics.
//! *Blocks on*: the file or source, and another thread that decodes the same frame. *Signal safety*: that of its bytes,
//! given a [`Scratch`] of the shape that [`Source::needs`] asks for.

use super::fd::FileHandle;
use super::stored::{Opening, Stored};
use super::{Cause, Extent, Latency, Patience, Reading, Scratch, ScratchNeeds, Source, SourceError, Table};
use crate::image::cache::{Claim, FrameCache, Key};
use crate::image::frame::{FrameFault, decode, is_zero_frame};
use crate::image::{Frame, ImageError, Index, MAX_FRAME_BYTES};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Unit of images whose frames have no common size that suits.
const DEFAULT_UNIT_BYTES: usize = 64 << 10;
/// A larger frame that may be zero is looked at on opening, so that no scratch needs room for it when it is.
const UNSEEN_ZERO_BYTES: u32 = 16 << 20;

/// Each image has a number of its own, by which scratches know whose frame they hold.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// An image: a file, or bytes of another source.
pub struct ImageSource {
    id: u64,
    bytes: Box<dyn Stored>,
    name: String,
    index: Index,
    kinds: Kinds,
    unit_bytes: usize,
    needs: ScratchNeeds,
    /// None where no frame is larger than a page, or no memory was to be had.
    cache: Option<Arc<FrameCache>>,
}

impl ImageSource {
    /// Read and check the index of an open image; `name` is for people: a path.
    ///
    /// # Errors
    /// [`ImageError`]: what is wrong with it and where.
    pub fn open(file: FileHandle, name: &str) -> Result<Self, ImageError> {
        Self::of(Box::new(file), format!("Image('{name}')"))
    }

    /// The same of an image whose bytes come from another source, which may not be an image itself: there is one scratch
    /// for both.
    ///
    /// # Errors
    /// As [`ImageSource::open`]; a read that failed is [`ImageError::Io`], with the [`SourceError`] in it if there is no errno.
    pub fn inside(source: Arc<dyn Source>) -> Result<Self, ImageError> {
        let name = format!("Image({})", source.name());
        Self::of(Box::new(source), name)
    }

    fn of(bytes: Box<dyn Stored>, name: String) -> Result<Self, ImageError> {
        let opening = Opening::new(&*bytes).map_err(|error| ImageError::Io { offset: 0, bytes: 0, error })?;
        let index = Index::read(opening.size(), &|offset, out: &mut [u8]| opening.read(offset, out))?;
        let kinds = Kinds::new(index.frame_count());
        let frame_bytes = largest_unit_of_work(&opening, &index, &kinds)?;
        let unit_bytes = match index.natural_unit(uffd::page_size()) {
            0 => DEFAULT_UNIT_BYTES,
            natural => natural,
        };
        let needs = ScratchNeeds {
            compressed_bytes: (index.largest_compressed_bytes() as usize).next_power_of_two(),
            frame_bytes: (frame_bytes as usize).next_power_of_two(),
            decoder: true,
            slow: false,
        };
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        // Smaller ones are always wanted whole.
        let cached = frame_bytes as usize > uffd::page_size();
        let cache = if cached { cache_of(&*bytes, id, &index, frame_bytes as usize) } else { None };
        drop(opening);
        Ok(Self { id, bytes, name, index, kinds, unit_bytes, needs, cache })
    }

    /// Does this frame hold only zeros? Reads its few compressed bytes the first time, unless its size says no.
    fn is_zero(&self, frame: Frame, how: Access, scratch: &mut Scratch) -> Result<bool, Cause> {
        if !frame.may_be_zero() {
            return Ok(false);
        }
        if let Some(known) = self.kinds.get(frame.number) {
            return Ok(known);
        }
        self.read_frame(frame, how, scratch)?;
        let zero = is_zero_frame(compressed(scratch, frame), frame.decoded_bytes);
        self.kinds.set(frame.number, zero);
        Ok(zero)
    }

    /// Have the scratch hold its compressed bytes.
    fn read_frame(&self, frame: Frame, how: Access, scratch: &mut Scratch) -> Result<(), Cause> {
        // Taken out, for the source below may use the rest of the scratch; nothing is allocated.
        let mut room = std::mem::take(&mut scratch.compressed);
        let outcome = match room.get_mut(..frame.compressed_bytes as usize) {
            Some(out) => self.bytes.read(frame.offset, out, &mut how.reading(scratch)),
            None => Err(Cause::Os(libc::ENOMEM)), // the scratch was made for another source
        };
        scratch.compressed = room;
        outcome
    }

    /// Give `part` the bytes of the frame from `within` on.
    fn fill(&self, frame: Frame, within: usize, part: &mut [u8], how: &mut Reading<'_>) -> Result<(), Cause> {
        let access = Access::of(how);
        let scratch = &mut *how.scratch;
        if self.is_zero(frame, access, scratch)? {
            part.fill(0);
            return Ok(());
        }
        if part.len() == frame.decoded_bytes as usize {
            return self.fill_whole(frame, part, access, scratch);
        }
        self.fill_part(frame, within, part, access, scratch)
    }

    /// All of a frame: decoded in place, by way of the scratch only if a filter has to be undone.
    fn fill_whole(&self, frame: Frame, out: &mut [u8], how: Access, scratch: &mut Scratch) -> Result<(), Cause> {
        if self.index.filter().is_none() {
            self.read_frame(frame, how, scratch)?;
            return decode_frame(scratch, frame, out);
        }
        self.decode_into_scratch(frame, how, scratch)?;
        self.put(frame, &scratch.frame, 0, out)
    }

    /// A part of a frame: from the cache, where the frame is decoded if need be, or by way of the scratch.
    fn fill_part(
        &self,
        frame: Frame,
        within: usize,
        part: &mut [u8],
        how: Access,
        scratch: &mut Scratch,
    ) -> Result<(), Cause> {
        let frame_bytes = frame.decoded_bytes as usize;
        if let Some(found) = self.cache.as_ref().and_then(|cache| cache.find(frame.number)) {
            scratch.tally.found += 1;
            return self.put(frame, found.bytes(frame_bytes), within, part);
        }
        if let Some(cache) = &self.cache {
            // Read before it is claimed: who waits for the frame waits for its decoding only.
            self.read_frame(frame, how, scratch)?;
            match cache.claim(frame.number, frame_bytes) {
                Claim::Found(found) => {
                    scratch.tally.found += 1;
                    return self.put(frame, found.bytes(frame_bytes), within, part);
                }
                Claim::Decode(mut room) => {
                    decode_frame(scratch, frame, room.bytes_mut(frame_bytes))?;
                    return self.put(frame, room.fill().bytes(frame_bytes), within, part);
                }
                Claim::Full => {}
            }
        }
        self.decode_into_scratch(frame, how, scratch)?;
        self.put(frame, &scratch.frame, within, part)
    }

    /// Have the scratch hold the frame, as zstd gives it.
    fn decode_into_scratch(&self, frame: Frame, how: Access, scratch: &mut Scratch) -> Result<(), Cause> {
        let tag = (self.id, u64::from(frame.number));
        if scratch.frame_tag == Some(tag) {
            scratch.tally.found += 1;
            return Ok(());
        }
        self.read_frame(frame, how, scratch)?;
        scratch.frame_tag = None;
        let mut room = std::mem::take(&mut scratch.frame);
        let outcome = match room.get_mut(..frame.decoded_bytes as usize) {
            Some(out) => decode_frame(scratch, frame, out),
            None => Err(Cause::Os(libc::ENOMEM)),
        };
        scratch.frame = room;
        outcome?;
        scratch.frame_tag = Some(tag);
        Ok(())
    }

    /// Give `part` the bytes from `within` on of a frame, of which `decoded` is what zstd gave.
    fn put(&self, frame: Frame, decoded: &[u8], within: usize, part: &mut [u8]) -> Result<(), Cause> {
        // Too short only if the scratch was made for another source.
        let decoded = decoded.get(..frame.decoded_bytes as usize).ok_or(Cause::Os(libc::ENOMEM))?;
        match self.index.filter() {
            Some(filter) => filter.undo(frame.decoded_offset, decoded, within, part),
            None => part.copy_from_slice(&decoded[within..within + part.len()]),
        }
        Ok(())
    }
}

impl Source for ImageSource {
    fn len(&self) -> u64 {
        self.index.decoded_bytes()
    }

    fn read_into(&self, offset: u64, out: &mut [u8], how: &mut Reading<'_>) -> Result<(), SourceError> {
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            let frame = self.index.find(at).ok_or(SourceError::new(at, Cause::Short))?;
            let step = usize::try_from(frame.decoded_end() - at).unwrap_or(usize::MAX).min(out.len() - done);
            let within = (at - frame.decoded_offset) as usize;
            self.fill(frame, within, &mut out[done..done + step], how)
                .map_err(|cause| SourceError::new(frame.decoded_offset, cause))?;
            done += step;
        }
        Ok(())
    }

    fn extent(&self, offset: u64, len: usize, how: &mut Reading<'_>) -> Extent {
        // A frame that the page cache does not have, and that may not be waited for, is data: read_into finds out.
        let access = Access::of(how);
        // A store is not asked for this: what was learnt of its frames has to do.
        let known = |frame: Frame| frame.may_be_zero() && self.kinds.get(frame.number) == Some(true);
        let zero = |frame: Frame, scratch: &mut Scratch| match self.bytes.source() {
            Some(_) => known(frame),
            None => self.is_zero(frame, access, scratch).unwrap_or(false),
        };
        let Some(first) = self.index.find(offset) else {
            return Extent::Data(len);
        };
        let wanted = zero(first, how.scratch);
        let end = offset.saturating_add(len as u64);
        let mut frame = first;
        while frame.decoded_end() < end {
            match self.index.find(frame.decoded_end()) {
                Some(next) if zero(next, how.scratch) == wanted => frame = next,
                _ => break,
            }
        }
        let bytes = (frame.decoded_end().min(end) - offset) as usize;
        if wanted { Extent::Zero(bytes) } else { Extent::Data(bytes.min(len)) }
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn preferred_unit(&self) -> usize {
        self.unit_bytes
    }

    fn latency(&self) -> Latency {
        self.bytes.source().map_or(Latency::Fast, Source::latency)
    }

    fn signal_safe(&self) -> bool {
        self.bytes.source().is_none_or(Source::signal_safe)
    }

    fn signal_unsafe_reason(&self) -> String {
        self.bytes.source().map_or_else(String::new, Source::signal_unsafe_reason)
    }

    /// Decoding alone is worth it; of Python only as far as that says so.
    fn readahead_helps(&self) -> bool {
        self.bytes.source().is_none_or(|source| !source.is_called() || source.readahead_helps())
    }

    fn is_called(&self) -> bool {
        self.bytes.source().is_some_and(Source::is_called)
    }

    fn piece(&self) -> usize {
        self.bytes.source().map_or(0, Source::piece)
    }

    fn hint(&self, bytes: Range<u64>) {
        let Some(source) = self.bytes.source() else { return };
        let (first, last) = (self.index.find(bytes.start), self.index.find(bytes.end.saturating_sub(1)));
        if let (Some(first), Some(last)) = (first, last) {
            source.hint(first.offset..last.offset + u64::from(last.compressed_bytes));
        }
    }

    fn needs(&self) -> ScratchNeeds {
        self.needs
    }
}

/// What is known about frames whose size says that they may be zero: two bits each.
struct Kinds(Vec<AtomicU64>);

impl Kinds {
    const FRAMES_PER_WORD: u32 = 32;

    fn new(frames: u32) -> Self {
        Self((0..frames.div_ceil(Self::FRAMES_PER_WORD)).map(|_| AtomicU64::new(0)).collect())
    }

    fn place(&self, frame: u32) -> (&AtomicU64, u32) {
        (&self.0[(frame / Self::FRAMES_PER_WORD) as usize], frame % Self::FRAMES_PER_WORD * 2)
    }

    /// Zeros (true), data (false), or not known yet.
    fn get(&self, frame: u32) -> Option<bool> {
        let (word, shift) = self.place(frame);
        match word.load(Ordering::Relaxed) >> shift & 3 {
            1 => Some(true),
            2 => Some(false),
            _ => None,
        }
    }

    fn set(&self, frame: u32, zero: bool) {
        let (word, shift) = self.place(frame);
        let bits: u64 = if zero { 1 } else { 2 };
        // Relaxed: the bits guard no other memory, and whoever does not see them looks again.
        word.fetch_or(bits << shift, Ordering::Relaxed);
    }
}

fn cause_of(fault: FrameFault) -> Cause {
    match fault {
        FrameFault::Checksum { .. } => Cause::Checksum,
        FrameFault::Corrupt | FrameFault::Length { .. } => Cause::Corrupt,
    }
}

/// How the bytes are to be read, while the scratch is used for something else.
#[derive(Clone, Copy)]
struct Access {
    table: Table,
    patience: Patience,
    limit: Duration,
    own: (usize, usize),
}

impl Access {
    fn of(how: &Reading<'_>) -> Self {
        Self { table: how.table, patience: how.patience, limit: how.limit, own: how.own }
    }

    fn reading(self, scratch: &mut Scratch) -> Reading<'_> {
        Reading { patience: self.patience, table: self.table, limit: self.limit, own: self.own, scratch }
    }
}

/// What [`ImageSource::read_frame`] put there.
fn compressed(scratch: &Scratch, frame: Frame) -> &[u8] {
    scratch.compressed.get(..frame.compressed_bytes as usize).unwrap_or_default()
}

/// Decode what [`ImageSource::read_frame`] put there.
fn decode_frame(scratch: &mut Scratch, frame: Frame, out: &mut [u8]) -> Result<(), Cause> {
    let decoder = scratch.decoder.as_mut().ok_or(Cause::Os(libc::ENOMEM))?;
    let compressed = scratch.compressed.get(..frame.compressed_bytes as usize).unwrap_or_default();
    scratch.tally.decoded += 1;
    decode(decoder, compressed, out, frame.checksum).map_err(cause_of)
}

/// The decoded frames of these very bytes, shared with whoever has them open too; of a source, which says not which bytes
/// it gives, the image's own.
fn cache_of(bytes: &dyn Stored, id: u64, index: &Index, frame_bytes: usize) -> Option<Arc<FrameCache>> {
    let file = bytes.identity().or_else(|| bytes.source().map(|_| [u64::MAX, id, 0, 0, 0]))?;
    FrameCache::of(Key { file, digest: index.digest() }, frame_bytes)
}

/// The most that a frame which is not zero decodes to. Very large ones that may be zero are looked at for this.
fn largest_unit_of_work(opening: &Opening<'_>, index: &Index, kinds: &Kinds) -> Result<u32, ImageError> {
    let mut largest = index.largest_data_bytes();
    let mut compressed = Vec::new();
    for frame in index.frames().filter(Frame::may_be_zero) {
        if frame.decoded_bytes <= UNSEEN_ZERO_BYTES {
            largest = largest.max(frame.decoded_bytes);
            continue;
        }
        compressed.resize(frame.compressed_bytes as usize, 0);
        let bytes = u64::from(frame.compressed_bytes);
        opening.read(frame.offset, &mut compressed).map_err(|error| ImageError::Io {
            offset: frame.offset,
            bytes,
            error,
        })?;
        let zero = is_zero_frame(&compressed, frame.decoded_bytes);
        kinds.set(frame.number, zero);
        largest = if zero { largest } else { largest.max(frame.decoded_bytes) };
    }
    debug_assert!(largest <= MAX_FRAME_BYTES, "the index refuses larger frames");
    Ok(largest)
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
#[cfg(test)]
#[path = "image_cache_tests.rs"]
mod cache_tests;
