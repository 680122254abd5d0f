//! What can be asked of the kernel: features of a descriptor, modes of a registration, and the ioctls it grants.

use crate::flags::bit_set;

bit_set!(
    /// Feature bits of `UFFDIO_API`, up to and including those of Linux 7.2.
    ///
    /// A kernel older than a bit refuses it: ask [`crate::supported_features`] first. Bits that say "advertised" change
    /// nothing when requested; they only tell what the kernel can do.
    Features {
        /// Write-protect faults on anonymous memory, with a flag in the message (advertised; Linux 5.7).
        PAGEFAULT_FLAG_WP = 1 << 0,
        /// A fork gives the child a cloned descriptor, delivered in a message. Needs CAP_SYS_PTRACE (4.11).
        EVENT_FORK = 1 << 1,
        /// The registration follows mremap, with a message (4.11).
        EVENT_REMAP = 1 << 2,
        /// A message before pages are dropped by madvise (4.11).
        EVENT_REMOVE = 1 << 3,
        /// Missing faults on hugetlbfs (advertised; 4.11).
        MISSING_HUGETLBFS = 1 << 4,
        /// Missing faults on shared memory (advertised; 4.11).
        MISSING_SHMEM = 1 << 5,
        /// A message after a range is unmapped (4.11).
        EVENT_UNMAP = 1 << 6,
        /// No messages at all: the thread that faults gets SIGBUS, a system call EFAULT (4.14).
        SIGBUS = 1 << 7,
        /// The message carries the id of the faulting thread (4.14).
        THREAD_ID = 1 << 8,
        /// Minor faults on hugetlbfs (advertised; 5.13).
        MINOR_HUGETLBFS = 1 << 9,
        /// Minor faults on shared memory (advertised; 5.14).
        MINOR_SHMEM = 1 << 10,
        /// The message carries the exact address instead of that of its page (5.18).
        EXACT_ADDRESS = 1 << 11,
        /// Write protection of hugetlbfs and shared memory (advertised; 5.19).
        WP_HUGETLBFS_SHMEM = 1 << 12,
        /// Write protection also marks pages that are not there yet (6.4).
        WP_UNPOPULATED = 1 << 13,
        /// `UFFDIO_POISON` exists (advertised; 6.6).
        POISON = 1 << 14,
        /// Write faults are noted by the kernel and resolved at once, without a message (6.7).
        WP_ASYNC = 1 << 15,
        /// `UFFDIO_MOVE` exists (advertised; 6.8).
        MOVE = 1 << 16,
        /// Read-write protection: any access to a present page can be trapped (7.2).
        RWP = 1 << 17,
        /// Read-write-protect faults are noted by the kernel and resolved at once (7.2).
        RWP_ASYNC = 1 << 18,
    }
);

bit_set!(
    /// What a registration asks to be told about.
    RegisterModes {
        /// Pages that are not there.
        MISSING = 1,
        /// Writes to write-protected pages.
        WP = 2,
        /// Pages in the page cache that this mapping does not map yet.
        MINOR = 4,
        /// Accesses to read-write-protected pages; not together with WP (Linux 7.2).
        RWP = 8,
    }
);

bit_set!(
    /// The operations the kernel offers, as `UFFDIO_API` and `UFFDIO_REGISTER` report them (bit n is ioctl n).
    ///
    /// Do not trust `MOVE` here: Linux 6.18 claims it for shared memory, where it is then refused with EINVAL.
    Ioctls {
        /// `UFFDIO_REGISTER`.
        REGISTER = 1 << 0x00,
        /// `UFFDIO_UNREGISTER`.
        UNREGISTER = 1 << 0x01,
        /// `UFFDIO_WAKE`.
        WAKE = 1 << 0x02,
        /// `UFFDIO_COPY`.
        COPY = 1 << 0x03,
        /// `UFFDIO_ZEROPAGE`.
        ZEROPAGE = 1 << 0x04,
        /// `UFFDIO_MOVE`.
        MOVE = 1 << 0x05,
        /// `UFFDIO_WRITEPROTECT`.
        WRITEPROTECT = 1 << 0x06,
        /// `UFFDIO_CONTINUE`.
        CONTINUE = 1 << 0x07,
        /// `UFFDIO_POISON`.
        POISON = 1 << 0x08,
        /// `UFFDIO_RWPROTECT` (7.2).
        RWPROTECT = 1 << 0x09,
        /// `UFFDIO_SET_MODE` (7.2).
        SET_MODE = 1 << 0x0a,
        /// `UFFDIO_API`.
        API = 1 << 0x3f,
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_have_nineteen_distinct_names() {
        assert_eq!(Features::NAMED.len(), 19);
        let all = Features::NAMED.iter().fold(0, |bits, (_, bit)| bits | bit.0);
        assert_eq!(all, 0x7_ffff);
    }
}
