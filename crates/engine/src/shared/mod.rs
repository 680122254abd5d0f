//! What an owner shares with its pager: one memory file, mapped by both, that outlives the pager.
//!
//! First a [`Header`], then a [`Part`] for each region (its counters, units being filled, a byte a unit, a bit a page). Whoever is on
//! the other side may write anything: all of it is numbers that are compared and shown, and texts; none is an address, and
//! nothing is what the next pager goes by.
//!
//! *Locks*: [`Part::installing`] and [`Part::quiet`] wait for nobody. *Threads*: any, signal handlers too.

mod code;
mod mapping;
mod noted;
mod part;

pub use code::{decode, encode};
pub use mapping::{MappedPart, Mapping};
pub use part::Part;

use crate::cause::{Remote, SourceError};
use code::REMOTE;
use noted::noted_bytes;
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

/// Of the layout and the frames; both sides are the same build, or refuse.
pub const VERSION: u32 = 2;
/// Threads with an error on their way that a pager is told of.
pub const LATCHES: usize = 256;
/// Failures kept.
const RECORDS: usize = 64;
/// Bytes of text in a failure.
pub const TEXT: usize = 4000;
/// Pagers of one process.
pub const PAGERS: usize = 16;

/// The first part of the file.
#[repr(C)]
pub struct Header {
    /// [`VERSION`].
    pub version: AtomicU32,
    /// SIGINTs that will raise in the owner's main thread.
    pub interrupts: AtomicU32,
    /// Does SIGINT raise in the owner?
    pub raises: AtomicU32,
    /// The owner as it numbers itself.
    pub owner: AtomicI32,
    /// When the pager last looked after the faults that wait in it; 0: none does.
    pub alive_ns: AtomicU64,
    /// Messages that a pager has read.
    pub reads: AtomicU64,
    next_record: AtomicU32,
    latches: [Latched; LATCHES],
    records: [Record; RECORDS],
}

#[repr(C)]
struct Latched {
    thread: AtomicI32,
    touched_ns: AtomicU64,
}

/// One failed page.
#[repr(C)]
#[derive(Clone, Copy)]
struct Failed {
    region: u64,
    page: u64,
    offset: u64,
    cause: [u32; 3],
    used: u32,
    text: [u8; TEXT],
}

#[repr(C)]
struct Record {
    /// Odd while being written.
    sequence: AtomicU32,
    failed: UnsafeCell<Failed>,
}

// SAFETY: `failed` is written between an odd and an even step of `sequence`; readers copy it and look whether that moved. What
// a hostile other side writes meanwhile is any bytes, which is a value of the type.
unsafe impl Sync for Header {}

/// Where the bytes begin that say which units are there.
pub const STATES_AT: usize = size_of::<Part>().next_multiple_of(64);

/// Bytes of the header, in whole pages of any size.
#[must_use]
pub fn header_bytes() -> usize {
    size_of::<Header>().next_multiple_of(uffd::page_size())
}

/// Where the bits begin that say which pages a pager has poisoned.
fn noted_at(units: usize) -> usize {
    (STATES_AT + units).next_multiple_of(64)
}

/// Bytes of the part of a region of so many units and pages.
#[must_use]
pub fn part_bytes(units: usize, pages: usize) -> usize {
    (noted_at(units) + noted_bytes(pages)).next_multiple_of(uffd::page_size())
}

impl Header {
    /// Owner: `thread` has an error on its way, or (0) the one that had this place has it no more.
    pub fn latch(&self, place: usize, thread: i32, now_ns: u64) {
        let latch = &self.latches[place];
        latch.touched_ns.store(now_ns, Ordering::Relaxed);
        latch.thread.store(thread, Ordering::Release);
    }

    /// Pager: has this thread of the owner an error on its way, younger than `life_ns`?
    #[must_use]
    pub fn is_latched(&self, thread: i32, now_ns: u64, life_ns: u64) -> bool {
        self.latches.iter().any(|latch| {
            latch.thread.load(Ordering::Acquire) == thread
                && now_ns.saturating_sub(latch.touched_ns.load(Ordering::Relaxed)) < life_ns
        })
    }

    /// Keep why a page failed, with a text for what has one.
    pub fn record(&self, region: u64, page: u64, error: SourceError, text: &str) -> [u32; 3] {
        let mut claims = (0..RECORDS).filter_map(|_| self.claim_record());
        let Some((slot, odd)) = claims.next() else { return encode(error.cause) };
        let record = &self.records[slot];
        let cause = if text.is_empty() { encode(error.cause) } else { [REMOTE, slot as u32, odd.wrapping_add(1)] };
        let mut failed = Failed { region, page, offset: error.offset, cause, used: 0, text: [0; TEXT] };
        let text = tail(text);
        failed.text[..text.len()].copy_from_slice(text.as_bytes());
        failed.used = text.len() as u32;
        // SAFETY: see the type; this thread made the sequence odd, so it alone writes.
        unsafe { record.failed.get().write_volatile(failed) };
        record.sequence.store(odd.wrapping_add(1), Ordering::Release);
        cause
    }

    /// The next record, for this thread to write: its sequence is odd. `None`: another thread, as many failures behind as there
    /// are records, still writes it.
    fn claim_record(&self) -> Option<(usize, u32)> {
        let slot = self.next_record.fetch_add(1, Ordering::Relaxed) as usize % RECORDS;
        let sequence = &self.records[slot].sequence;
        let even = sequence.load(Ordering::Relaxed);
        if even & 1 == 1 || sequence.compare_exchange(even, even | 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return None;
        }
        fence(Ordering::Release); // no reader sees the new bytes with the old, even sequence
        Some((slot, even | 1))
    }

    /// Pager: those that a dead one was writing can be written again. Before any thread fails a page.
    pub fn free_records(&self) {
        for record in &self.records {
            let sequence = record.sequence.load(Ordering::Relaxed);
            if sequence & 1 == 1 {
                let nothing = Failed { region: 0, page: u64::MAX, offset: 0, cause: [0; 3], used: 0, text: [0; TEXT] };
                // SAFETY: see the type; its writer is gone, and no other has begun.
                unsafe { record.failed.get().write_volatile(nothing) };
                record.sequence.store(sequence.wrapping_add(1), Ordering::Release);
            }
        }
    }

    fn read<T>(&self, slot: usize, look: impl FnOnce(&Failed) -> T) -> Option<(u32, T)> {
        let record = self.records.get(slot)?;
        let before = record.sequence.load(Ordering::Acquire);
        // SAFETY: see the type; the look is thrown away when the sequence moved.
        let found = look(unsafe { &*record.failed.get() });
        fence(Ordering::Acquire);
        let steady = before != 0 && before & 1 == 0 && record.sequence.load(Ordering::Relaxed) == before;
        steady.then_some((before, found))
    }

    /// Owner: the newest failure of a page. `pager`: which of this process's pagers this is.
    #[must_use]
    pub fn find(&self, pager: u16, region: u64, page: usize) -> Option<SourceError> {
        let newest = self.next_record.load(Ordering::Acquire) as usize;
        (1..=RECORDS).find_map(|back| {
            let same = |failed: &Failed| {
                (failed.region == region && failed.page == page as u64).then_some((failed.offset, failed.cause))
            };
            let (_, found) = self.read(newest.wrapping_sub(back) % RECORDS, same)?;
            found.map(|(offset, cause)| SourceError::new(offset, decode(pager, cause)))
        })
    }

    fn text(&self, remote: Remote) -> Option<String> {
        let copy = |failed: &Failed| failed.text[..(failed.used as usize).min(TEXT)].to_vec();
        let (sequence, text) = self.read(remote.slot as usize, copy)?;
        (sequence == remote.sequence).then(|| String::from_utf8_lossy(&text).into_owned())
    }
}

/// The last [`TEXT`] bytes, or a little less: the end of a traceback says most.
fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(TEXT);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// The headers of this process's pagers, for handlers.
static HEADERS: [AtomicPtr<Header>; PAGERS] = [const { AtomicPtr::new(std::ptr::null_mut()) }; PAGERS];
static USED: AtomicUsize = AtomicUsize::new(0);
/// Give a header a place among this process's; `None`: there is none left.
pub fn enlist(header: &'static Header) -> Option<u16> {
    let place =
        USED.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |used| (used < PAGERS).then_some(used + 1)).ok()?;
    HEADERS[place].store(std::ptr::from_ref(header).cast_mut(), Ordering::Release);
    Some(place as u16)
}

/// That of a place.
#[must_use]
pub fn header_of(place: u16) -> Option<&'static Header> {
    // SAFETY: null, or a header that stays mapped for good.
    unsafe { HEADERS.get(place as usize)?.load(Ordering::Acquire).as_ref() }
}

/// All of them. A forked child has none of the mappings: [`forget`] comes first there.
pub fn for_each_header(mut visit: impl FnMut(&'static Header)) {
    for place in 0..USED.load(Ordering::Acquire).min(PAGERS) {
        if let Some(header) = header_of(place as u16) {
            visit(header);
        }
    }
}

/// In a forked child: the headers are the parent's, and not mapped here.
pub fn forget() {
    for header in &HEADERS {
        header.store(std::ptr::null_mut(), Ordering::Release);
    }
    USED.store(0, Ordering::Release);
}

/// What the pager said of a failure, unless many others came since.
#[must_use]
pub fn text_of(remote: Remote) -> Option<String> {
    header_of(remote.pager)?.text(remote)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_somebody_writes_is_left_to_him_and_freed_after_his_death() {
        // SAFETY: numbers and bytes: zeros are a value of it; the allocation is of its layout.
        let header =
            unsafe { Box::from_raw(std::alloc::alloc_zeroed(std::alloc::Layout::new::<Header>()).cast::<Header>()) };
        let failed = |page| header.record(7, page, SourceError::new(page * 4096, crate::cause::Cause::Timeout), "");
        let (slot, odd) = header.claim_record().unwrap();
        (1..=RECORDS as u64).for_each(|page| _ = failed(page)); // round once: its turn comes again
        assert_eq!(header.records[slot].sequence.load(Ordering::Relaxed), odd);
        assert_eq!(header.find(0, 7, RECORDS).unwrap().offset, RECORDS as u64 * 4096);
        header.free_records();
        assert_eq!(header.records[slot].sequence.load(Ordering::Relaxed), odd + 1);
        let written = (0..RECORDS as u64).any(|page| {
            failed(page);
            header.records[slot].sequence.load(Ordering::Relaxed) == odd + 3
        });
        assert!(written);
    }

    #[test]
    fn a_long_text_keeps_its_end() {
        let long = "ä".repeat(TEXT);
        assert!(tail(&long).len() <= TEXT && long.ends_with(tail(&long)));
    }
}
