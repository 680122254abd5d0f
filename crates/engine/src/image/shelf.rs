//! Room for decoded frames, bounded over all images of the process: an image that needs some while all is used takes away what
//! was not wanted for longest, another image's too.
//!
//! Whoever takes from another image must find it alive, in a signal handler as well: shelves are never freed, only used again.
//!
//! *Locks*: one word a shelf, only ever tried, never while a frame is decoded or read; whoever holds one tries another's once.
//! *Signal safety*: all but [`Shelves::open`]. *Threads*: any.

use crate::futex::Bell;
use crate::scratch::drop_pages;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// Decoded frames of all images of a process take at most this much.
const ALL_BYTES: usize = 64 << 20;
/// More than this many frames of one image are not looked through.
pub const MOST_SLOTS: usize = 32;
/// Shelves that are looked at for something to take away.
const MOST_SHELVES: usize = 256;
/// How often the lock is tried.
pub const TRIES: usize = 1000;

/// Nothing in it.
pub const EMPTY: u8 = 0;
/// Somebody's alone: decoded into, or being given back.
pub const TAKEN: u8 = 1;
/// A frame is in it.
pub const READY: u8 = 2;

/// The number of a frame, who looks at it, and when it was last wanted. `frame`, `used` and `charged` change under the lock
/// only, `readers` rises under the lock only, and a slot that has readers or is taken is nobody's to take.
#[derive(Default)]
pub struct Slot {
    /// Which frame.
    pub frame: AtomicU32,
    /// [`EMPTY`], [`TAKEN`] or [`READY`].
    pub state: AtomicU8,
    /// Who looks at it.
    pub readers: AtomicU32,
    used: AtomicU64,
    /// Does its memory count?
    charged: AtomicBool,
}

/// The slots of one image.
pub struct Shelf {
    all: &'static Shelves,
    next: AtomicPtr<Shelf>,
    open: AtomicBool,
    base: AtomicUsize,
    slot_bytes: AtomicUsize,
    count: AtomicUsize,
    slots: [Slot; MOST_SLOTS],
    locked: AtomicBool,
    /// Rung when a slot is no longer taken.
    pub bell: Bell,
}

/// All shelves, and what they may hold.
pub struct Shelves {
    limit: usize,
    charged: AtomicUsize,
    clock: AtomicU64,
    head: AtomicPtr<Shelf>,
    hand: AtomicPtr<Shelf>,
}

/// Those of this process.
pub static ALL: Shelves = Shelves::new(ALL_BYTES);

impl Shelves {
    /// None yet.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self {
            limit,
            charged: AtomicUsize::new(0),
            clock: AtomicU64::new(0),
            head: AtomicPtr::new(std::ptr::null_mut()),
            hand: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    /// Bytes in use.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.charged.load(Ordering::Relaxed)
    }

    /// A shelf of `count` slots of `slot_bytes` each in the memory at `base`, which has to stay until [`Shelf::close`].
    pub fn open(&'static self, base: usize, slot_bytes: usize, count: usize) -> &'static Shelf {
        let closed = self
            .from(&self.head)
            .find(|shelf| shelf.open.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok());
        let shelf = closed.unwrap_or_else(|| self.push());
        // Nothing is charged to it yet, so nobody looks at these.
        shelf.base.store(base, Ordering::Relaxed);
        shelf.slot_bytes.store(slot_bytes, Ordering::Relaxed);
        shelf.count.store(count.clamp(1, MOST_SLOTS), Ordering::Release);
        shelf
    }

    fn push(&'static self) -> &'static Shelf {
        let shelf: &'static Shelf = Box::leak(Box::new(Shelf {
            all: self,
            next: AtomicPtr::default(),
            open: AtomicBool::new(true),
            base: AtomicUsize::new(0),
            slot_bytes: AtomicUsize::new(0),
            count: AtomicUsize::new(0),
            slots: std::array::from_fn(|_| Slot::default()),
            locked: AtomicBool::new(false),
            bell: Bell::new(),
        }));
        let this = std::ptr::from_ref(shelf).cast_mut();
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            shelf.next.store(head, Ordering::Relaxed);
            match self.head.compare_exchange_weak(head, this, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return shelf,
                Err(now) => head = now,
            }
        }
    }

    /// From that one on to the last.
    fn from(&self, place: &AtomicPtr<Shelf>) -> impl Iterator<Item = &'static Shelf> {
        // SAFETY: what is linked is a leaked box.
        let at = |place: &AtomicPtr<Shelf>| unsafe { place.load(Ordering::Acquire).cast_const().as_ref::<'static>() };
        std::iter::successors(at(place), move |shelf| at(&shelf.next))
    }

    fn charge(&self, bytes: usize) -> bool {
        // A frame larger than all that is for once.
        let more = |now: usize| Some(now + bytes).filter(|sum| now == 0 || *sum <= self.limit);
        self.charged.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// The slot that was not wanted for longest, of those that were looked at; others' turn comes next time.
    fn oldest(&self) -> Option<(&'static Shelf, usize, u64)> {
        let shelves = self.from(&self.hand).chain(self.from(&self.head)).take(MOST_SHELVES);
        let mut last = None;
        let found =
            shelves.inspect(|shelf| last = Some(*shelf)).filter_map(Shelf::oldest).min_by_key(|(.., used)| *used);
        let next = last.map_or(std::ptr::null_mut(), |shelf| shelf.next.load(Ordering::Relaxed));
        self.hand.store(next, Ordering::Release);
        found
    }
}

impl Shelf {
    /// Its slots.
    pub fn slots(&self) -> &[Slot] {
        &self.slots[..self.count.load(Ordering::Acquire)]
    }

    fn slot_bytes(&self) -> usize {
        self.slot_bytes.load(Ordering::Relaxed)
    }

    /// Where a slot is.
    pub fn start_of(&self, slot: usize) -> usize {
        self.base.load(Ordering::Relaxed) + slot * self.slot_bytes()
    }

    /// Under the lock: it is wanted now.
    pub fn touch(&self, slot: usize) {
        let now = self.all.clock.fetch_add(1, Ordering::Relaxed) + 1;
        self.slots[slot].used.store(now, Ordering::Relaxed);
    }

    /// Look at it, or at none of it if the lock cannot be had.
    pub fn locked<R>(&self, look: impl FnOnce() -> R) -> Option<R> {
        for _ in 0..TRIES {
            if self.try_lock() {
                let seen = look();
                self.unlock();
                return Some(seen);
            }
            std::thread::yield_now();
        }
        None
    }

    /// For tests: as if somebody held it.
    #[cfg(test)]
    pub fn hold(&self) -> &AtomicBool {
        &self.locked
    }

    fn try_lock(&self) -> bool {
        self.locked.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn unlock(&self) {
        self.locked.store(false, Ordering::Release);
    }

    fn is_free(slot: &Slot) -> bool {
        // Acquire: the last reader's loads are over before its bytes are written over.
        slot.state.load(Ordering::Acquire) != TAKEN && slot.readers.load(Ordering::Acquire) == 0
    }

    /// The free slot with memory that was not wanted for longest; without the lock: a guess.
    fn oldest(&'static self) -> Option<(&'static Self, usize, u64)> {
        let slots = self.slots().iter().enumerate();
        let free = slots.filter(|(_, slot)| slot.charged.load(Ordering::Relaxed) && Self::is_free(slot));
        free.map(|(number, slot)| (self, number, slot.used.load(Ordering::Relaxed))).min_by_key(|(.., used)| *used)
    }

    /// Under the lock: a slot for `frame`, which is the caller's alone from now on.
    pub fn take(&'static self, frame: u32) -> Option<usize> {
        let number = self.room()?;
        let slot = &self.slots[number];
        slot.state.store(TAKEN, Ordering::Relaxed);
        slot.frame.store(frame, Ordering::Relaxed);
        self.touch(number);
        Some(number)
    }

    fn room(&'static self) -> Option<usize> {
        let mine = self.oldest().map(|(_, slot, _)| slot);
        let is_empty = |slot: &usize| self.slots[*slot].state.load(Ordering::Relaxed) == EMPTY;
        if mine.as_ref().is_some_and(is_empty) {
            return mine;
        }
        let Some(new) = self.slots().iter().position(|slot| !slot.charged.load(Ordering::Relaxed)) else { return mine };
        for _ in 0..MOST_SHELVES {
            if self.all.charge(self.slot_bytes()) {
                self.slots[new].charged.store(true, Ordering::Relaxed);
                return Some(new);
            }
            match self.all.oldest() {
                Some((shelf, slot, _)) if !std::ptr::eq(shelf, self) => shelf.give_back(slot),
                _ => break,
            }
        }
        mine
    }

    /// Another image needs the memory of a slot.
    fn give_back(&self, number: usize) {
        let slot = &self.slots[number];
        if !self.try_lock() {
            return;
        }
        let ours = slot.charged.load(Ordering::Relaxed) && Self::is_free(slot);
        if ours {
            slot.state.store(TAKEN, Ordering::Relaxed);
        }
        self.unlock();
        if ours {
            drop_pages(self.start_of(number), self.slot_bytes());
            self.discharge(slot);
            slot.state.store(EMPTY, Ordering::Release);
            self.bell.ring_all();
        }
    }

    fn discharge(&self, slot: &Slot) {
        if slot.charged.swap(false, Ordering::Relaxed) {
            self.all.charged.fetch_sub(self.slot_bytes(), Ordering::Relaxed);
        }
    }

    /// Nobody uses it any more; true: nor will anybody touch its memory. False: in a forked child, where somebody held it.
    #[must_use]
    pub fn close(&self) -> bool {
        for _ in 0..TRIES {
            let closed = self.locked(|| {
                let taken = self.slots().iter().any(|slot| slot.state.load(Ordering::Acquire) == TAKEN);
                if !taken {
                    self.slots().iter().for_each(|slot| {
                        self.discharge(slot);
                        slot.state.store(EMPTY, Ordering::Relaxed);
                    });
                }
                !taken
            });
            match closed {
                Some(true) => {
                    self.open.store(false, Ordering::Release);
                    return true;
                }
                Some(false) => std::thread::yield_now(), // another image is giving a slot back
                None => return false,
            }
        }
        false
    }
}
