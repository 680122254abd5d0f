//! Numbers and structures of the kernel interface, written as literals and proven by the compiler.
//!
//! The literals are for people with strace in the other window; the assertions at the end of this file rebuild each
//! of them from the `_IOC` formula and from the structure it carries. x86-64, aarch64 and riscv64 share the encoding.
//! Source: `include/uapi/linux/userfaultfd.h` and `include/uapi/linux/fs.h`.

/// The protocol number that `UFFDIO_API` must carry.
pub const UFFD_API: u64 = 0xAA;
/// Flag of userfaultfd(2): kernel-mode faults are refused (EFAULT) instead of delivered.
pub const UFFD_USER_MODE_ONLY: i32 = 1;

/// `UFFDIO_API`: the handshake.
pub const UFFDIO_API: u32 = 0xC018_AA3F;
/// `UFFDIO_REGISTER`.
pub const UFFDIO_REGISTER: u32 = 0xC020_AA00;
/// `UFFDIO_UNREGISTER`; marked "read" by a historic mistake, though the kernel reads the structure.
pub const UFFDIO_UNREGISTER: u32 = 0x8010_AA01;
/// `UFFDIO_WAKE`; the same mistake.
pub const UFFDIO_WAKE: u32 = 0x8010_AA02;
/// `UFFDIO_COPY`.
pub const UFFDIO_COPY: u32 = 0xC028_AA03;
/// `UFFDIO_ZEROPAGE`.
pub const UFFDIO_ZEROPAGE: u32 = 0xC020_AA04;
/// `UFFDIO_MOVE` (Linux 6.8).
pub const UFFDIO_MOVE: u32 = 0xC028_AA05;
/// `UFFDIO_WRITEPROTECT`.
pub const UFFDIO_WRITEPROTECT: u32 = 0xC018_AA06;
/// `UFFDIO_CONTINUE`.
pub const UFFDIO_CONTINUE: u32 = 0xC020_AA07;
/// `UFFDIO_POISON` (6.6).
pub const UFFDIO_POISON: u32 = 0xC020_AA08;
/// `UFFDIO_RWPROTECT` (7.2).
pub const UFFDIO_RWPROTECT: u32 = 0xC018_AA09;
/// `UFFDIO_SET_MODE` (7.2).
pub const UFFDIO_SET_MODE: u32 = 0x4010_AA0A;
/// The ioctl of `/dev/userfaultfd` that makes a descriptor; its argument is the flags, by value.
pub const USERFAULTFD_IOC_NEW: u32 = 0x0000_AA00;
/// `PAGEMAP_SCAN`, on `/proc/PID/pagemap` (6.7).
pub const PAGEMAP_SCAN: u32 = 0xC060_6610;
/// `PROCMAP_QUERY`, on `/proc/PID/maps` (6.11).
pub const PROCMAP_QUERY: u32 = 0xC068_6611;

/// Message value: a page fault.
pub const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
/// Message value: the process forked.
pub const UFFD_EVENT_FORK: u8 = 0x13;
/// Message value: a range was moved.
pub const UFFD_EVENT_REMAP: u8 = 0x14;
/// Message value: pages of a range are about to be dropped.
pub const UFFD_EVENT_REMOVE: u8 = 0x15;
/// Message value: a range was unmapped.
pub const UFFD_EVENT_UNMAP: u8 = 0x16;

/// Defines a kernel structure of which every bit pattern is valid.
macro_rules! kernel_struct {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
    };
}

kernel_struct!(
    /// Argument of `UFFDIO_API`.
    UffdioApi {
        /// In: [`UFFD_API`].
        api: u64,
        /// In: features wanted. Out: all the kernel has.
        features: u64,
        /// Out: ioctls allowed now.
        ioctls: u64,
    }
);
kernel_struct!(
    /// A range of addresses; argument of `UFFDIO_UNREGISTER` and `UFFDIO_WAKE`, head of most others.
    UffdioRange {
        /// First byte.
        start: u64,
        /// Bytes.
        len: u64,
    }
);
kernel_struct!(
    /// Argument of `UFFDIO_REGISTER`.
    UffdioRegister {
        /// The range.
        range: UffdioRange,
        /// `RegisterModes` bits.
        mode: u64,
        /// Out: ioctls usable on the range.
        ioctls: u64,
    }
);
kernel_struct!(
    /// Argument of `UFFDIO_COPY`.
    UffdioCopy {
        /// Where the pages go.
        dst: u64,
        /// Where the bytes come from, in the caller's memory.
        src: u64,
        /// Bytes.
        len: u64,
        /// Mode bits.
        mode: u64,
        /// Out: bytes done, or a negative errno.
        copy: i64,
    }
);
kernel_struct!(
    /// Argument of `UFFDIO_ZEROPAGE`.
    UffdioZeropage {
        /// The range.
        range: UffdioRange,
        /// Mode bits.
        mode: u64,
        /// Out: bytes done, or a negative errno.
        zeropage: i64,
    }
);
kernel_struct!(
    /// Argument of `UFFDIO_MOVE`.
    UffdioMove {
        /// Where the pages go.
        dst: u64,
        /// Where they come from.
        src: u64,
        /// Bytes.
        len: u64,
        /// Mode bits.
        mode: u64,
        /// Out: bytes done, or a negative errno.
        moved: i64,
    }
);
kernel_struct!(
    /// Argument of `UFFDIO_WRITEPROTECT`.
    UffdioWriteprotect {
        /// The range.
        range: UffdioRange,
        /// Mode bits.
        mode: u64,
    }
);
kernel_struct!(
    /// Argument of `UFFDIO_CONTINUE`.
    UffdioContinue {
        /// The range.
        range: UffdioRange,
        /// Mode bits.
        mode: u64,
        /// Out: bytes done, or a negative errno.
        mapped: i64,
    }
);
kernel_struct!(
    /// Argument of `UFFDIO_POISON`.
    UffdioPoison {
        /// The range.
        range: UffdioRange,
        /// Mode bits.
        mode: u64,
        /// Out: bytes done, or a negative errno.
        updated: i64,
    }
);
kernel_struct!(
    /// Argument of `UFFDIO_RWPROTECT`.
    UffdioRwprotect {
        /// The range.
        range: UffdioRange,
        /// Mode bits.
        mode: u64,
    }
);
kernel_struct!(
    /// Argument of `UFFDIO_SET_MODE`.
    UffdioSetMode {
        /// Feature bits to switch on.
        enable: u64,
        /// Feature bits to switch off.
        disable: u64,
    }
);
kernel_struct!(
    /// One message, as read from the descriptor. Read it through its accessors ([`UffdMsg::fault`], [`UffdMsg::decode`]).
    UffdMsg {
        /// One of the `UFFD_EVENT_` values.
        event: u8,
        /// Unused.
        reserved1: u8,
        /// Unused.
        reserved2: u16,
        /// Unused.
        reserved3: u32,
        /// The union of the header: three words whose meaning the event decides.
        arg: [u64; 3],
    }
);
kernel_struct!(
    /// Argument of `PAGEMAP_SCAN`.
    PmScanArg {
        /// In: size of this structure.
        size: u64,
        /// In: flags of the scan.
        flags: u64,
        /// In: first address.
        start: u64,
        /// In: end address.
        end: u64,
        /// Out: where the walk stopped.
        walk_end: u64,
        /// In: pointer to an array of `PageRegion`.
        vec: u64,
        /// In: entries in that array.
        vec_len: u64,
        /// In: stop after so many matching pages; 0 = no limit.
        max_pages: u64,
        /// In: categories whose meaning is inverted in the masks.
        category_inverted: u64,
        /// In: categories a page must all have.
        category_mask: u64,
        /// In: categories of which a page must have one.
        category_anyof_mask: u64,
        /// In: categories to report.
        return_mask: u64,
    }
);
kernel_struct!(
    /// Argument of `PROCMAP_QUERY`.
    ProcmapQuery {
        /// In: size of this structure.
        size: u64,
        /// In: which mappings are wanted.
        query_flags: u64,
        /// In: an address.
        query_addr: u64,
        /// Out: first address.
        vma_start: u64,
        /// Out: address after the last.
        vma_end: u64,
        /// Out: readable 1, writable 2, executable 4, shared 8.
        vma_flags: u64,
        /// Out: bytes in a page of it.
        vma_page_size: u64,
        /// Out: offset in the file.
        vma_offset: u64,
        /// Out: inode of the file, 0 without one.
        inode: u64,
        /// Out: device of the file.
        dev_major: u32,
        /// Out: device of the file.
        dev_minor: u32,
        /// In: room for the name; out: its bytes with the final zero, 0 without one.
        vma_name_size: u32,
        /// In: room for the build id; out: its bytes.
        build_id_size: u32,
        /// In: where the name goes.
        vma_name_addr: u64,
        /// In: where the build id goes.
        build_id_addr: u64,
    }
);
kernel_struct!(
    /// One answer of `PAGEMAP_SCAN`: neighbouring pages of the same categories.
    PageRegion {
        /// First address.
        start: u64,
        /// Address after the last.
        end: u64,
        /// Categories, as far as the return mask asked for them.
        categories: u64,
    }
);

/// The proofs. Nothing here exists at run time.
mod proofs {
    use super::*;
    use std::mem::{offset_of, size_of};

    const WRITE: u32 = 1;
    const READ: u32 = 2;

    /// `_IOC` of `asm-generic/ioctl.h`.
    const fn ioc(direction: u32, kind: u32, number: u32, size: usize) -> u32 {
        (direction << 30) | ((size as u32) << 16) | (kind << 8) | number
    }

    macro_rules! prove_ioctl {
        ($($constant:ident = $direction:expr, $kind:expr, $number:expr, $type:ty, $size:expr;)*) => { $(
            const _: () = assert!(size_of::<$type>() == $size);
            const _: () = assert!($constant == ioc($direction, $kind, $number, size_of::<$type>()));
        )* };
    }

    prove_ioctl!(
        UFFDIO_API = READ | WRITE, 0xAA, 0x3F, UffdioApi, 24;
        UFFDIO_REGISTER = READ | WRITE, 0xAA, 0x00, UffdioRegister, 32;
        UFFDIO_UNREGISTER = READ, 0xAA, 0x01, UffdioRange, 16;
        UFFDIO_WAKE = READ, 0xAA, 0x02, UffdioRange, 16;
        UFFDIO_COPY = READ | WRITE, 0xAA, 0x03, UffdioCopy, 40;
        UFFDIO_ZEROPAGE = READ | WRITE, 0xAA, 0x04, UffdioZeropage, 32;
        UFFDIO_MOVE = READ | WRITE, 0xAA, 0x05, UffdioMove, 40;
        UFFDIO_WRITEPROTECT = READ | WRITE, 0xAA, 0x06, UffdioWriteprotect, 24;
        UFFDIO_CONTINUE = READ | WRITE, 0xAA, 0x07, UffdioContinue, 32;
        UFFDIO_POISON = READ | WRITE, 0xAA, 0x08, UffdioPoison, 32;
        UFFDIO_RWPROTECT = READ | WRITE, 0xAA, 0x09, UffdioRwprotect, 24;
        UFFDIO_SET_MODE = WRITE, 0xAA, 0x0A, UffdioSetMode, 16;
        USERFAULTFD_IOC_NEW = 0, 0xAA, 0x00, (), 0;
        PAGEMAP_SCAN = READ | WRITE, b'f' as u32, 16, PmScanArg, 96;
        PROCMAP_QUERY = READ | WRITE, b'f' as u32, 17, ProcmapQuery, 104;
    );

    macro_rules! prove_offsets {
        ($($type:ty { $($field:ident = $offset:expr),* })*) => {
            $($(const _: () = assert!(offset_of!($type, $field) == $offset);)*)*
        };
    }

    prove_offsets!(
        UffdioApi { api = 0, features = 8, ioctls = 16 }
        UffdioRange { start = 0, len = 8 }
        UffdioRegister { range = 0, mode = 16, ioctls = 24 }
        UffdioCopy { dst = 0, src = 8, len = 16, mode = 24, copy = 32 }
        UffdioZeropage { range = 0, mode = 16, zeropage = 24 }
        UffdioMove { dst = 0, src = 8, len = 16, mode = 24, moved = 32 }
        UffdioWriteprotect { range = 0, mode = 16 }
        UffdioContinue { range = 0, mode = 16, mapped = 24 }
        UffdioPoison { range = 0, mode = 16, updated = 24 }
        UffdioRwprotect { range = 0, mode = 16 }
        UffdioSetMode { enable = 0, disable = 8 }
        UffdMsg { event = 0, reserved1 = 1, reserved2 = 2, reserved3 = 4, arg = 8 }
        PmScanArg {
            size = 0, flags = 8, start = 16, end = 24, walk_end = 32, vec = 40, vec_len = 48, max_pages = 56,
            category_inverted = 64, category_mask = 72, category_anyof_mask = 80, return_mask = 88
        }
        PageRegion { start = 0, end = 8, categories = 16 }
    );
    const _: () = assert!(size_of::<UffdMsg>() == 32);
    const _: () = assert!(size_of::<PageRegion>() == 24);
}
