"""Where a VolatileCache keeps its values: extents of whole pages in a few large volatile buffers.

Address space is cheap; descriptors, mappings and buffers are not. So extents are cut from slabs, each twice as large as the
one before up to a limit, and used again by extents of the same size. Sizes are rounded up to four steps per doubling:
what that wastes is address space, for pages that are never written cost no memory.

Nothing here is locked: the cache does that.
"""

from __future__ import annotations

import mmap
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from userfault import _core
from userfault.errors import RegionClosedError
from userfault.volatile.buffer import VolatileBuffer

__all__ = ["Arena", "Extent"]

SMALLEST_SLAB = 1 << 20
LARGEST_SLAB = 64 << 20


@dataclass(eq=False)
class Slab:
    """One buffer, cut into extents from its start on."""

    buffer: VolatileBuffer
    memory: memoryview
    used: int = 0
    extents: int = 0


@dataclass(frozen=True, slots=True)
class Extent:
    """Some whole pages of a slab, for `stop - start` bytes."""

    slab: Slab = field(repr=False)
    start: int
    stop: int
    room: int

    @property
    def memory(self) -> memoryview:
        """Its bytes, writable; RegionClosedError once the slab is closed."""
        try:
            return self.slab.memory[self.start : self.stop]
        except ValueError:
            raise RegionClosedError("the VolatileCache is closed") from None

    def window(self, holder: object) -> _core.Window:
        """The same, read-only, as an object of its own, which keeps `holder` alive; RegionClosedError likewise."""
        try:
            return _core.Window(self.slab.buffer, self.start, self.stop, holder)
        except BufferError:
            raise RegionClosedError("the VolatileCache is closed") from None

    @property
    def pages(self) -> slice:
        """Its pages, as numbers in its buffer."""
        return slice(self.start // mmap.PAGESIZE, -(-self.stop // mmap.PAGESIZE))

    def pin(self) -> bool:
        """Keep it; true: nothing of it was lost."""
        return not _core.volatile_pin(self.slab.buffer, self.start, self.stop)[0]

    def unpin(self) -> None:
        """Let the kernel have it."""
        # No other extent has a part of the last page, which therefore counts as whole.
        _core.volatile_unpin(self.slab.buffer, self.start, self.pages.stop * mmap.PAGESIZE)


def rounded(length: int) -> int:
    """Bytes set aside for a value: whole pages, their number rounded up to four steps per doubling."""
    pages = -(-length // mmap.PAGESIZE)
    step = 1 << max(0, pages.bit_length() - 3)
    return -(-pages // step) * step * mmap.PAGESIZE


class Arena:
    """All slabs of a cache."""

    def __init__(self) -> None:
        self.slabs: list[Slab] = []
        self._free: defaultdict[int, list[tuple[Slab, int]]] = defaultdict(list)
        self._next_size = SMALLEST_SLAB

    def allocate(self, length: int) -> Extent:
        """Room for `length` bytes, above zero; its contents are zeros."""
        room = rounded(length)
        free = self._free[room]
        while free:
            slab, start = free.pop()
            if slab in self.slabs:
                break
        else:
            slab = self._slab_with(room)
            start = slab.used
            slab.used += room
        extent = Extent(slab, start, start + length, room)
        slab.extents += 1  # last, with no call behind it after which an exception from outside could come
        return extent

    def free(self, extent: Extent) -> None:
        """Give an extent back, and its memory to the kernel; of a slab the last one takes the slab along."""
        slab = extent.slab
        if slab not in self.slabs:
            return  # closed meanwhile
        slab.extents -= 1
        if slab.extents == 0 and slab is not self.slabs[-1]:
            self.slabs.remove(slab)
            close(slab)
            return
        try:
            _core.volatile_discard(slab.buffer, extent.start, extent.stop)
        except OSError:  # all memory has been locked since (mlockall): what is there stays, and nobody gets it
            return
        self._free[extent.room].append((slab, extent.start))

    def states(self) -> Iterator[tuple[Slab, bytes]]:
        """Each slab, with the states of its pages."""
        return ((slab, slab.buffer.page_states()) for slab in self.slabs)

    def close(self) -> None:
        """Let go of all slabs; one that is looked at goes when its last view does."""
        slabs, self.slabs = self.slabs, []
        self._free.clear()
        for slab in slabs:
            close(slab)

    def _slab_with(self, room: int) -> Slab:
        if self.slabs and self.slabs[-1].used + room <= self.slabs[-1].buffer.nbytes:
            return self.slabs[-1]
        buffer = VolatileBuffer(max(room, self._next_size))
        self._next_size = min(2 * self._next_size, LARGEST_SLAB)
        slab = Slab(buffer, memoryview(buffer))
        # A slab that is full from the start never is the one to be cut from.
        self.slabs.insert(len(self.slabs) - 1 if room == buffer.nbytes and self.slabs else len(self.slabs), slab)
        return slab


def close(slab: Slab) -> None:
    """Let go of one."""
    slab.memory.release()
    slab.buffer.close_when_free()
