//! The ground floor: Linux userfaultfd(2) as it is, and nothing above it.
//!
//! This crate knows the numbers, the structures and the meaning of each errno.
//! It holds no policy, starts no thread and takes no lock; its only dependency on the world is libc.
//! Every operation lives on [`Handle`], which is a copyable descriptor number:
//! signal handlers and other threads issue operations while somebody else ([`Userfaultfd`]) owns the descriptor.
//!
//! *Locks*: none. *Threads*: everything is safe from any thread.
//! *Blocks on*: only [`Handle::read_messages`] on a blocking descriptor, and what each function says.

pub mod abi;
pub mod capabilities;
mod errno;
mod events;
mod fd;
mod fdinfo;
mod features;
mod flags;
mod ops;
mod pagemap;
mod vma;

pub use abi::UffdMsg;
pub use capabilities::{Capabilities, HugePool, Limit, Trial};
pub use errno::Errno;
pub use events::{Event, Fault, FaultFlags};
pub use fd::{DEVICE, Handle, OpenError, OpenOptions, Userfaultfd, Via, supported_features};
pub use fdinfo::FdInfo;
pub use features::{Features, Ioctls, RegisterModes};
pub use ops::{ContinueMode, CopyMode, MoveMode, Outcome, ProtectMode, RwProtectMode, Wake};
pub use pagemap::{Categories, PagemapRegion, PagemapScan, ScanFlags, ScanQuery, Scanned};
pub use vma::{Details, Maps, Vma, VmaKind};

use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes in one base page of this machine.
///
/// Asked of the system once and kept; after the first call it is a plain load, so a signal handler may use it.
#[inline]
pub fn page_size() -> usize {
    static CACHED: AtomicUsize = AtomicUsize::new(0);
    match CACHED.load(Ordering::Relaxed) {
        0 => {
            // SAFETY: sysconf with a valid name reads a constant of the process and touches no memory of ours.
            let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
            CACHED.store(size, Ordering::Relaxed);
            size
        }
        size => size,
    }
}
