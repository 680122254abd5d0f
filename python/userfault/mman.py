"""The interface of the userfault proposal of October 2014, on today's kernel.

Three calls decide what a touch of a page that is not there means:

- `madvise(range, MADV_USERFAULT)`: it is a fault of the program's own instead of a fresh page of zeros. The touching thread gets
  SIGBUS; what that leads to is chosen with `on_sigbus`, and is the exception `UserFault` unless told otherwise.
- `remap_anon_pages(dst, src, length)`: move pages that were prepared elsewhere into the hole, at once and without copying.
- `userfaultfd()`: a descriptor that hears of faults in the ranges registered with it, those inside system calls and virtual
  machines too, instead of the touching thread.

>>> import userfault as uf
>>> from userfault import mman
>>> page = mman.PAGE_SIZE
>>> memory, staging = mman.anonymous(4 * page), mman.anonymous(page)
>>> mman.madvise(memory, mman.MADV_USERFAULT)
>>> def resolver(address):
...     staging[:5] = b"hello"
...     mman.remap_anon_pages(address // page * page, staging, page)
>>> mman.on_sigbus(memory, resolver)
>>> bytes(memory[2 * page : 2 * page + 5])
b'hello'

The rule that joins the two (`set_policy` has the other two that were discussed): a touch goes to a descriptor if its address is
flagged *and* registered; flagged only: SIGBUS; registered only: zeros, as ever. docs: «The 2014 proposal, as it runs today».

Threads: everything may be called from any. GIL: released in all calls but moves of up to 1 MiB.
"""

from __future__ import annotations

import enum
import mmap
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from userfault import _core
from userfault.errors import UserFault
from userfault.sources import Source
from userfault.units import parse_seconds

if TYPE_CHECKING:
    from typing import TypeAlias

    from typing_extensions import Buffer

    Range: TypeAlias = Buffer | tuple[int, int]
    Resolver: TypeAlias = Callable[[int], object] | Source | signal.Handlers | None
    Policy: TypeAlias = Literal["madvise", "mprotect", "register-only"]

PAGE_SIZE = mmap.PAGESIZE
"""Bytes in a page."""
RAP_ALLOW_SRC_HOLES = 1
"""Flag of `remap_anon_pages`: holes of the source are skipped instead of being an error."""
PROTOCOL = 0xAA
"""What the handshake of a descriptor asks for."""


class Advice(enum.Enum):
    """What `madvise` can be told. Not ints: numbers 18 and 19 mean something else to today's kernel than they did in 2014, so
    these must not find their way into `mmap.mmap.madvise`."""

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
_KERNEL_ADVICE = {
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


_MAP_NORESERVE = 0x4000  # asm-generic/mman.h; Python has no name for it before 3.13


def anonymous(length: int) -> mmap.mmap:
    """Return private anonymous memory that starts on a page: what all calls here work on.

    Args:
        length: Bytes; the mapping has whole pages. Address space only: pages cost memory when they come.

    Raises:
        ValueError: `length` is not above zero.
        OSError: ENOMEM, no room.
    """
    if length <= 0:
        raise ValueError(f"length {length}: must be above zero")
    return mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)


def address_of(buffer: Buffer) -> int:
    """Return the address of a buffer's first byte. It stays there only as long as the buffer does."""
    return _core.range_of(buffer)[0]


def madvise(range: Range, advice: Advice, *, fork: Literal["deny"] = "deny") -> None:
    """Give advice about memory; `MADV_USERFAULT` is no hint: when the call returns the range is armed.

    Args:
        range: A writable buffer, all of it, or (address, length). A length that is no whole number of pages is rounded up.
        advice: A member of `Advice`. `MADV_USERFAULT` and `MADV_NOUSERFAULT` are ours, the others the kernel's.
        fork: With `MADV_USERFAULT`: "deny", the range is not there in a forked child (MADV_DONTFORK, and a tombstone at its
            address); what the caller had is restored by `MADV_NOUSERFAULT`.

    Raises:
        OSError: EINVAL: the range does not start on a page, or holds a mapping that cannot raise userfaults yet (a file,
            shared memory, hugetlbfs, the kernel's own; mappings before it are flagged, those after it are not), or
            MADV_DOFORK on a range that is denied to children. ENOMEM: there are holes; the rest was done.
            EBUSY: another userfaultfd has it. ENOMEM also for too many mappings (vm.max_map_count).
        RefusedError: This process may not have a userfaultfd.
        TypeError: Not an `Advice`; a read-only buffer.

    Blocks: while pages of the range are being resolved. Source: patch 08 of the series «userfault v2», 3 October 2014.
    """
    if not isinstance(advice, Advice):
        raise TypeError(f"advice must be a member of mman.Advice, such as mman.MADV_USERFAULT; {advice!r} is not")
    if fork != "deny":
        raise ValueError(f"fork={fork!r}: must be 'deny'")
    if advice in (Advice.USERFAULT, Advice.NOUSERFAULT):
        _core.mman_flag(_writable(range), advice is Advice.USERFAULT)
    else:
        _core.mman_advise(_writable(range), _KERNEL_ADVICE[advice], f"MADV_{advice.name}")


def mprotect(range: Range, protection: Protection) -> None:
    """Change what may be done with memory; under policy "mprotect", with `PROT_USERFAULT` or without, the flag too.

    Args:
        range: A writable buffer or (address, length); must start on a page.
        protection: Members of `Protection`, joined by |.

    Raises:
        OSError: As mprotect(2). EINVAL for `PROT_USERFAULT` under another policy or on a mapping that cannot fault.
        TypeError: Not a `Protection`; a read-only buffer.
    """
    if not isinstance(protection, Protection):
        raise TypeError(f"protection must be made of mman.Protection, such as mman.PROT_READ; {protection!r} is not")
    plain = (protection & ~Protection.USERFAULT).value
    _core.mman_protect(_writable(range), plain, bool(protection & Protection.USERFAULT))


def set_policy(policy: Policy) -> None:
    """Choose which of the three interfaces that were discussed in 2014 is in force in this process.

    Args:
        policy: "madvise" (as posted, the default): a flag set by madvise and a registration. "mprotect": the flag is set by
            mprotect. "register-only": no flag and no SIGBUS side; registration is all there is (what Linux 4.3 got).

    Raises:
        RuntimeError: Ranges are flagged or registered.
        ValueError: No such policy.
    """
    _core.mman_set_policy(policy)


def policy() -> str:
    """Return the policy in force."""
    return _core.mman_policy()


def on_sigbus(range: Range, resolver: Resolver) -> None:
    """Choose what a SIGBUS leads to: a touch of a flagged hole with no userfaultfd on it.

    Args:
        range: Flagged memory, all of it.
        resolver: A callable: called with the exact address *in the touching thread*, in the middle of the touch; it puts a
            page there, with `remap_anon_pages`, and returns, and the instruction starts again. A `Source`: the handler fills
            the page itself; offset 0 is the start of the range. `signal.SIG_DFL`: the handler that was there before, or the
            default action, gets the signal. None: `UserFault` in the touching thread, which is also the default.

    A resolver runs as a signal handler would, but in the middle of any function that touches memory: it must not change what
    that function works on, nor take a lock (other than an RLock) that code around a touch may hold. An exception in it becomes the
    `__cause__` of a `UserFault`; so does coming back without a page, or touching the page it is there for. System calls
    never get here: EFAULT.

    Raises:
        OSError: EINVAL: not all of it is flagged, the source is shorter or cannot run in a signal handler, or policy
            "register-only".
        TypeError: Not a resolver.
    """
    place = _writable(range)
    if resolver is None:
        _core.mman_on_sigbus(place, "raise")
    elif isinstance(resolver, Source):
        _core.mman_on_sigbus(place, "source", None, resolver.open())
    elif resolver is signal.SIG_DFL:
        _core.mman_on_sigbus(place, "default")
    elif callable(resolver):
        _core.mman_on_sigbus(place, "callable", resolver)
    else:
        raise TypeError(f"a resolver is a callable, a Source, signal.SIG_DFL or None; {resolver!r} is not")


def remap_anon_pages(dst: Range | int, src: Range | int, length: int | None = None, flags: int = 0) -> int:
    """Move pages from `src` into the hole at `dst`. Nobody is woken; the pages leave holes behind them.

    Args:
        dst: Address or buffer; need be neither flagged nor registered.
        src: Address or buffer, usually staging memory.
        length: Bytes, whole pages; None: as long as `src`, else as `dst`.
        flags: 0 or `RAP_ALLOW_SRC_HOLES`.

    Returns:
        Bytes moved: `length`, or fewer when an error came after some; the call for the rest then says which.

    Raises:
        OSError: EINVAL: flags, alignment, nothing or more than one mapping at either end, shared memory, memory that is not
            writable, different protection or mlock. EEXIST: there is a page already. ENOENT: there is none at the source.
            EBUSY: the page is shared with a forked child, or pinned. EFAULT: something else than a page.

    Blocks: for the moment of a change of owner. Source: patch 12 of the series.
    """
    return _core.mman_remap(dst, src, length, flags)


def userfaultfd(
    flags: int = 0,
    *,
    handshake: bool = True,
    timeout: str | float | None = "30s",
    user_mode_only: bool = False,
) -> Userfaultfd2014:
    """Return a descriptor that hears of faults in flagged memory registered with it.

    Args:
        flags: 0, `os.O_CLOEXEC` (which it always is) or `os.O_NONBLOCK`, or both.
        handshake: Do it; False leaves it to the caller: write 8 bytes of protocol, read them back.
        timeout: A fault that is not answered for so long ends: `UserFault`, EFAULT in a system call. None: never, as in
            2014; a fault inside a system call that keeps the GIL then stops the whole interpreter if its server is in Python.
        user_mode_only: Do without faults of system calls; every user may have that.

    Raises:
        OSError: EINVAL: other flags. EMFILE: no descriptors left.
        RefusedError: Faults of system calls are not permitted here; `.command` would change it.
    """
    if flags & ~(os.O_CLOEXEC | os.O_NONBLOCK):
        raise OSError(22, f"userfaultfd({flags:#x}): flags are os.O_CLOEXEC and os.O_NONBLOCK")
    seconds = None if timeout is None else parse_seconds(timeout)
    nonblocking = bool(flags & os.O_NONBLOCK)
    opened = Userfaultfd2014(nonblocking=nonblocking, user_mode_only=user_mode_only, timeout_seconds=seconds)
    if handshake:
        opened.write(PROTOCOL.to_bytes(8, sys.byteorder))
        opened.read(8)
    return opened


@dataclass(frozen=True)
class FdInfo:
    """What /proc showed of a descriptor.

    Attributes:
        pending: Faults that nobody has read.
        total: Those, and those that were read and not woken.
        protocols: The one of the handshake.
        timeouts: Faults that ended because nobody answered in time.
    """

    pending: int
    total: int
    protocols: int
    timeouts: int


class Userfaultfd2014(_core.NativeUserfaultfd2014):
    """A descriptor as the proposal had it. Made by `userfaultfd`.

    Closing it never shows zeros: who waits, and who touches a hole later, gets SIGBUS. A Python thread may serve it: a thread
    that touches a hole while it holds the GIL is made to give it up. That happens in the middle of whatever C function touched
    the memory; a function that relies on the GIL for longer than that must find its pages there (`remap_anon_pages` them in first).
    """

    def __enter__(self) -> Userfaultfd2014:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        phase, unread, unwoken, _ = self.standing()
        return f"<Userfaultfd2014 {self.ident}: {phase}, {unread} unread, {unwoken} not woken>"

    def wake(self, address: int, length: int = PAGE_SIZE) -> None:
        """Wake those whose faults in the range were read.

        Raises:
            OSError: ENOENT: there are none. EINVAL, ERANGE, ENOMEM: the range makes no sense.
        """
        super().wake(address, length)

    @property
    def state(self) -> str:
        """Return "ask", "ack", "unknown", "running" or "closed"."""
        return self.standing()[0]

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self.state == "closed"

    @property
    def pending(self) -> int:
        """Return how many faults nobody has read."""
        return self.standing()[1]

    @property
    def unwoken(self) -> int:
        """Return how many faults were read and not woken."""
        return self.standing()[2]

    def fdinfo(self) -> FdInfo:
        """Return what /proc showed of a descriptor in 2014."""
        _, unread, unwoken, timeouts = self.standing()
        return FdInfo(unread, unread + unwoken, PROTOCOL, timeouts)


@dataclass(frozen=True)
class RangeInfo:
    """A flagged or registered range.

    Attributes:
        start: First address.
        length: Bytes.
        flagged: Has it the flag?
        owner: `ident` of the descriptor it is registered with, or None.
        fork: "deny": it is kept out of forked children; None: it cannot fault.
        resolver: What a SIGBUS leads to: "raise", "default", "callable" or "source"; None: it is not flagged.
    """

    start: int
    length: int
    flagged: bool
    owner: int | None
    fork: str | None
    resolver: str | None


def ranges() -> list[RangeInfo]:
    """Return every flagged or registered range, by address."""
    return [
        RangeInfo(start, length, flagged, owner, "deny" if denied else None, resolver if flagged else None)
        for start, length, flagged, owner, denied, resolver in _core.mman_ranges()
    ]


def _writable(place: Any) -> Any:
    """Refuse what nobody may write: a resolver could not fill it, and a const buffer is somebody else's."""
    if not isinstance(place, tuple) and memoryview(place).readonly:
        raise TypeError("a range is a writable buffer or (address, length); this buffer is read-only")
    return place


__all__ = [
    "PAGE_SIZE",
    "PROTOCOL",
    "RAP_ALLOW_SRC_HOLES",
    "Advice",
    "FdInfo",
    "Protection",
    "RangeInfo",
    "UserFault",
    "Userfaultfd2014",
    "address_of",
    "anonymous",
    "madvise",
    "mprotect",
    "on_sigbus",
    "policy",
    "ranges",
    "remap_anon_pages",
    "set_policy",
    "userfaultfd",
    *[f"MADV_{advice.name}" for advice in Advice],
    *[f"PROT_{bit}" for bit in ("NONE", "READ", "WRITE", "EXEC", "USERFAULT")],
]
