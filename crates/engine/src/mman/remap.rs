//! `remap_anon_pages`, by UFFDIO_MOVE.
//!
//! *Locks*: none; it is inside the gate for each operation. *Threads*: any, resolvers in signal handlers too.

use crate::flagged::gate;
use crate::flagged::view::{self, Entry, View};
use crate::mapping::is_resident;
use crate::mman::Mman;
use crate::mman::retries::Retries;
use crate::nest;
use crate::region::Handles;
use std::ops::Range;
use std::os::fd::AsRawFd;
use uffd::{Errno, Handle, Maps, MoveMode, Outcome, RegisterModes};

/// Source holes are skipped instead of being an error.
pub const RAP_ALLOW_SRC_HOLES: u64 = 1;
/// Attempts at closing the gate.
const TRIES: usize = 10_000;

/// Move `len` bytes of pages from `src` to the hole at `dst`; nobody is woken.
///
/// Answers how many bytes were moved, less than `len` when an error came after some: calling again for the rest tells which.
///
/// # Errors
/// EINVAL, EEXIST, ENOENT, EBUSY, EFAULT, ENOMEM as the proposal says (docs: the 2014 proposal, as it runs today).
pub fn remap_anon_pages(mman: &Mman, dst: usize, src: usize, len: usize, flags: u64) -> Result<usize, Errno> {
    let page = uffd::page_size();
    let unaligned = [dst, src, len].iter().any(|value| !value.is_multiple_of(page));
    let wraps = dst.checked_add(len).is_none() || src.checked_add(len).is_none();
    if flags & !RAP_ALLOW_SRC_HOLES != 0 || unaligned || wraps || len == 0 {
        return Err(Errno(libc::EINVAL));
    }
    let (to, from) = (dst..dst + len, src..src + len);
    let (two_owners, patterns) =
        view::read(|view| (is_of_two_owners(view, &to, &from), view.within(&to).iter().any(shows_pattern)));
    if two_owners && {
        mman.note_news(); // perhaps of a mapping that is gone
        view::read(|view| is_of_two_owners(view, &to, &from))
    } {
        return Err(Errno(libc::EINVAL));
    }
    if patterns {
        clear_patterns(&to);
    }
    let mode =
        MoveMode::DONTWAKE | if flags & RAP_ALLOW_SRC_HOLES != 0 { MoveMode::ALLOW_SRC_HOLES } else { MoveMode::NONE };
    let moved = move_all(mman, dst, src, len, mode);
    match moved {
        Ok(bytes) => nest::note_arrival(&(dst..dst + bytes)),
        Err(Errno(libc::EEXIST)) => nest::note_arrival(&(dst..dst + page)), // by another's doing
        Err(_) => {}
    }
    moved
}

fn move_all(mman: &Mman, dst: usize, src: usize, len: usize, mode: MoveMode) -> Result<usize, Errno> {
    let mut done = 0;
    let (mut retries, mut looked, mut made_exclusive) = (Retries::default(), false, usize::MAX);
    while done < len {
        match step(mman, dst + done, src + done, len - done, mode) {
            Outcome::Done => return Ok(len),
            Outcome::Partial(bytes) => (done, retries) = (done + bytes, Retries::default()),
            Outcome::Retry if retries.again() => {}
            Outcome::Failed(Errno(libc::EBUSY)) if made_exclusive != done && make_exclusive(src + done) => {
                made_exclusive = done;
            }
            Outcome::Exists if lift(dst + done) => {}
            // Perhaps of a mapping that was flagged and is gone.
            Outcome::Failed(Errno(libc::EINVAL | libc::ENOENT)) if !looked => {
                looked = true;
                mman.note_news();
            }
            outcome if done == 0 => return Err(explain(outcome, dst, src, len)),
            _ => return Ok(done),
        }
    }
    Ok(done)
}

fn shows_pattern(entry: &Entry) -> bool {
    entry.resolver.region.shows_pattern()
}

/// A page that shows the error pattern, or showed it and was dropped by the caller, is a hole to be filled; whoever was to empty it
/// must not do so afterwards.
fn clear_patterns(range: &Range<usize>) {
    view::read(|view| {
        for entry in view.within(range).iter().filter(|entry| shows_pattern(entry)) {
            let region = &entry.resolver.region;
            let first = entry.range.start.max(range.start);
            region.clear_patterns(region.page_of(first)..region.page_of(entry.range.end.min(range.end) - 1) + 1);
        }
    });
}

/// Does either end belong to two descriptors? Two mappings then, though the kernel knows memory without the flag as one.
fn is_of_two_owners(view: &View, dst: &Range<usize>, src: &Range<usize>) -> bool {
    let owner = |entry: &Entry| entry.descriptor.map(|handles| handles.engine.as_raw_fd());
    [dst, src].into_iter().any(|range| view.within(range).windows(2).any(|two| owner(&two[0]) != owner(&two[1])))
}

/// One UFFDIO_MOVE, through the descriptor that the destination is registered with.
fn step(mman: &Mman, dst: usize, src: usize, len: usize, mode: MoveMode) -> Outcome {
    let _inside = gate::enter();
    let Some(handles) = view::read(|view| view.find(dst).and_then(|entry| owner(mman, entry))) else {
        return step_unregistered(mman, dst, src, len, mode);
    };
    // SAFETY: the caller says that the pages at `src` may go.
    let through = |handle: Handle| unsafe { handle.move_pages(dst, src, len, mode) };
    loop {
        match through(handles.application) {
            Outcome::Failed(Errno(libc::EBADF)) if handles.restore() => {}
            // Perhaps another file's number by now; of a userfaultfd, the kernel says that the range is not its own.
            Outcome::Failed(errno @ Errno(libc::EINVAL | libc::ENOTTY)) => {
                let copy = handles.replacement();
                return copy.map_or(Outcome::Failed(errno), |copy| through(Handle::from_raw(copy.as_raw_fd())));
            }
            outcome => return outcome,
        }
    }
}

fn owner(mman: &Mman, entry: &Entry) -> Option<Handles> {
    match entry.armed {
        view::Armed::Signal => Some(mman.flags),
        view::Armed::Descriptor => entry.descriptor,
        view::Armed::No => entry.descriptor.map(|_| mman.flags),
    }
}

/// Today's kernel wants a registered destination, that of 2014 did not care: it is registered for the moment, with a
/// userfaultfd that nobody reads. Who touches a hole there meanwhile waits until that is over, and finds zeros as before.
/// Registering splits a mapping: where the two ends overlap they are registered as one, for each must lie in one mapping.
fn step_unregistered(mman: &Mman, dst: usize, src: usize, len: usize, mode: MoveMode) -> Outcome {
    let overlap = dst < src + len && src < dst + len;
    let whole = if overlap { dst.min(src)..dst.max(src) + len } else { dst..dst + len };
    mman.with_bridge(|bridge| {
        // SAFETY: what a registration changes is undone below, before anybody else learns of it; the caller says that the
        // pages at `src` may go.
        unsafe {
            bridge.register(whole.start, whole.len(), RegisterModes::MISSING)?;
            let outcome = bridge.move_pages(dst, src, len, mode);
            let _ = bridge.unregister(whole.start, whole.len());
            Ok(outcome)
        }
    })
    .unwrap_or_else(Outcome::Failed)
}

/// A page that was shared with a forked child which is gone keeps its mark: kernels since 6.8 refuse to move it, that of
/// 2014 counted. Writing it, with its own bytes, takes the mark away. Never for a page that is still shared: that would be a
/// hidden copy, which the proposal refuses on purpose.
fn make_exclusive(address: usize) -> bool {
    const PRESENT: u64 = 1 << 63;
    const EXCLUSIVELY_MAPPED: u64 = 1 << 56;
    let page = uffd::page_size();
    // No other move of ours until it is done: a page that one has taken would come back as zeros.
    let Some(_closed) = close_gate() else { return false };
    let Some(entry) = pagemap_entry(address) else { return false };
    if entry & PRESENT == 0 || entry & EXCLUSIVELY_MAPPED == 0 {
        return false;
    }
    // SAFETY: makes the page writable as a write of its own bytes would; nothing changes in it.
    unsafe { libc::madvise(address as *mut libc::c_void, page, libc::MADV_POPULATE_WRITE) == 0 }
}

/// The gate, closed; `None`: others are at it all the time.
fn close_gate() -> Option<gate::Closed> {
    (0..TRIES).find_map(|_| {
        let closed = gate::try_close();
        if closed.is_none() {
            std::thread::yield_now();
        }
        closed
    })
}

pub(super) fn pagemap_entry(address: usize) -> Option<u64> {
    use std::os::unix::fs::FileExt;
    let mut entry = [0u8; 8];
    let at = (address / uffd::page_size() * entry.len()) as u64;
    std::fs::File::open("/proc/self/pagemap").and_then(|file| file.read_exact_at(&mut entry, at)).ok()?;
    Some(u64::from_ne_bytes(entry))
}

/// A page that shows the error pattern, or was poisoned, is a hole to the caller.
fn lift(address: usize) -> bool {
    let _inside = gate::enter();
    let Some(entry) = view::find(address) else { return false };
    let region = &entry.resolver.region;
    let page = region.page_of(address);
    region.take_pattern(page, || region.hide(page)) || (!is_resident(address) && region.lift_poison(page))
}

/// What 2014 called the error.
fn explain(outcome: Outcome, dst: usize, src: usize, len: usize) -> Errno {
    if !in_one_mapping(dst, len) || !in_one_mapping(src, len) {
        return Errno(libc::EINVAL);
    }
    outcome.errno().unwrap_or(Errno(libc::EINVAL))
}

fn in_one_mapping(start: usize, len: usize) -> bool {
    // Where /proc cannot be read (EMFILE) the error that there is stays.
    Maps::open().and_then(|maps| maps.at(start)).map_or(true, |vma| vma.is_some_and(|vma| vma.end >= start + len))
}
