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

Threads: everything may be called from any. GIL: released in all calls but moves of up to 2 MiB.
"""

from __future__ import annotations

import errno
import mmap
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from userfault import _core
from userfault._core import remap_anon_pages
from userfault.errors import OptionError, UserFault
from userfault.mman.descriptor import PROTOCOL, FdInfo, Userfaultfd2014, userfaultfd
from userfault.mman.forked import ForkedUserfaultfd
from userfault.mman.late import TimedOut
from userfault.mman.names import (
    KERNEL_ADVICE,
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DODUMP,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_HUGEPAGE,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_NOUSERFAULT,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_REMOVE,
    MADV_SEQUENTIAL,
    MADV_UNMERGEABLE,
    MADV_USERFAULT,
    MADV_WILLNEED,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_USERFAULT,
    PROT_WRITE,
    Advice,
    Protection,
)
from userfault.region import refresh_handlers
from userfault.sources import Source

if TYPE_CHECKING:
    from typing import TypeAlias

    from typing_extensions import Buffer

    Range: TypeAlias = Buffer | tuple[int, int]
    Resolver: TypeAlias = Callable[[int], object] | Source | signal.Handlers | None
    Policy: TypeAlias = Literal["madvise", "mprotect", "register-only"]

__all__ = [
    "MADV_COLD",
    "MADV_COLLAPSE",
    "MADV_DODUMP",
    "MADV_DOFORK",
    "MADV_DONTDUMP",
    "MADV_DONTFORK",
    "MADV_DONTNEED",
    "MADV_DONTNEED_LOCKED",
    "MADV_FREE",
    "MADV_GUARD_INSTALL",
    "MADV_GUARD_REMOVE",
    "MADV_HUGEPAGE",
    "MADV_MERGEABLE",
    "MADV_NOHUGEPAGE",
    "MADV_NORMAL",
    "MADV_NOUSERFAULT",
    "MADV_PAGEOUT",
    "MADV_POPULATE_READ",
    "MADV_POPULATE_WRITE",
    "MADV_RANDOM",
    "MADV_REMOVE",
    "MADV_SEQUENTIAL",
    "MADV_UNMERGEABLE",
    "MADV_USERFAULT",
    "MADV_WILLNEED",
    "PAGE_SIZE",
    "PROTOCOL",
    "PROT_EXEC",
    "PROT_NONE",
    "PROT_READ",
    "PROT_USERFAULT",
    "PROT_WRITE",
    "RAP_ALLOW_SRC_HOLES",
    "Advice",
    "FdInfo",
    "ForkedUserfaultfd",
    "Protection",
    "RangeInfo",
    "TimedOut",
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
]

PAGE_SIZE = mmap.PAGESIZE
"""Bytes in a page."""
RAP_ALLOW_SRC_HOLES = 1
"""Flag of `remap_anon_pages`: holes of the source are skipped instead of being an error."""


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
    try:
        return mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", errno.ENOMEM)
        why = "no room in the address space, or too many mappings (sysctl vm.max_map_count): ask for less, or close some"
        raise OSError(number, f"mman.anonymous of {length} bytes: {why}") from None


def address_of(buffer: Buffer) -> int:
    """Return the address of a buffer's first byte. It stays there only as long as the buffer does."""
    return _core.range_of(buffer)[0]


def madvise(range: Range, advice: Advice, *, fork: Literal["deny", "follow"] = "deny") -> None:
    """Give advice about memory; `MADV_USERFAULT` is no hint: when the call returns the range is armed.

    Args:
        range: A writable buffer, all of it, or (address, length). A length that is no whole number of pages is rounded up.
        advice: A member of `Advice`. `MADV_USERFAULT` and `MADV_NOUSERFAULT` are ours, the others the kernel's.
        fork: With `MADV_USERFAULT`: "deny", the range is not there in a forked child (MADV_DONTFORK, and a tombstone at its
            address); what the caller had is restored by `MADV_NOUSERFAULT`. "follow": a child has it, and its touches of
            absent pages come to `Userfaultfd2014.accept_fork`, wherever the range is registered with a descriptor; elsewhere
            it is denied all the same. Never zeros: docs, «fork».

    Raises:
        OSError: EINVAL: the range does not start on a page, or holds a mapping that cannot raise userfaults yet (a file,
            shared memory, hugetlbfs, the kernel's own; mappings before it are flagged, those after it are not), or
            MADV_DOFORK on a range that is denied to children. ENOMEM: there are holes; the rest was done.
            EBUSY: another userfaultfd has it. ENOMEM also for too many mappings (vm.max_map_count).
        RefusedError: This process may not have a userfaultfd; "follow" without CAP_SYS_PTRACE: `.command` would change it.
        UnsupportedError: "follow" on a kernel before Linux 6.9.
        TypeError: Not an `Advice`; a read-only buffer.

    Blocks: while pages of the range are being resolved. Source: patch 08 of the series «userfault v2», 3 October 2014.
    """
    if not isinstance(advice, Advice):
        raise TypeError(f"advice must be a member of mman.Advice, such as mman.MADV_USERFAULT; {advice!r} is not")
    if fork not in ("deny", "follow"):
        raise ValueError(f"fork={fork!r}: must be 'deny' or 'follow'")
    if fork == "follow" and advice is not Advice.USERFAULT:
        raise ValueError("fork='follow' goes with MADV_USERFAULT only")
    refresh_handlers()
    if advice in (Advice.USERFAULT, Advice.NOUSERFAULT):
        _core.mman_flag(_writable(range), advice is Advice.USERFAULT, fork == "follow")
    else:
        _core.mman_advise(_writable(range), KERNEL_ADVICE[advice], f"MADV_{advice.name}")


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
    that function works on, nor take a lock (other than an RLock) that code around a touch may hold. An exception in it is
    the `__cause__` of a `UserFault`; coming back without a page, or touching the page it is there for, is a `UserFault` too.
    System calls never get here: EFAULT.

    Raises:
        OSError: EINVAL: not all of it is flagged, the source is shorter or cannot run in a signal handler, or policy
            "register-only".
        OptionError: A source that is Python: a callable is the way.
        TypeError: Not a resolver.
    """
    place = _writable(range)
    refresh_handlers()
    if resolver is None:
        _core.mman_on_sigbus(place, "raise")
    elif isinstance(resolver, Source):
        opened = resolver.open()
        if opened.is_called:
            raise OptionError(f"on_sigbus: {resolver!r} is Python, and called as such here: give a function resolver(address)")
        _core.mman_on_sigbus(place, "source", None, opened)
    elif resolver is signal.SIG_DFL:
        _core.mman_on_sigbus(place, "default")
    elif callable(resolver):
        _core.mman_on_sigbus(place, "callable", resolver)
    else:
        raise TypeError(f"a resolver is a callable, a Source, signal.SIG_DFL or None; {resolver!r} is not")


@dataclass(frozen=True)
class RangeInfo:
    """A flagged or registered range.

    Attributes:
        start: First address.
        length: Bytes.
        flagged: Has it the flag?
        owner: `ident` of the descriptor it is registered with, or None.
        fork: What a fork now would give a child: "deny": it is kept out; "follow": its faults come here; None: it cannot fault.
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
        RangeInfo(start, length, flagged, owner, fork, resolver if flagged else None)
        for start, length, flagged, owner, fork, resolver in _core.mman_ranges()
    ]


def _writable(place: Any) -> Any:
    """Refuse what nobody may write: a resolver could not fill it, and a const buffer is somebody else's."""
    if not isinstance(place, tuple) and memoryview(place).readonly:
        raise TypeError("a range is a writable buffer or (address, length); this buffer is read-only")
    return place
