//! Changing who gets the faults of a range, without a moment at which a hole reads as zeros and without taking away a page
//! that is there.
//!
//! The kernel has no such operation: a range has to be unregistered here before it is registered there. A large hole is
//! replaced: a twin of the mapping is registered with the new owner and moved over the old one, at no cost per page. Holes
//! among pages are poisoned, then the registration changes, then exactly what was poisoned becomes a hole again; a touch
//! in between gets a SIGBUS and waits at the gate, a system call may get one EFAULT (counted).
//!
//! *Locks*: none; the caller has closed the gate. *Threads*: the root thread. *Blocks on*: the pump, which reads the events
//! that moving a mapping sends.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use uffd::{Categories, Errno, Handle, Maps, Outcome, PagemapRegion, PagemapScan, RegisterModes, ScanQuery, Wake};

/// Holes of so many pages are replaced, smaller ones poisoned: about where two moves of a mapping cost the same.
const REPLACE_FROM_PAGES: usize = 256;

/// A hole of more than this is not poisoned page by page.
const MOST_POISONED: usize = 1 << 32;

/// Switches that had to poison holes: each may have cost a system call one EFAULT.
static POISONED_SWITCHES: AtomicU64 = AtomicU64::new(0);

/// How many switches poisoned holes so far.
#[must_use]
pub fn poisoned_switches() -> u64 {
    POISONED_SWITCHES.load(Ordering::Relaxed)
}

/// Ranges of one address space that move from one userfaultfd to another.
pub struct Switch<'a> {
    /// Had the faults.
    pub from: Handle,
    /// Gets them.
    pub to: Handle,
    /// This process's mappings.
    pub maps: &'a Maps,
    /// Holes that were replaced, and where their twins were: the events of it are ours, not the caller's.
    pub moves: RefCell<Vec<(Range<usize>, usize)>>,
}

impl Switch<'_> {
    /// Switch `range`, all of it registered with `from`.
    ///
    /// # Errors
    /// The kernel's. Parts may have been switched by then.
    pub fn run(&self, range: Range<usize>) -> Result<(), Errno> {
        let mut at = range.start;
        while at < range.end {
            let vma = self.maps.at_or_above(at)?.filter(|vma| vma.start < range.end);
            let Some(vma) = vma else { break };
            let piece = vma.start.max(at)..vma.end.min(range.end);
            at = piece.end;
            self.mapping(piece)?;
        }
        // Those who wait ask again, of the new owner.
        let _ = self.from.wake(range.start, range.len());
        Ok(())
    }

    /// One mapping: large holes are replaced, what lies between them changes its registration.
    fn mapping(&self, piece: Range<usize>) -> Result<(), Errno> {
        let pagemap = PagemapScan::open_self()?;
        let there = present(&pagemap, piece.clone())?;
        let mut rest = piece.start;
        for hole in holes(piece.clone(), &there) {
            if hole.len() >= REPLACE_FROM_PAGES * uffd::page_size() && self.replace(&pagemap, hole.clone()) {
                self.register_again(rest..hole.start, &there)?;
                rest = hole.end;
            }
        }
        self.register_again(rest..piece.end, &there)
    }

    /// Put a twin of an empty range over it. False: the kernel did not, and nothing has changed.
    fn replace(&self, pagemap: &PagemapScan, hole: Range<usize>) -> bool {
        let Ok(twin) = move_mapping(hole.clone(), None) else { return false };
        self.moves.borrow_mut().push((hole.clone(), twin));
        let twin = twin..twin + hole.len();
        let empty = present(pagemap, twin.clone()).is_ok_and(|there| there.is_empty());
        // SAFETY: the twin is ours alone; nobody knows its address.
        let registered = empty
            && unsafe { self.from.unregister(twin.start, twin.len()) }.is_ok()
            && unsafe { self.to.register(twin.start, twin.len(), RegisterModes::MISSING) }.is_ok();
        if !registered {
            // Somebody's page came along, or the new owner refuses: back with it, to the old owner.
            // SAFETY: as above. Registering again what is registered still is no change.
            let _ = unsafe { self.from.register(twin.start, twin.len(), RegisterModes::MISSING) };
            let _ = move_mapping(twin, Some(hole.start));
            return false;
        }
        move_mapping(twin.clone(), Some(hole.start))
            .inspect_err(|_| crate::mapping::unmap(twin.start, twin.len()))
            .is_ok()
    }

    /// Change the registration of a range with pages in it.
    fn register_again(&self, range: Range<usize>, there: &[PagemapRegion]) -> Result<(), Errno> {
        if range.is_empty() {
            return Ok(());
        }
        let inside =
            |region: &&PagemapRegion| (region.end as usize) > range.start && (region.start as usize) < range.end;
        let there: Vec<_> = there.iter().filter(inside).copied().collect();
        let mut poisoned = Vec::new();
        for hole in holes(range.clone(), &there) {
            self.poison(hole, &mut poisoned)?;
        }
        if !poisoned.is_empty() {
            POISONED_SWITCHES.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller named this memory, and every hole of it is poisoned: nothing reads as zeros meanwhile.
        let moved = unsafe {
            self.from.unregister(range.start, range.len()).and_then(|()| {
                self.to.register(range.start, range.len(), RegisterModes::MISSING).map(|_| ()).inspect_err(|_| {
                    // Back to the old owner: better than to nobody.
                    let _ = self.from.register(range.start, range.len(), RegisterModes::MISSING);
                })
            })
        };
        for hole in poisoned {
            lift(hole);
        }
        moved
    }

    fn poison(&self, hole: Range<usize>, poisoned: &mut Vec<Range<usize>>) -> Result<(), Errno> {
        let (mut at, page) = (hole.start, uffd::page_size());
        if hole.len() > MOST_POISONED {
            return Err(Errno(libc::ENOMEM)); // it could not be replaced, and would cost eight bytes a page
        }
        while at < hole.end {
            let done = match self.from.poison(at, hole.end - at, Wake::No) {
                Outcome::Done => hole.end - at,
                Outcome::Partial(bytes) => bytes,
                Outcome::Exists => {
                    at += page;
                    continue;
                }
                Outcome::Retry => {
                    std::thread::yield_now(); // the pump is about to read an event
                    continue;
                }
                outcome => return outcome.errno().map_or(Ok(()), Err),
            };
            poisoned.push(at..at + done);
            at += done;
        }
        Ok(())
    }
}

/// Make a hole of what we poisoned.
fn lift(hole: Range<usize>) {
    // SAFETY: the range holds poison markers that were put there a moment ago, and nothing else. The "locked" form also
    // works on memory that is mlocked.
    unsafe {
        if libc::madvise(hole.start as *mut libc::c_void, hole.len(), libc::MADV_DONTNEED_LOCKED) != 0 {
            libc::madvise(hole.start as *mut libc::c_void, hole.len(), libc::MADV_DONTNEED);
        }
    }
}

/// Move a mapping with all its attributes over `onto`; or, without that, to a place the kernel likes, leaving an empty twin
/// behind (MREMAP_DONTUNMAP). Answers where it is now.
fn move_mapping(range: Range<usize>, onto: Option<usize>) -> Result<usize, Errno> {
    let length = range.len();
    let flags = libc::MREMAP_MAYMOVE | if onto.is_some() { libc::MREMAP_FIXED } else { libc::MREMAP_DONTUNMAP };
    let target = onto.unwrap_or(0) as *mut libc::c_void;
    // SAFETY: the caller says that nothing is lost: what is moved is a twin, or empty, and what it replaces is empty.
    let moved = unsafe { libc::mremap(range.start as *mut libc::c_void, length, length, flags, target) };
    if moved == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(moved as usize) }
}

/// What is there: pages, swapped-out pages, markers.
fn present(pagemap: &PagemapScan, range: Range<usize>) -> Result<Vec<PagemapRegion>, Errno> {
    let any = Categories::PRESENT | Categories::SWAPPED;
    let query = ScanQuery { any_of: any, report: Categories::NONE, ..ScanQuery::default() };
    pagemap.collect(range, &query)
}

/// What lies between.
fn holes(range: Range<usize>, there: &[PagemapRegion]) -> Vec<Range<usize>> {
    let mut holes = Vec::new();
    let mut at = range.start;
    for region in there {
        let start = (region.start as usize).max(range.start);
        if at < start {
            holes.push(at..start);
        }
        at = at.max(region.end as usize);
    }
    if at < range.end {
        holes.push(at..range.end);
    }
    holes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_what_is_not_there() {
        let region = |start, end| PagemapRegion { start, end, categories: 0 };
        assert_eq!(holes(0..10, &[]), vec![0..10; 1]);
        assert_eq!(holes(0..10, &[region(0, 3), region(5, 10)]), vec![3..5; 1]);
        assert_eq!(holes(2..10, &[region(0, 3), region(4, 6)]), [3..4, 6..10]);
    }
}
