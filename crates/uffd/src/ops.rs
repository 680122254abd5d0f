//! The operations: registering ranges, and resolving the faults in them.
//!
//! *Locks*: none. *Threads*: any, signal handlers included (one system call each, no allocation).
//! *Blocks on*: nothing but the kernel's own locks on the address space.
//!
//! Rules that hold for every resolving operation:
//! * It wakes the threads that wait for the pages it did, unless told not to. **On any outcome but `Done` or `Partial`
//!   nobody is woken**: follow [`Outcome::Exists`] by [`Handle::wake`], or a waiter may sleep for ever.
//! * `dst` must lie in one mapping; it is not checked that the mapping belongs to *this* descriptor (only MOVE checks),
//!   and resolving through the wrong one succeeds but wakes nobody.
//! * While an event (fork, remap, remove, unmap) is unread, each of them answers [`Outcome::Retry`].

use crate::abi::*;
use crate::flags::bit_set;
use crate::{Errno, Handle, Ioctls, RegisterModes};

bit_set!(
    /// How [`Handle::copy`] copies.
    CopyMode {
        /// Do not wake the waiters.
        DONTWAKE = 1,
        /// Leave the pages write-protected; the range must be registered for it.
        WP = 2,
    }
);

bit_set!(
    /// How [`Handle::continue_`] maps.
    ContinueMode {
        /// Do not wake the waiters.
        DONTWAKE = 1,
        /// Leave the pages write-protected (Linux 6.4).
        WP = 2,
    }
);

bit_set!(
    /// How [`Handle::move_pages`] moves.
    MoveMode {
        /// Do not wake the waiters.
        DONTWAKE = 1,
        /// Skip absent source pages, counting them as done, instead of failing.
        ALLOW_SRC_HOLES = 2,
    }
);

bit_set!(
    /// What [`Handle::write_protect`] does; `NONE` lifts the protection and wakes.
    ProtectMode {
        /// Protect.
        WP = 1,
        /// Do not wake the waiters; only for lifting.
        DONTWAKE = 2,
    }
);

impl ProtectMode {
    /// Protect against writes.
    pub const PROTECT: Self = Self::WP;
    /// Lift the protection and wake the writers.
    pub const UNPROTECT: Self = Self::NONE;
}

bit_set!(
    /// What [`Handle::rw_protect`] does; `NONE` lifts the protection and wakes (Linux 7.2).
    RwProtectMode {
        /// Protect.
        RWP = 1,
        /// Do not wake the waiters; only for lifting.
        DONTWAKE = 2,
    }
);

/// Whether the threads that wait for the pages are woken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Wake {
    /// Wake them.
    #[default]
    Yes,
    /// Leave them asleep; somebody calls [`Handle::wake`] later.
    No,
}

impl Wake {
    const fn mode(self) -> u64 {
        match self {
            Self::Yes => 0,
            Self::No => 1,
        }
    }
}

/// How a resolving operation ended; the errno has got its meaning, once, here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// All of it was done.
    Done,
    /// So many bytes were done (and their waiters woken), then an error the kernel does not name: go on after them.
    Partial(usize),
    /// The first page is already there (EEXIST); nothing was done and nobody woken.
    Exists,
    /// Nothing was done because the address space is changing or a race was lost (EAGAIN): read the pending events, try again.
    Retry,
    /// The process whose memory this was is gone (ESRCH).
    Gone,
    /// Nothing was done, for the reason given.
    Failed(Errno),
}

impl Outcome {
    /// The rules, in one place: `field` is the out field, preset to 0, which the kernel leaves alone on argument errors.
    #[inline]
    pub(crate) fn from_parts(result: Result<(), Errno>, field: i64) -> Self {
        match result {
            Ok(()) => Self::Done,
            Err(Errno(libc::EAGAIN)) if field > 0 => Self::Partial(field as usize),
            Err(Errno(libc::EAGAIN)) => Self::Retry,
            Err(Errno(libc::EEXIST)) => Self::Exists,
            Err(Errno(libc::ESRCH)) => Self::Gone,
            Err(errno) => Self::Failed(errno),
        }
    }

    /// True when all of it was done.
    #[inline]
    pub const fn is_done(self) -> bool {
        matches!(self, Self::Done)
    }

    /// Bytes done, of the `len` that were asked for.
    #[inline]
    pub const fn bytes(self, len: usize) -> usize {
        match self {
            Self::Done => len,
            Self::Partial(bytes) => bytes,
            _ => 0,
        }
    }

    /// The errno that stands for an outcome other than `Done`; of `Partial` it is EAGAIN, as the kernel says.
    pub const fn errno(self) -> Option<Errno> {
        match self {
            Self::Done => None,
            Self::Partial(_) | Self::Retry => Some(Errno(libc::EAGAIN)),
            Self::Exists => Some(Errno(libc::EEXIST)),
            Self::Gone => Some(Errno(libc::ESRCH)),
            Self::Failed(errno) => Some(errno),
        }
    }
}

#[inline]
const fn range(start: usize, len: usize) -> UffdioRange {
    UffdioRange { start: start as u64, len: len as u64 }
}

impl Handle {
    /// `UFFDIO_REGISTER`: from now on faults of the kinds in `modes` in the range come to this descriptor.
    ///
    /// All mappings of the range are checked before any is changed; holes are fine; pages already there stay and never
    /// fault. A set of modes that is no subset of the present one *replaces* it. Returns the operations the kernel
    /// claims for the range (its word on MOVE is not reliable: see [`Ioctls`]).
    ///
    /// # Errors
    /// EINVAL: unaligned, empty, no mapping, or a kind of memory that cannot fault so. EBUSY: another descriptor has it.
    /// EPERM: a shared mapping that may never be written. ENOMEM: also when the process is gone.
    ///
    /// # Safety
    /// Touching the range may from now on block until somebody answers, and what is read then is what they answer.
    /// The caller owns the range and no reference that assumes otherwise (a Rust slice, an allocator's block) covers it.
    pub unsafe fn register(self, start: usize, len: usize, modes: RegisterModes) -> Result<Ioctls, Errno> {
        let mut argument = UffdioRegister { range: range(start, len), mode: modes.0, ioctls: 0 };
        self.ioctl(UFFDIO_REGISTER, &mut argument).map(|()| Ioctls(argument.ioctls))
    }

    /// `UFFDIO_UNREGISTER`: the range is ordinary memory again. Waiters wake only if it had the MISSING mode.
    ///
    /// # Errors
    /// EINVAL: nothing mapped there, another descriptor has it, or a part of a huge page.
    ///
    /// # Safety
    /// Pages still missing turn into silent zeros, for waiters too: the caller must be able to answer for that.
    pub unsafe fn unregister(self, start: usize, len: usize) -> Result<(), Errno> {
        self.ioctl(UFFDIO_UNREGISTER, &mut range(start, len))
    }

    /// `UFFDIO_WAKE`: threads that wait for a page of the range look again (and fault again if nothing has changed).
    ///
    /// # Errors
    /// EINVAL for a range that is not aligned or empty. A range without waiters, or without mapping, is no error.
    pub fn wake(self, start: usize, len: usize) -> Result<(), Errno> {
        self.ioctl(UFFDIO_WAKE, &mut range(start, len))
    }

    /// `UFFDIO_COPY`: fills absent pages of `dst` with a copy of the caller's bytes at `src`, each at once.
    ///
    /// `src` need not be aligned. Replaces poison and write-protect markers. It cannot change a page that is there,
    /// and the kernel checks both ranges, which is why it is safe to call: REGISTER was the dangerous act.
    #[inline]
    pub fn copy(self, dst: usize, src: usize, len: usize, mode: CopyMode) -> Outcome {
        let (dst, src, len) = (dst as u64, src as u64, len as u64);
        let mut argument = UffdioCopy { dst, src, len, mode: mode.0, copy: 0 };
        let result = self.ioctl(UFFDIO_COPY, &mut argument);
        Outcome::from_parts(result, argument.copy)
    }

    /// `UFFDIO_ZEROPAGE`: fills absent pages with zeros; private memory gets the shared zero page. Not for hugetlbfs.
    #[inline]
    pub fn zeropage(self, dst: usize, len: usize, wake: Wake) -> Outcome {
        let mut argument = UffdioZeropage { range: range(dst, len), mode: wake.mode(), zeropage: 0 };
        let result = self.ioctl(UFFDIO_ZEROPAGE, &mut argument);
        Outcome::from_parts(result, argument.zeropage)
    }

    /// `UFFDIO_MOVE`: moves the very pages at `src` into the absent ones at `dst`, without copying (Linux 6.8).
    ///
    /// Both ranges are private anonymous memory of the caller's own process, writable, with equal protections, and
    /// `dst` is registered with this descriptor (EINVAL otherwise). EBUSY: a source page is shared with a forked child,
    /// or was and has not been written since, or is pinned. ENOENT: the first source page is a hole.
    ///
    /// # Safety
    /// The source range loses its pages and reads as zeros afterwards: nothing may rely on its contents, and the caller
    /// must own it.
    #[inline]
    pub unsafe fn move_pages(self, dst: usize, src: usize, len: usize, mode: MoveMode) -> Outcome {
        let (dst, src, len) = (dst as u64, src as u64, len as u64);
        let mut argument = UffdioMove { dst, src, len, mode: mode.0, moved: 0 };
        let result = self.ioctl(UFFDIO_MOVE, &mut argument);
        Outcome::from_parts(result, argument.moved)
    }

    /// `UFFDIO_CONTINUE`: maps pages that are already in the page cache (shared memory, hugetlbfs).
    ///
    /// EFAULT: a page is not in the cache. EINVAL: beyond the end of the file, or anonymous memory.
    #[inline]
    pub fn continue_(self, dst: usize, len: usize, mode: ContinueMode) -> Outcome {
        let mut argument = UffdioContinue { range: range(dst, len), mode: mode.0, mapped: 0 };
        let result = self.ioctl(UFFDIO_CONTINUE, &mut argument);
        Outcome::from_parts(result, argument.mapped)
    }

    /// `UFFDIO_POISON`: absent pages answer any access with SIGBUS, system calls with EFAULT (Linux 6.6).
    ///
    /// Outlives this descriptor; lifted by `MADV_DONTNEED` or by [`Handle::copy`].
    #[inline]
    pub fn poison(self, dst: usize, len: usize, wake: Wake) -> Outcome {
        let mut argument = UffdioPoison { range: range(dst, len), mode: wake.mode(), updated: 0 };
        let result = self.ioctl(UFFDIO_POISON, &mut argument);
        Outcome::from_parts(result, argument.updated)
    }

    /// `UFFDIO_WRITEPROTECT`: protects pages against writes, or lifts that (and wakes).
    ///
    /// Absent pages of anonymous memory stay unprotected unless `WP_UNPOPULATED` or `WP_ASYNC` was asked for.
    /// ENOENT: a mapping of the range is not registered for it; those before it have been changed. Never `Partial`.
    #[inline]
    pub fn write_protect(self, start: usize, len: usize, mode: ProtectMode) -> Outcome {
        let mut argument = UffdioWriteprotect { range: range(start, len), mode: mode.0 };
        Outcome::from_parts(self.ioctl(UFFDIO_WRITEPROTECT, &mut argument), 0)
    }

    /// `UFFDIO_RWPROTECT`: traps any access to present pages, or lifts that (Linux 7.2; ENOTTY or EINVAL before).
    #[inline]
    pub fn rw_protect(self, start: usize, len: usize, mode: RwProtectMode) -> Outcome {
        let mut argument = UffdioRwprotect { range: range(start, len), mode: mode.0 };
        Outcome::from_parts(self.ioctl(UFFDIO_RWPROTECT, &mut argument), 0)
    }

    /// `UFFDIO_SET_MODE`: switches features of the descriptor at run time (Linux 7.2: RWP_ASYNC).
    ///
    /// # Errors
    /// EINVAL or ENOTTY where the kernel does not have it.
    pub fn set_mode(self, enable: crate::Features, disable: crate::Features) -> Result<(), Errno> {
        self.ioctl(UFFDIO_SET_MODE, &mut UffdioSetMode { enable: enable.0, disable: disable.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcome_follows_errno_and_field() {
        let from = |errno: i32, field: i64| Outcome::from_parts(Err(Errno(errno)), field);
        assert_eq!(Outcome::from_parts(Ok(()), 4096), Outcome::Done);
        assert_eq!(from(libc::EAGAIN, 8192), Outcome::Partial(8192));
        assert_eq!(from(libc::EAGAIN, 0), Outcome::Retry);
        assert_eq!(from(libc::EAGAIN, -i64::from(libc::EAGAIN)), Outcome::Retry);
        assert_eq!(from(libc::EEXIST, -i64::from(libc::EEXIST)), Outcome::Exists);
        assert_eq!(from(libc::ESRCH, 0), Outcome::Gone);
        assert_eq!(from(libc::EINVAL, 0), Outcome::Failed(Errno(libc::EINVAL)));
    }

    #[test]
    fn bytes_counts_only_what_was_done() {
        assert_eq!(Outcome::Done.bytes(12288), 12288);
        assert_eq!(Outcome::Partial(4096).bytes(12288), 4096);
        assert_eq!(Outcome::Exists.bytes(12288), 0);
    }
}
