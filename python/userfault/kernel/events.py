"""What can be read from a userfaultfd: faults, and news about the address space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from userfault.kernel.flags import FaultFlags

if TYPE_CHECKING:
    from userfault.kernel.uffd import Userfaultfd


@dataclass(frozen=True, slots=True)
class PageFault:
    """Somebody touched a page and waits. A signal makes him ask again, so expect duplicates.

    Attributes:
        address: of the page; the exact one with `Features.EXACT_ADDRESS`.
        flags: what kind of access.
        thread: id of the thread in its own pid namespace, with `Features.THREAD_ID`; it may be of a foreign process.
    """

    address: int
    flags: FaultFlags
    thread: int | None

    @property
    def missing(self) -> bool:
        """Whether the page is not there at all."""
        return not self.flags & (FaultFlags.WP | FaultFlags.MINOR | FaultFlags.RWP)

    @property
    def write(self) -> bool:
        """Whether it was a write."""
        return bool(self.flags & FaultFlags.WRITE)


@dataclass(frozen=True, slots=True)
class Fork:
    """The process forked.

    Attributes:
        child: the descriptor for the child's memory, open and ours; closing it gives the child silent zeros.
    """

    child: Userfaultfd


@dataclass(frozen=True, slots=True)
class Remap:
    """A range was moved, and its registration with it.

    Attributes:
        source: old address.
        destination: new address.
        length: bytes.
    """

    source: int
    destination: int
    length: int


@dataclass(frozen=True, slots=True)
class Remove:
    """Pages of ``[start, stop)`` are about to be dropped; the thread that does it goes on once this was read.

    Attributes:
        start: first address.
        stop: address after the last.
    """

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Unmap:
    """``[start, stop)`` was unmapped.

    Attributes:
        start: first address.
        stop: address after the last.
    """

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Unknown:
    """A message that this version has no name for.

    Attributes:
        event: the kernel's number.
    """

    event: int


Event: TypeAlias = PageFault | Fork | Remap | Remove | Unmap | Unknown
"""Anything that `Userfaultfd.read_events` returns."""
