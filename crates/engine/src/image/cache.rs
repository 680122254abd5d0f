//! Frames that were decoded lately, for frames larger than what a touch wants: neighbours then decode nothing, and of
//! two threads that want the same frame one decodes it while the other waits. All regions of one image share them.
//!
//! *Locks*: the shelf's, held to look at a few numbers, never while a frame is decoded or read. It is only ever tried: who
//! does not get it, or waited [`PATIENCE`] for a frame, decodes for itself, so a signal handler that interrupted a holder
//! loses time and nothing else. *Signal safety*: all but [`FrameCache::of`]; nothing is allocated. *Blocks on*: another
//! thread's decoding, which has its compressed bytes already.

use super::shelf::{ALL, EMPTY, MOST_SLOTS, READY, Shelf, Shelves, TAKEN, TRIES};
use crate::scratch::AlignedBuffer;
use std::mem::ManuallyDrop;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, TryLockError, Weak};
use std::time::{Duration, Instant};

/// Decoded frames of one image take at most this much, or one frame does; those of all images: see [`super::shelf`].
pub const CACHE_BYTES: usize = 32 << 20;
/// How long another thread's decoding is waited for: the largest frame takes about 100 ms.
const PATIENCE: Duration = Duration::from_millis(300);
/// Which bytes: the file as its filesystem knows it, and the digest of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Device, inode, length, and when it was changed: seconds, nanoseconds.
    pub file: [u64; 5],
    /// `Index::digest`.
    pub digest: u64,
}

/// Decoded frames of one image.
pub struct FrameCache {
    frame_bytes: usize,
    shelf: &'static Shelf,
    memory: ManuallyDrop<AlignedBuffer>,
}

/// What there is for somebody who wants a frame.
pub enum Claim<'a> {
    /// Its bytes.
    Found(Found<'a>),
    /// Room: the caller decodes it.
    Decode(Room<'a>),
    /// Neither: the caller decodes it somewhere else.
    Full,
}

/// A frame in the cache; stays there until this is dropped.
pub struct Found<'a> {
    cache: &'a FrameCache,
    slot: usize,
}

/// Room for a frame; without [`Room::fill`] it is empty again when this is dropped.
pub struct Room<'a> {
    cache: &'a FrameCache,
    slot: usize,
    filled: bool,
}

/// What the lock let us see.
enum Seen {
    Ready(usize),
    Decoding,
    Absent,
}

impl FrameCache {
    /// The cache of the image with this key, whose largest frame decodes to `frame_bytes`; `None` when there is no room
    /// for it, or no frame to keep.
    #[must_use]
    pub fn of(key: Key, frame_bytes: usize) -> Option<Arc<Self>> {
        type Known = Vec<((u32, Key), Weak<FrameCache>)>;
        static KNOWN: Mutex<Known> = Mutex::new(Vec::new());
        // A forked child must not wait for what its parent's threads were decoding.
        let name = (std::process::id(), key);
        // Nor for this lock, which one of them may have held: an image of its own cache is as good.
        let mut known = (0..TRIES).find_map(|_| match KNOWN.try_lock() {
            Ok(known) => Some(known),
            Err(TryLockError::Poisoned(known)) => Some(known.into_inner()),
            Err(TryLockError::WouldBlock) => {
                std::thread::yield_now();
                None
            }
        });
        let shared = known.iter_mut().find_map(|known| {
            known.retain(|(_, cache)| cache.strong_count() > 0);
            known.iter().filter(|(other, _)| *other == name).find_map(|(_, cache)| cache.upgrade())
        });
        if let Some(cache) = shared.filter(|cache| cache.frame_bytes == frame_bytes) {
            return Some(cache);
        }
        let cache = Arc::new(Self::new(frame_bytes, &ALL)?);
        known.iter_mut().for_each(|known| known.push((name, Arc::downgrade(&cache))));
        Some(cache)
    }

    fn new(frame_bytes: usize, shelves: &'static Shelves) -> Option<Self> {
        // Whole pages: a slot's memory is given back alone.
        let slot_bytes = Some(frame_bytes).filter(|bytes| *bytes > 0)?.checked_next_multiple_of(uffd::page_size())?;
        let count = (CACHE_BYTES / slot_bytes).clamp(1, MOST_SLOTS);
        let memory = AlignedBuffer::try_new(slot_bytes.checked_mul(count)?)?;
        let shelf = shelves.open(memory.address(), slot_bytes, count);
        Some(Self { frame_bytes, shelf, memory: ManuallyDrop::new(memory) })
    }

    /// The frame, if it is there. If it is being decoded, wait for that.
    #[must_use]
    pub fn find(&self, frame: u32) -> Option<Found<'_>> {
        let mut until = None;
        loop {
            let rung = self.shelf.bell.rung();
            match self.shelf.locked(|| self.look(frame))? {
                Seen::Ready(slot) => return Some(Found { cache: self, slot }),
                Seen::Absent => return None,
                Seen::Decoding => {
                    let now = Instant::now();
                    let left = until.get_or_insert(now + PATIENCE).checked_duration_since(now)?;
                    if left.is_zero() {
                        return None;
                    }
                    self.shelf.bell.wait(rung, Some(left));
                }
            }
        }
    }

    /// The frame, or room for it. The caller, who found none before, has its compressed bytes by now.
    #[must_use]
    pub fn claim(&self, frame: u32, bytes: usize) -> Claim<'_> {
        if bytes > self.frame_bytes {
            return Claim::Full;
        }
        let claimed = self.shelf.locked(|| match self.look(frame) {
            Seen::Ready(slot) => Ok(Claim::Found(Found { cache: self, slot })),
            Seen::Decoding => Err(()),
            Seen::Absent => Ok(self.take(frame).map_or(Claim::Full, Claim::Decode)),
        });
        match claimed {
            Some(Ok(claim)) => claim,
            // Another thread was quicker.
            Some(Err(())) => self.find(frame).map_or(Claim::Full, Claim::Found),
            None => Claim::Full,
        }
    }

    /// Under the lock.
    fn look(&self, frame: u32) -> Seen {
        for (number, slot) in self.shelf.slots().iter().enumerate() {
            if slot.frame.load(Ordering::Relaxed) != frame {
                continue;
            }
            // Acquire: whoever sees READY sees the bytes.
            match slot.state.load(Ordering::Acquire) {
                READY => {
                    slot.readers.fetch_add(1, Ordering::Relaxed);
                    self.shelf.touch(number);
                    return Seen::Ready(number);
                }
                TAKEN => return Seen::Decoding,
                _ => {}
            }
        }
        Seen::Absent
    }

    /// Under the lock.
    fn take(&self, frame: u32) -> Option<Room<'_>> {
        self.shelf.take(frame).map(|slot| Room { cache: self, slot, filled: false })
    }

    fn start_of(&self, slot: usize) -> *mut u8 {
        self.shelf.start_of(slot) as *mut u8
    }
}

impl Drop for FrameCache {
    fn drop(&mut self) {
        if self.shelf.close() {
            // SAFETY: dropped here and nowhere else; nobody knows the memory any more.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
    }
}

impl Found<'_> {
    /// The first `bytes` of it; fewer when frames of the image are shorter.
    #[must_use]
    pub fn bytes(&self, bytes: usize) -> &[u8] {
        let bytes = bytes.min(self.cache.frame_bytes);
        // SAFETY: the slot lies in the cache's memory, and while this reader is counted nobody writes to it.
        unsafe { std::slice::from_raw_parts(self.cache.start_of(self.slot), bytes) }
    }
}

impl Drop for Found<'_> {
    fn drop(&mut self) {
        self.cache.shelf.slots()[self.slot].readers.fetch_sub(1, Ordering::Release);
    }
}

impl<'a> Room<'a> {
    /// Where its first `bytes` go; fewer when frames of the image are shorter.
    #[must_use]
    pub fn bytes_mut(&mut self, bytes: usize) -> &mut [u8] {
        let bytes = bytes.min(self.cache.frame_bytes);
        // SAFETY: the slot lies in the cache's memory, and one that is decoded into is this claim's alone.
        unsafe { std::slice::from_raw_parts_mut(self.cache.start_of(self.slot), bytes) }
    }

    /// It is decoded: everybody may have it.
    #[must_use]
    pub fn fill(mut self) -> Found<'a> {
        let slot = &self.cache.shelf.slots()[self.slot];
        // Counted before it is there to be taken away.
        slot.readers.fetch_add(1, Ordering::Relaxed);
        slot.state.store(READY, Ordering::Release);
        self.filled = true;
        Found { cache: self.cache, slot: self.slot }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if !self.filled {
            self.cache.shelf.slots()[self.slot].state.store(EMPTY, Ordering::Release);
        }
        self.cache.shelf.bell.ring_all();
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
