//! Address to region, without a lock and without growing: two loads, whatever the number of regions.
//!
//! Every region starts on a 2 MiB boundary of its own, so a 2 MiB chunk of address space belongs to one region at most.
//! The table maps chunks to *slots*; slots are never freed, only used again, so a reader may bump the user count of a
//! slot whose region has just gone and find out afterwards.
//!
//! *Locks*: `free` and growing leaves, on insert and remove only. *Threads*: `pin` from anywhere, handlers too.

use std::alloc::Layout;
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Address space one table entry stands for, and the alignment of regions.
pub const CHUNK: usize = 2 << 20;
const LEAF_ENTRIES: usize = 512;
/// 2^18 leaves of 1 GiB: 48 bits of user addresses, more than mmap gives without being asked.
const LEAVES: usize = 1 << 18;
/// Slots come in blocks of 256; 4096 blocks: a million regions.
const BLOCK: usize = 256;
const BLOCKS: usize = 4096;

type Leaf<T> = [AtomicPtr<Slot<T>>; LEAF_ENTRIES];

/// A place for one region. `users` counts pins; `value` is null while free.
pub struct Slot<T> {
    users: AtomicU32,
    value: AtomicPtr<T>,
}

/// A region that cannot go away while this lives.
pub struct Pin<T: 'static> {
    slot: &'static Slot<T>,
    value: &'static T,
}

impl<T> std::ops::Deref for Pin<T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.value
    }
}

impl<T> Clone for Pin<T> {
    fn clone(&self) -> Self {
        self.slot.users.fetch_add(1, Ordering::SeqCst);
        Self { slot: self.slot, value: self.value }
    }
}

impl<T> Drop for Pin<T> {
    fn drop(&mut self) {
        self.slot.users.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<T> Slot<T> {
    /// The value, if there is one, kept alive by the pin.
    pub fn pin(&'static self) -> Option<Pin<T>> {
        self.users.fetch_add(1, Ordering::SeqCst);
        let value = self.value.load(Ordering::SeqCst);
        if value.is_null() {
            self.users.fetch_sub(1, Ordering::SeqCst);
            return None;
        }
        // SAFETY: `users` was raised before `value` was seen non-null, and `retire` frees the value only after it nulled
        // the pointer and then saw `users` at 0 (both sequentially consistent), so it lives as long as this pin.
        Some(Pin { slot: self, value: unsafe { &*value } })
    }
}

/// A value taken out of the table that pins may still be using.
pub struct Retired<T: 'static> {
    slot: &'static Slot<T>,
    value: *mut T,
}

// SAFETY: the pointer is the owned box of a value that is itself Send and Sync (regions are shared by all threads).
unsafe impl<T: Send + Sync> Send for Retired<T> {}

/// The table. Meant to live for the life of the process.
pub struct AddressTable<T: 'static> {
    leaves: &'static [AtomicPtr<Leaf<T>>],
    blocks: Box<[AtomicPtr<[Slot<T>; BLOCK]>]>,
    used: AtomicUsize,
    free: Mutex<Vec<&'static Slot<T>>>,
}

fn leak_zeroed<U>(count: usize) -> *mut U {
    let layout = Layout::array::<U>(count).expect("the sizes are constants");
    // SAFETY: the layout has a size above zero.
    let memory = unsafe { std::alloc::alloc_zeroed(layout) };
    if memory.is_null() {
        std::alloc::handle_alloc_error(layout);
    }
    memory.cast()
}

impl<T: Send + Sync> AddressTable<T> {
    /// An empty table: 2 MiB of untouched zero pages.
    #[must_use]
    pub fn new() -> Self {
        // SAFETY: zeroed memory is a valid array of null AtomicPtr, and it is never freed.
        let leaves = unsafe { std::slice::from_raw_parts(leak_zeroed::<AtomicPtr<Leaf<T>>>(LEAVES), LEAVES) };
        let blocks = (0..BLOCKS).map(|_| AtomicPtr::default()).collect();
        Self { leaves, blocks, used: AtomicUsize::new(0), free: Mutex::new(Vec::new()) }
    }

    /// The region whose chunk holds `address`, pinned. The caller checks that the address is inside it.
    #[must_use]
    pub fn pin(&self, address: usize) -> Option<Pin<T>> {
        let chunk = address / CHUNK;
        let leaf = self.leaves.get(chunk / LEAF_ENTRIES)?.load(Ordering::Acquire);
        if leaf.is_null() {
            return None;
        }
        // SAFETY: leaves are never freed.
        let slot = unsafe { &(&*leaf)[chunk % LEAF_ENTRIES] }.load(Ordering::Acquire);
        // SAFETY: slots are never freed.
        unsafe { slot.as_ref() }?.pin()
    }

    /// Put a value under the chunks of `base .. base + bytes`; with 0, 0 under none: it is found by `for_each` only.
    ///
    /// # Panics
    /// Never: the number of slots is bounded, and running out aborts as running out of memory does.
    pub fn insert(&self, base: usize, bytes: usize, value: Box<T>) -> Pin<T> {
        let mut free = self.free.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let slot = free.pop().unwrap_or_else(|| self.grow(&mut free));
        slot.value.store(Box::into_raw(value), Ordering::SeqCst);
        self.point(base, bytes, std::ptr::from_ref(slot).cast_mut());
        drop(free);
        slot.pin().expect("the value was stored a moment ago and only its owner retires it")
    }

    fn grow(&self, free: &mut Vec<&'static Slot<T>>) -> &'static Slot<T> {
        let index = self.used.load(Ordering::Acquire);
        if index >= BLOCKS {
            std::alloc::handle_alloc_error(Layout::new::<[Slot<T>; BLOCK]>());
        }
        let block = leak_zeroed::<[Slot<T>; BLOCK]>(1);
        self.blocks[index].store(block, Ordering::Release);
        self.used.store(index + 1, Ordering::Release);
        // SAFETY: zeroed memory is a valid block of free slots (count 0, null value), and it is never freed.
        let slots = unsafe { &*block };
        free.extend(&slots[1..]);
        &slots[0]
    }

    /// Called with `free` locked, which serialises changes.
    fn point(&self, base: usize, bytes: usize, slot: *mut Slot<T>) {
        for chunk in base / CHUNK..(base + bytes).div_ceil(CHUNK) {
            let Some(entry) = self.leaves.get(chunk / LEAF_ENTRIES) else { continue };
            let mut leaf = entry.load(Ordering::Acquire);
            if leaf.is_null() {
                leaf = leak_zeroed::<Leaf<T>>(1);
                entry.store(leaf, Ordering::Release);
            }
            // SAFETY: leaves are never freed; zeroed memory is a valid leaf.
            unsafe { &(&*leaf)[chunk % LEAF_ENTRIES] }.store(slot, Ordering::Release);
        }
    }

    /// Take the value of `pin` out: no new pins. The caller's pin is given up.
    pub fn retire(&self, pin: Pin<T>, base: usize, bytes: usize) -> Retired<T> {
        let slot = pin.slot;
        let guard = self.free.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.point(base, bytes, std::ptr::null_mut());
        drop(guard);
        let value = slot.value.swap(std::ptr::null_mut(), Ordering::SeqCst);
        Retired { slot, value }
    }

    /// Wait until nobody uses the retired value, at most `limit`; then give it back to be dropped.
    ///
    /// # Errors
    /// The retired value itself, when it is still in use after `limit`.
    pub fn reclaim(&self, retired: Retired<T>, limit: Duration) -> Result<Box<T>, Retired<T>> {
        let start = Instant::now();
        let mut nap = Duration::from_micros(20);
        while retired.slot.users.load(Ordering::SeqCst) != 0 {
            if start.elapsed() >= limit {
                return Err(retired);
            }
            std::thread::sleep(nap);
            nap = (nap * 2).min(Duration::from_millis(5));
        }
        // SAFETY: the pointer came from Box::into_raw in `insert`, was taken out exactly once, and nobody pins it.
        let value = unsafe { Box::from_raw(retired.value) };
        self.free.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(retired.slot);
        Ok(value)
    }

    /// Visit every live value. Takes no lock: a forked child, and the keeper, may call it.
    pub fn for_each(&self, mut visit: impl FnMut(Pin<T>)) {
        for block in &self.blocks[..self.used.load(Ordering::Acquire)] {
            // SAFETY: blocks below `used` are set and never freed.
            for slot in unsafe { &*block.load(Ordering::Acquire) } {
                if slot.value.load(Ordering::Relaxed).is_null() {
                    continue;
                }
                if let Some(pin) = slot.pin() {
                    visit(pin);
                }
            }
        }
    }
}

impl<T: Send + Sync> Default for AddressTable<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_find_the_value_of_their_chunk_only() {
        let table = AddressTable::<u32>::new();
        let pin = table.insert(4 * CHUNK, 3 * CHUNK + 1, Box::new(7));
        assert_eq!(*table.pin(4 * CHUNK).unwrap(), 7);
        assert_eq!(*table.pin(7 * CHUNK + 5).unwrap(), 7);
        assert!(table.pin(8 * CHUNK).is_none());
        assert!(table.pin(3 * CHUNK).is_none());
        assert!(table.pin(usize::MAX).is_none());
        let held = table.pin(4 * CHUNK).unwrap();
        let retired = table.retire(pin, 4 * CHUNK, 3 * CHUNK + 1);
        assert!(table.pin(4 * CHUNK).is_none());
        let retired = table.reclaim(retired, Duration::from_millis(5)).unwrap_err();
        drop(held);
        assert_eq!(*table.reclaim(retired, Duration::from_secs(1)).ok().unwrap(), 7);
    }

    /// In the upper half of every value; freed memory does not hold it for long.
    const LIVE: usize = 0x5EED;

    #[test]
    fn many_threads_pin_while_regions_come_and_go() {
        let table = AddressTable::<usize>::new();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        for chunk in 1..8 {
                            if let Some(pin) = table.pin(chunk * CHUNK) {
                                // The slot may be another region's by now, which is why callers look; but it is one.
                                assert_eq!(*pin >> 32, LIVE);
                            }
                        }
                    }
                });
            }
            for round in 0..2000 {
                for chunk in 1..8 {
                    let pin = table.insert(chunk * CHUNK, 1, Box::new((LIVE << 32) | (round * 8 + chunk)));
                    let retired = table.retire(pin, chunk * CHUNK, 1);
                    let Ok(_) = table.reclaim(retired, Duration::from_secs(5)) else { panic!("still pinned") };
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
