//! Memory that a fill works in, allocated before any fault: an aligned buffer of one unit, room for compressed bytes,
//! a decoder, and a frame decoded when frames are larger than units.
//!
//! *Locks*: none. [`ScratchPool`] hands out its scratches by compare-and-swap, so a signal handler may take one.
//! *Threads*: a scratch belongs to one thread between `take` and drop of the guard.

use crate::slots::Slots;
use std::cell::UnsafeCell;

/// What a source wants to find in a [`Scratch`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ScratchNeeds {
    /// Largest compressed frame, bytes.
    pub compressed_bytes: usize,
    /// Largest decoded frame that does not fit a unit, bytes; 0 when every frame is read whole.
    pub frame_bytes: usize,
    /// Is a zstd decoder wanted?
    pub decoder: bool,
    /// May whoever has it keep it for long? Those have a pool of their own, and make another where it is empty.
    pub slow: bool,
}

/// One thread's working memory. All fields are public: sources fill them directly.
pub struct Scratch {
    /// Page-aligned, one unit long: where COPY reads from.
    pub unit: AlignedBuffer,
    /// Compressed bytes as read from the file.
    pub compressed: Vec<u8>,
    /// Where a frame is decoded that is not wanted whole, or not as it is, and that no cache has room for.
    pub frame: Vec<u8>,
    /// Which (source id, frame number) `frame` holds; `None` when nothing useful.
    pub frame_tag: Option<(u64, u64)>,
    /// The decoder, if the needs asked for one.
    pub decoder: Option<zstd_safe::DCtx<'static>>,
    /// What happened in reads since somebody last looked.
    pub tally: Tally,
}

/// What happened in reads, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames of an image that were decoded.
    pub decoded: usize,
    /// Frames that were found decoded.
    pub found: usize,
    /// Reads that failed in passing and were made again.
    pub repeated: usize,
}

impl Scratch {
    /// Allocate for units of `unit_bytes` and a source with these needs.
    #[must_use]
    pub fn new(unit_bytes: usize, needs: ScratchNeeds) -> Self {
        Self {
            unit: AlignedBuffer::new(unit_bytes),
            compressed: vec![0; needs.compressed_bytes],
            frame: vec![0; needs.frame_bytes],
            frame_tag: None,
            decoder: needs.decoder.then(zstd_safe::DCtx::create),
            tally: Tally::default(),
        }
    }
}

/// Anonymous memory of its own, page-aligned: what UFFDIO_COPY reads.
pub struct AlignedBuffer {
    address: usize,
    bytes: usize,
}

impl AlignedBuffer {
    /// Map `bytes` (rounded up to pages; at least one page). Aborts the process when even that is not to be had.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self::try_new(bytes).unwrap_or_else(|| {
            let layout = std::alloc::Layout::from_size_align(bytes, 4096);
            std::alloc::handle_alloc_error(layout.unwrap_or(std::alloc::Layout::new::<u8>()))
        })
    }

    /// The same for who can do without.
    #[must_use]
    pub fn try_new(bytes: usize) -> Option<Self> {
        let bytes = bytes.max(1).next_multiple_of(uffd::page_size());
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh anonymous mapping; nothing else is touched.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return None;
        }
        let buffer = Self { address: address as usize, bytes };
        // Unlocked before it may be written: a program that locks all it maps would have each cache of frames filled at once.
        // SAFETY: acts on the mapping that was just made.
        let opened = unsafe {
            libc::munlock(address, bytes);
            libc::mprotect(address, bytes, libc::PROT_READ | libc::PROT_WRITE) == 0
        };
        opened.then_some(buffer)
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> usize {
        self.address
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody can hold a slice of it any more.
        unsafe { libc::munmap(self.address as *mut libc::c_void, self.bytes) };
    }
}

/// Give the pages of a range of an [`AlignedBuffer`] back; they are zeros when they are wanted again. Locked ones too.
pub fn drop_pages(address: usize, bytes: usize) {
    // SAFETY: the caller knows that nobody uses the range.
    unsafe {
        if libc::madvise(address as *mut libc::c_void, bytes, libc::MADV_DONTNEED) != 0 {
            libc::madvise(address as *mut libc::c_void, bytes, libc::MADV_DONTNEED_LOCKED);
        }
    }
}

/// How many scratches a pool can hold.
const POOL_SLOTS: usize = 16;

/// Scratches shared by all regions of one shape, handed out without a lock.
pub struct ScratchPool {
    unit_bytes: usize,
    needs: ScratchNeeds,
    free: Slots,
    slots: Vec<UnsafeCell<Scratch>>,
}

// SAFETY: a slot is reached only by the one thread that took it from `free` until it puts it back.
unsafe impl Sync for ScratchPool {}
// SAFETY: as above; `DCtx` is a plain owned allocation.
unsafe impl Send for ScratchPool {}

impl ScratchPool {
    /// A pool of `count` scratches (at most 16), all allocated now.
    #[must_use]
    pub fn new(unit_bytes: usize, needs: ScratchNeeds, count: usize) -> Self {
        let count = count.clamp(1, POOL_SLOTS);
        let slots = (0..count).map(|_| UnsafeCell::new(Scratch::new(unit_bytes, needs))).collect();
        Self { unit_bytes, needs, free: Slots::new(count), slots }
    }

    /// The shape it was made for.
    #[must_use]
    pub fn shape(&self) -> (usize, ScratchNeeds) {
        (self.unit_bytes, self.needs)
    }

    /// Take one, or wait (yielding the CPU) until another thread gives one back. For signal handlers, which cannot
    /// allocate; slow readers hold none of these ([`ScratchPool::take_or_make`]), so they come back soon.
    #[must_use]
    pub fn take(&self) -> ScratchGuard<'_> {
        loop {
            match self.try_take() {
                Some(guard) => return guard,
                // SAFETY: sched_yield has no preconditions.
                None => unsafe { libc::sched_yield() },
            };
        }
    }

    /// Take one, or make one: for engine threads, which must not wait for each other. A reader that may wait for long
    /// (`slow`) always brings its own.
    #[must_use]
    pub fn take_or_make(&self, slow: bool) -> Loan<'_> {
        let pooled = if slow { None } else { self.try_take() };
        pooled.map_or_else(|| Loan::Own(Box::new(Scratch::new(self.unit_bytes, self.needs))), Loan::Pooled)
    }

    fn try_take(&self) -> Option<ScratchGuard<'_>> {
        self.free.take().map(|slot| ScratchGuard { pool: self, slot })
    }
}

/// A scratch for one fill.
pub enum Loan<'a> {
    /// From a pool.
    Pooled(ScratchGuard<'a>),
    /// Made for it.
    Own(Box<Scratch>),
}

impl std::ops::Deref for Loan<'_> {
    type Target = Scratch;
    fn deref(&self) -> &Scratch {
        match self {
            Loan::Pooled(guard) => guard,
            Loan::Own(scratch) => scratch,
        }
    }
}

impl std::ops::DerefMut for Loan<'_> {
    fn deref_mut(&mut self) -> &mut Scratch {
        match self {
            Loan::Pooled(guard) => guard,
            Loan::Own(scratch) => scratch,
        }
    }
}

/// A scratch on loan; goes back when dropped.
pub struct ScratchGuard<'a> {
    pool: &'a ScratchPool,
    slot: u32,
}

impl std::ops::Deref for ScratchGuard<'_> {
    type Target = Scratch;
    fn deref(&self) -> &Scratch {
        // SAFETY: this guard took the slot, so it is the only way to the slot.
        unsafe { &*self.pool.slots[self.slot as usize].get() }
    }
}

impl std::ops::DerefMut for ScratchGuard<'_> {
    fn deref_mut(&mut self) -> &mut Scratch {
        // SAFETY: as in `deref`.
        unsafe { &mut *self.pool.slots[self.slot as usize].get() }
    }
}

impl Drop for ScratchGuard<'_> {
    fn drop(&mut self) {
        self.pool.free.put(self.slot);
    }
}
