//! A thread that keeps the language's lock touches a hole, and who is to fill it needs that lock. So the thread is sent a
//! signal while it waits in the kernel; in the handler the language above gives up its lock, touches the page itself, which
//! waits, and takes the lock back. The touch that was interrupted then succeeds.
//!
//! If the page is taken away again before that, the touch asks once more, with the lock held: so whoever waits outside of its
//! handler is sent the signal each time, and who waits inside is not. Every handler that runs where its thread waited therefore
//! touches, with the lock or without: one that came back at once would be asked again at once, without end.
//!
//! A thread that had gone on when the signal came is anywhere, in the middle of an allocation of the language's say, and must not
//! give up the lock there.
//!
//! *Locks*: none. *Threads*: the pump sends; the handler runs in the thread that waits.

use crate::directed::{self, Interrupted, Place, Receives};
use crate::flagged::view::{self, Armed};
use crate::language;
use crate::nest;
use crate::threads::thread_id;
use std::sync::atomic::{AtomicI32, Ordering};

/// Threads that wait in their handler. One that finds no room is asked more often than it need be.
const ROOM: usize = 256;
static WAITING: [AtomicI32; ROOM] = [const { AtomicI32::new(0) }; ROOM];

/// Does this thread wait in its handler, the lock given up?
#[must_use]
pub fn is_giving_way(thread: i32) -> bool {
    thread != 0 && slots(thread).any(|slot| slot.load(Ordering::SeqCst) == thread)
}

/// A few, so that a look costs little.
fn slots(thread: i32) -> impl Iterator<Item = &'static AtomicI32> {
    (0..8).map(move |step| &WAITING[(thread as usize).wrapping_add(step) % ROOM])
}

/// Get ready to ask. Where no signal is free nobody can be asked.
pub fn install() {
    directed::install(Receives::Mman, receive);
}

/// Ask `thread`, which waits at `place` for the page of `address`, to give way.
pub fn ask(thread: i32, address: usize, place: Place) {
    directed::send(thread, address, place);
}

fn receive(address: usize, is_there: bool, _interrupted: &Interrupted) -> bool {
    if !is_there {
        return true;
    }
    if nest::is_running(thread_id()) && !is_descriptors(address) {
        return true;
    }
    let free = |slot: &&AtomicI32| slot.compare_exchange(0, thread_id(), Ordering::SeqCst, Ordering::Relaxed).is_ok();
    let slot = slots(thread_id()).find(free);
    language::without_lock(|| touch(address));
    if let Some(slot) = slot {
        slot.store(0, Ordering::SeqCst);
    }
    true
}

/// A resolver that runs in this thread was called for a touch. If that is what the signal was for, the wait is over, and a
/// touch would call the resolver for what it is about to do.
fn is_descriptors(address: usize) -> bool {
    view::find(address).is_some_and(|entry| matches!(entry.armed, Armed::Descriptor))
}

/// Wait for the page as the interrupted instruction does: a fault of user code. Not if it is no longer mapped.
fn touch(address: usize) {
    let page = address / uffd::page_size() * uffd::page_size();
    let mut there = 0u8;
    // SAFETY: mincore answers ENOMEM for what is not mapped; the load is of mapped memory, whose fault the thread waited for.
    unsafe {
        if libc::mincore(page as *mut libc::c_void, 1, &raw mut there) == 0 {
            std::ptr::read_volatile(address as *const u8);
        }
    }
}
