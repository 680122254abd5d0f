"""The sets of bits the kernel speaks. Each is an `enum.IntFlag`; the numbers are the kernel's.

Kernel: the version named with a bit is the first that has it; never decide by it, ask `capabilities()`.
"""

from __future__ import annotations

from enum import IntFlag


class Features(IntFlag):
    """What a descriptor is asked to do differently. «Advertised» bits change nothing; they tell what the kernel has."""

    NONE = 0
    PAGEFAULT_FLAG_WP = 1 << 0
    """Advertised (Linux 5.7): write-protect faults on private memory."""
    EVENT_FORK = 1 << 1
    """4.11: a `Fork` event brings the child's descriptor; needs CAP_SYS_PTRACE.

    Whoever forks sleeps until the event is read, and `os.fork` keeps the GIL meanwhile: a thread must already be in
    `Userfaultfd.read_events`, or nobody ever reads it.
    """
    EVENT_REMAP = 1 << 2
    """4.11: the registration follows mremap, with a `Remap` event."""
    EVENT_REMOVE = 1 << 3
    """4.11: a `Remove` event before madvise drops pages."""
    MISSING_HUGETLBFS = 1 << 4
    """Advertised (4.11)."""
    MISSING_SHMEM = 1 << 5
    """Advertised (4.11)."""
    EVENT_UNMAP = 1 << 6
    """4.11: an `Unmap` event after a range was unmapped."""
    SIGBUS = 1 << 7
    """4.14: no messages; the thread that touches gets SIGBUS, a system call EFAULT."""
    THREAD_ID = 1 << 8
    """4.14: events name the thread that touched."""
    MINOR_HUGETLBFS = 1 << 9
    """Advertised (5.13)."""
    MINOR_SHMEM = 1 << 10
    """Advertised (5.14)."""
    EXACT_ADDRESS = 1 << 11
    """5.18: events carry the exact address, not that of the page."""
    WP_HUGETLBFS_SHMEM = 1 << 12
    """Advertised (5.19)."""
    WP_UNPOPULATED = 1 << 13
    """6.4: write protection also marks pages that are not there yet."""
    POISON = 1 << 14
    """Advertised (6.6): `Userfaultfd.poison` exists."""
    WP_ASYNC = 1 << 15
    """6.7: write faults are noted by the kernel and resolved at once; `scan` finds them."""
    MOVE = 1 << 16
    """Advertised (6.8): `Userfaultfd.move` exists."""
    RWP = 1 << 17
    """7.2: any access to a present page can be trapped."""
    RWP_ASYNC = 1 << 18
    """7.2: such accesses are noted by the kernel and resolved at once."""


class RegisterMode(IntFlag):
    """Which faults of a range are wanted."""

    MISSING = 1
    """Pages that are not there."""
    WP = 2
    """Writes to pages protected with `Userfaultfd.write_protect`."""
    MINOR = 4
    """Shared memory: pages in the page cache that this mapping does not map yet."""
    RWP = 8
    """7.2: accesses to pages protected with `Userfaultfd.rw_protect`; not together with WP."""


class Ioctls(IntFlag):
    """What the kernel says it can do with a range; its word on MOVE is not reliable for shared memory."""

    NONE = 0
    REGISTER = 1 << 0x00
    UNREGISTER = 1 << 0x01
    WAKE = 1 << 0x02
    COPY = 1 << 0x03
    ZEROPAGE = 1 << 0x04
    MOVE = 1 << 0x05
    WRITEPROTECT = 1 << 0x06
    CONTINUE = 1 << 0x07
    POISON = 1 << 0x08
    RWPROTECT = 1 << 0x09
    SET_MODE = 1 << 0x0A
    API = 1 << 0x3F


class FaultFlags(IntFlag):
    """What kind of fault it was; neither WP nor MINOR nor RWP means that the page is missing."""

    NONE = 0
    WRITE = 1
    WP = 2
    MINOR = 4
    RWP = 8


class CopyMode(IntFlag):
    """How `Userfaultfd.copy` copies."""

    NONE = 0
    DONTWAKE = 1
    """Leave the waiters asleep; `Userfaultfd.wake` later."""
    WP = 2
    """Leave the pages write-protected."""


class ContinueMode(IntFlag):
    """How `Userfaultfd.continue_` maps."""

    NONE = 0
    DONTWAKE = 1
    """Leave the waiters asleep."""
    WP = 2
    """Leave the pages write-protected (6.4)."""


class MoveMode(IntFlag):
    """How `Userfaultfd.move` moves."""

    NONE = 0
    DONTWAKE = 1
    """Leave the waiters asleep."""
    ALLOW_SRC_HOLES = 2
    """Skip absent source pages, counting them as done, instead of failing."""


class ProtectMode(IntFlag):
    """What `Userfaultfd.write_protect` does; NONE lifts the protection."""

    NONE = 0
    WP = 1
    """Protect."""
    DONTWAKE = 2
    """Leave the waiters asleep; only for lifting."""


class RwProtectMode(IntFlag):
    """What `Userfaultfd.rw_protect` does; NONE lifts the protection."""

    NONE = 0
    RWP = 1
    """Protect."""
    DONTWAKE = 2
    """Leave the waiters asleep; only for lifting."""


class PageCategory(IntFlag):
    """What `scan` can tell of a page."""

    NONE = 0
    WPALLOWED = 1
    """Its mapping can be write-protected asynchronously."""
    WRITTEN = 2
    """Written since it was last protected; memory that was never protected counts as written."""
    FILE = 4
    """Backed by a file."""
    PRESENT = 8
    """In memory."""
    SWAPPED = 16
    """In swap, or poisoned, or another marker that looks the same."""
    PFNZERO = 32
    """The shared zero page."""
    HUGE = 64
    """Part of a huge mapping."""
    SOFT_DIRTY = 128
    """Soft-dirty, where the kernel keeps that bit."""
    GUARD = 256
    """A guard page (6.15)."""


class ScanFlags(IntFlag):
    """What `scan` does besides looking."""

    NONE = 0
    WP_MATCHING = 1
    """Write-protect the pages that match, atomically with reporting them."""
    CHECK_WPASYNC = 2
    """Fail with PermissionError unless every mapping is registered with a WP_ASYNC descriptor."""
