//! What a message of a userfaultfd says, other than that somebody faulted.
//!
//! *Locks*: none. *Threads*: whoever reads messages: the pump, and the reader of forks, which allocates nothing.

use std::ops::Range;
use std::os::fd::IntoRawFd;
use uffd::{Event, Handle, UffdMsg};

/// What somebody did to a mapping of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// It is gone: munmap, another mapping over it, a mremap that left.
    Unmapped(Range<usize>),
    /// It is elsewhere, its registration with it; its old place is unmapped by a second piece of news, if it is.
    Moved {
        /// Was here.
        from: usize,
        /// Is here.
        to: usize,
        /// Bytes.
        len: usize,
    },
}

/// What it says about a mapping of ours. Not for what [`fork_of`] takes.
pub fn news_of(message: &UffdMsg) -> Option<News> {
    if message.fault().is_some() {
        return None;
    }
    // SAFETY: it was read just now, and each message is decoded once.
    match unsafe { message.decode() } {
        Event::Unmap { start, end } => Some(News::Unmapped(start..end)),
        Event::Remap { from, to, len } => Some(News::Moved { from, to, len }),
        Event::PageFault { .. } | Event::Fork { .. } | Event::Remove { .. } | Event::Unknown(_) => None,
    }
}

/// The child's userfaultfd that a message brings, if it does; from then on it is the caller's.
pub fn fork_of(message: &UffdMsg) -> Option<Handle> {
    if message.fault().is_some() {
        return None;
    }
    // SAFETY: it was read just now; other events own nothing, so that a second decoding of them is fine.
    match unsafe { message.decode() } {
        Event::Fork { fd } => Some(Handle::from_raw(fd.into_raw_fd())),
        _ => None,
    }
}
