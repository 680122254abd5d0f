//! Memory put by for answering faults by errors: an error pattern wants a page, poison may want a page table. Under a limit
//! that is used up, giving a little back makes room for them.
//!
//! *Locks*: none. *Threads*: [`give_back`] from any thread, handlers too; [`fill`] from the keeper.

use crate::mapping;
use std::sync::atomic::{AtomicUsize, Ordering};
use uffd::{CopyMode, Handle, Outcome, RegisterModes};

/// The error pattern: NaN for floats, -1 for integers. Larger than any base page.
#[repr(align(65536))]
struct Pattern([u8; 65536]);
static PATTERN: Pattern = Pattern([0xFF; 65536]);

/// Where the pattern is.
#[must_use]
pub fn pattern() -> usize {
    PATTERN.0.as_ptr() as usize
}

/// How often the reserve can be drawn upon before the keeper fills it again, and pages given back each time.
const STEPS: usize = 64;
const STEP_PAGES: usize = 4;
/// What the language above gets for making an exception of it: otherwise it would sleep, in the middle of that, until somebody
/// raises the limit.
pub const STEPS_OF_AN_EXCEPTION: usize = 8;

static BASE: AtomicUsize = AtomicUsize::new(0);
/// Steps given back; all of them while there is no reserve.
static USED: AtomicUsize = AtomicUsize::new(STEPS);

fn step_bytes() -> usize {
    STEP_PAGES * uffd::page_size()
}

/// Give a step back to the system; false: there is none left.
pub fn give_back() -> bool {
    let step = USED.fetch_add(1, Ordering::AcqRel);
    if step >= STEPS {
        USED.store(STEPS, Ordering::Release);
        return false;
    }
    let start = BASE.load(Ordering::Acquire) + step * step_bytes();
    mapping::advise(start, step_bytes(), libc::MADV_DONTNEED).is_ok()
}

/// Put memory by, or fill up what was used, with the engine's number of the SIGBUS descriptor; where there is none now,
/// later. By UFFDIO_COPY, because it says ENOMEM where a write would wait for the limit to be raised.
pub fn fill(handle: Handle) {
    if USED.load(Ordering::Acquire) == 0 {
        return;
    }
    let bytes = STEPS * step_bytes();
    if BASE.load(Ordering::Acquire) == 0 {
        let Ok(base) = mapping::map_private(bytes, false) else { return };
        // SAFETY: a fresh mapping of our own that nobody touches.
        let registered = unsafe { handle.register(base, bytes, RegisterModes::MISSING) }.is_ok();
        if !registered || mapping::open(base, bytes).is_err() {
            return mapping::unmap(base, bytes);
        }
        BASE.store(base, Ordering::Release);
    }
    // A stack: what was given back last comes back first, as far as there is memory.
    while let step @ 1.. = USED.load(Ordering::Acquire).min(STEPS) {
        let start = BASE.load(Ordering::Acquire) + (step - 1) * step_bytes();
        let there = (0..STEP_PAGES).all(|page| {
            let outcome = handle.copy(start + page * uffd::page_size(), pattern(), uffd::page_size(), CopyMode::NONE);
            matches!(outcome, Outcome::Done | Outcome::Exists)
        });
        if !there || USED.compare_exchange(step, step - 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return;
        }
    }
}

/// Have pages of its own behind something that is written when a page fails. The first write to such a page makes a copy of the
/// library's file, or of a parent's memory: where memory is used up, a fault's reader would sleep over it until somebody raises
/// the limit. Kernels before 5.14 cannot; nothing else depends on it.
pub fn make_own<T>(memory: &'static T) {
    let (start, page) = (std::ptr::from_ref(memory) as usize, uffd::page_size());
    let first = start / page * page;
    let bytes = (start + size_of::<T>()).next_multiple_of(page) - first;
    let _ = mapping::advise(first, bytes, libc::MADV_POPULATE_WRITE);
}

/// Is something missing? Then `fill` should be called again.
#[must_use]
pub fn is_short() -> bool {
    USED.load(Ordering::Acquire) > 0
}

/// In a forked child: the memory is the parent's.
pub fn forget() {
    BASE.store(0, Ordering::Release);
    USED.store(STEPS, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_later_gets_pages_of_its_own_now() {
        static DATA: [std::sync::atomic::AtomicU64; 4096] = [const { std::sync::atomic::AtomicU64::new(7) }; 4096];
        let middle = std::ptr::from_ref(&DATA[2048]) as usize;
        assert_eq!(DATA[2048].load(Ordering::Relaxed), 7);
        assert!(!mapping::is_own(middle), "it is the file's as long as nobody writes there");
        make_own(&DATA);
        assert!(mapping::is_own(middle));
        assert_eq!(DATA[2048].load(Ordering::Relaxed), 7);
    }
}
