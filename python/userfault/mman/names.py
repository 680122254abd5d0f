"""The names of 2014 for advice and protection. None of them is an int."""

from __future__ import annotations

import enum


class Advice(enum.Enum):
    """What `madvise` can be told. Not ints.

    Numbers 18 and 19 mean something else to today's kernel than they did in 2014, so these must not find their way into
    `mmap.mmap.madvise`.
    """

    NORMAL = "normal"
    RANDOM = "random"
    SEQUENTIAL = "sequential"
    WILLNEED = "willneed"
    DONTNEED = "dontneed"
    FREE = "free"
    REMOVE = "remove"
    DONTFORK = "dontfork"
    DOFORK = "dofork"
    MERGEABLE = "mergeable"
    UNMERGEABLE = "unmergeable"
    HUGEPAGE = "hugepage"
    NOHUGEPAGE = "nohugepage"
    DONTDUMP = "dontdump"
    DODUMP = "dodump"
    COLD = "cold"
    PAGEOUT = "pageout"
    POPULATE_READ = "populate_read"
    POPULATE_WRITE = "populate_write"
    DONTNEED_LOCKED = "dontneed_locked"
    COLLAPSE = "collapse"
    GUARD_INSTALL = "guard_install"
    GUARD_REMOVE = "guard_remove"
    USERFAULT = "userfault"
    """A touch of a page that is not there is a userfault."""
    NOUSERFAULT = "nouserfault"
    """A touch of a page that is not there finds zeros again."""


# asm-generic/mman-common.h; the same on every architecture that userfaultfd exists for.
KERNEL_ADVICE = {
    Advice.NORMAL: 0,
    Advice.RANDOM: 1,
    Advice.SEQUENTIAL: 2,
    Advice.WILLNEED: 3,
    Advice.DONTNEED: 4,
    Advice.FREE: 8,
    Advice.REMOVE: 9,
    Advice.DONTFORK: 10,
    Advice.DOFORK: 11,
    Advice.MERGEABLE: 12,
    Advice.UNMERGEABLE: 13,
    Advice.HUGEPAGE: 14,
    Advice.NOHUGEPAGE: 15,
    Advice.DONTDUMP: 16,
    Advice.DODUMP: 17,
    Advice.COLD: 20,
    Advice.PAGEOUT: 21,
    Advice.POPULATE_READ: 22,
    Advice.POPULATE_WRITE: 23,
    Advice.DONTNEED_LOCKED: 24,
    Advice.COLLAPSE: 25,
    Advice.GUARD_INSTALL: 102,
    Advice.GUARD_REMOVE: 103,
}

MADV_NORMAL = Advice.NORMAL
MADV_RANDOM = Advice.RANDOM
MADV_SEQUENTIAL = Advice.SEQUENTIAL
MADV_WILLNEED = Advice.WILLNEED
MADV_DONTNEED = Advice.DONTNEED
MADV_FREE = Advice.FREE
MADV_REMOVE = Advice.REMOVE
MADV_DONTFORK = Advice.DONTFORK
MADV_DOFORK = Advice.DOFORK
MADV_MERGEABLE = Advice.MERGEABLE
MADV_UNMERGEABLE = Advice.UNMERGEABLE
MADV_HUGEPAGE = Advice.HUGEPAGE
MADV_NOHUGEPAGE = Advice.NOHUGEPAGE
MADV_DONTDUMP = Advice.DONTDUMP
MADV_DODUMP = Advice.DODUMP
MADV_COLD = Advice.COLD
MADV_PAGEOUT = Advice.PAGEOUT
MADV_POPULATE_READ = Advice.POPULATE_READ
MADV_POPULATE_WRITE = Advice.POPULATE_WRITE
MADV_DONTNEED_LOCKED = Advice.DONTNEED_LOCKED
MADV_COLLAPSE = Advice.COLLAPSE
MADV_GUARD_INSTALL = Advice.GUARD_INSTALL
MADV_GUARD_REMOVE = Advice.GUARD_REMOVE
MADV_USERFAULT = Advice.USERFAULT
MADV_NOUSERFAULT = Advice.NOUSERFAULT


class Protection(enum.Flag):
    """What `mprotect` can be told. Not ints, for the same reason as `Advice`."""

    NONE = 0
    READ = 1
    WRITE = 2
    EXEC = 4
    USERFAULT = 8
    """Sets the flag under policy "mprotect"; without it the flag is cleared."""


PROT_NONE = Protection.NONE
PROT_READ = Protection.READ
PROT_WRITE = Protection.WRITE
PROT_EXEC = Protection.EXEC
PROT_USERFAULT = Protection.USERFAULT
