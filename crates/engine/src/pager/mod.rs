//! Regions whose pages another process fills: the pager. Both sides: the owner's, which has the memory and wants it to be
//! right whatever becomes of the other, and the pager's, which serves somebody else's userfaultfd.
//!
//! The owner keeps a copy of the userfaultfd for ever (law 3), the source as bytes, and what it takes to start a pager again.
//! Everything between «the pager is lost» and «its faults are answered» is done by an engine thread, the watcher: whoever waits
//! for a page may hold the interpreter's lock.
//!
//! ```text
//! sealed   what a pager is told in bytes, which it cannot change
//! wire     frames and descriptors over a socket pair
//! spawn    a program started from an engine thread
//! connect  a pager is had: started, or asked for at a path
//! policy   what becomes of a region whose pager died
//! opening  what is particular to a region of a pager
//! state    what changes
//! owner    regions of a pager come and go
//! hang     does it still answer?
//! mourn    every fault is answered by an error: there is no pager any more
//! watch    the watcher: start, frames, death
//! serve    the pager itself
//! ```

pub mod connect;
pub mod mourn;
pub mod opening;
pub mod owner;
pub mod policy;
pub mod serve;
pub mod spawn;
mod hang;
mod sealed;
mod state;
pub mod watch;
pub mod wire;

use crate::identity::close_if_userfaultfd;
use crate::shared;
use std::sync::atomic::{AtomicI32, Ordering};

/// Descriptors that a forked child must not keep, where it has them: userfaultfds, and sockets.
static OURS: [AtomicI32; 64] = [const { AtomicI32::new(-1) }; 64];

/// Remember a descriptor for [`in_child`].
fn remember(fd: i32) {
    let free = |slot: &&AtomicI32| slot.compare_exchange(-1, fd, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    let _ = OURS.iter().find(free);
}

/// It is closed.
fn forget(fd: i32) {
    for slot in &OURS {
        let _ = slot.compare_exchange(fd, -1, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// In a forked child: pagers are its parent's. System calls only.
pub fn in_child(private_table: bool) {
    shared::forget();
    for slot in &OURS {
        let fd = slot.swap(-1, Ordering::AcqRel);
        if fd >= 0 && !private_table {
            close_if_userfaultfd(fd);
            close_if_socket(fd);
        }
    }
}

fn close_if_socket(fd: i32) {
    // SAFETY: fills our structure; closes a number that is known to be a socket, as those remembered here are.
    unsafe {
        let mut about: libc::stat = std::mem::zeroed();
        if libc::fstat(fd, &raw mut about) == 0 && about.st_mode & libc::S_IFMT == libc::S_IFSOCK {
            libc::close(fd);
        }
    }
}
