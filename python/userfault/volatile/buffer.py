"""VolatileBuffer: memory that the kernel may take while it is unpinned."""

from __future__ import annotations

import mmap
import operator
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Literal, NoReturn, SupportsIndex

from userfault import _core
from userfault.errors import OptionError, PageError, RegionClosedError
from userfault.region import Options, Region
from userfault.sources import Source, source_of
from userfault.units import format_bytes, parse_bytes, parse_seconds
from userfault.volatile import turns

if TYPE_CHECKING:
    import os

    from typing_extensions import Buffer

__all__ = ["VolatileBuffer", "VolatileState"]


@dataclass(frozen=True)
class VolatileState:
    """How many bytes of a buffer are in which state; the sum is its size.

    Attributes:
        untouched: Zeros, never written since the buffer was made or their loss was told; they cost no memory.
        pinned: Written, and kept.
        volatile: The kernel may take them; it has not yet.
        purged: The kernel took them. A touch raises, or refills.
        refilled: The kernel took them and a touch refilled them; kept until they are unpinned again.
    """

    untouched: int = 0
    pinned: int = 0
    volatile: int = 0
    purged: int = 0
    refilled: int = 0


@dataclass(frozen=True)
class _Lost(Source):
    """What stands behind a volatile buffer: zeros at first, later the refill or an error."""

    length: int
    refill: Source | None
    native: _core.NativeSource

    def open(self) -> _core.NativeSource:
        return self.native


class VolatileBuffer(Region):
    """Memory that begins as zeros, and of which unpinned pages may be taken by the kernel when memory is short.

    It is ordinary memory while it is pinned, as it is at first. Pages that were unpinned keep their contents until the
    kernel needs memory: those it takes first, the longest unpinned before the others, without writing them anywhere. A
    touch of a page that was taken raises `PagePurged` in the thread that touched it, or brings the bytes of `refill` there.
    Reading an unpinned page changes nothing; writing to it keeps it from being taken until it is unpinned again.

    It has the buffer protocol and everything a `Region` has; `read` and `populate` raise `PagePurged` before a byte is seen.

    Args:
        size: Bytes, or a string such as "64MiB".
        delivery: "signal": the touching thread is told, and a system call on a purged page gets EFAULT. "thread": fault
            threads are told, which a slow refill needs. None: "signal", unless the refill cannot be read so.
        refill: A source (or a path, or bytes) that says what purged pages hold, at the same offsets; at least as long.
        timeout: How long a refill may take; seconds, or a string such as "30s".

    Raises:
        RefusedError: A PermissionError: this process may not have a userfaultfd.
        UnsupportedError: An OSError, by `unpin`: PAGEMAP_SCAN is missing (Linux 6.7). Before 6.6 a touch of a purged page ends
            the process, with a line.
        OptionError: A ValueError: a size or a refill that makes no sense.
        OSError: There is no room.

    Fork: a child cannot use it, as any region. Pickle: refused, for there is nothing it could be made of again.

    Attributes:
        source: What stands behind it; `source.refill` is the refill, or None.
        options: How it was opened.

    Example:
        >>> buffer = VolatileBuffer("1MiB")
        >>> buffer.numpy()[:5] = 7
        >>> buffer.unpin()
        >>> lost = buffer.pin()
    """

    source: _Lost
    _blocks: list[_Block]
    _lock: threading.RLock  # of _blocks; a signal handler may come in between

    def __new__(
        cls,
        size: int | str,
        *,
        delivery: Literal["signal", "thread"] | None = None,
        refill: Source | str | os.PathLike[str] | Buffer | None = None,
        timeout: float | str = "30s",
    ) -> VolatileBuffer:
        """Make one; see the class."""
        length = parse_bytes(size)
        seconds = parse_seconds(timeout)
        if length == 0 or seconds <= 0:
            raise OptionError(f"size={size!r}, timeout={timeout!r}: must be above zero")
        source = None if refill is None else source_of(refill)
        native = _core.volatile_source(length, None if source is None else source.open())
        chosen = delivery or ("signal" if native.signal_safe else "thread")
        options = Options(delivery=chosen, unit=mmap.PAGESIZE, mode="c", timeout=seconds)
        self = super().__new__(cls, _Lost(length, source, native), options)
        self._blocks = []
        self._lock = threading.RLock()
        return self

    def unpin(self, start: SupportsIndex = 0, stop: SupportsIndex | None = None) -> None:
        """Let the kernel take the whole pages inside a range when it needs memory.

        A page of which only a part lies in the range stays as it is. Pages that were never written are nothing to take.

        Args:
            start: First byte.
            stop: Behind the last byte; None: the end.

        Raises:
            OptionError: The range does not lie in the buffer.
            OSError: EINVAL: the memory is locked (mlock, mlockall), and locked pages cannot be volatile.
            RegionClosedError: The buffer is closed.

        Blocks: no. GIL: released. Cost: some 60 ns a page.
        """
        _core.volatile_unpin(self, *self._bounds(start, stop))

    def pin(self, start: SupportsIndex = 0, stop: SupportsIndex | None = None) -> list[slice]:
        """Keep all pages that a range touches, and say which of them the kernel took since they were unpinned.

        Each loss is told once. A lost page holds zeros from then on, or the bytes of the refill. Threads that unpin the same
        page share it: the last word counts; see `pinned`.

        Args:
            start: First byte.
            stop: Behind the last byte; None: the end.

        Returns:
            Slices of the buffer, in bytes, whole pages, neighbours joined, in order; empty: everything is as it was.

        Raises:
            PageError: The refill failed: what is lost stays so, and is told by the next `pin`.
            OSError: EDEADLK: this thread is in the middle of pinning some of them, and this is their refill, or a signal handler
                that came in between. ETIMEDOUT: another thread is, and its refill got no further for the buffer's `timeout`.
            OptionError: The range does not lie in the buffer.
            RegionClosedError: The buffer is closed.

        Blocks: while a refill is read, by another thread's pin of the same pages too; Ctrl-C works between pages. GIL: released.
            Cost: some 160 ns a page.
        """
        bounds = self._bounds(start, stop)
        with _as_interrupted():
            lost, _ = _core.volatile_pin(self, *bounds)
        return self._slices(lost)

    def pinned(self, start: SupportsIndex = 0, stop: SupportsIndex | None = None) -> AbstractContextManager[list[slice]]:
        """Pin a range for the length of a block; what was volatile before is so again after it.

        Blocks may be nested, and overlap in several threads: a page is kept until the last block that needs it is left.
        An `unpin` inside of a block is obeyed at once.

        Args:
            start: First byte.
            stop: Behind the last byte; None: the end.

        Returns:
            A context manager; its value is what was lost, as `pin` says it.

        Raises:
            PageError: As `pin`; likewise for the others.
        """
        first, last = self._bounds(start, stop)
        block = _Block(range(first // mmap.PAGESIZE, -(-last // mmap.PAGESIZE)))
        begin = partial(self._enter, block, first, last)
        return _core.Finally(partial(self._leave, block), turns.calls, turns.catch_up, begin)

    def state(self) -> VolatileState:  # type: ignore[override]
        """Count the bytes in each state, as the kernel has it now.

        Returns:
            A snapshot; the kernel may take volatile pages at any time.

        Raises:
            RegionClosedError: The buffer is closed.

        GIL: released. Cost: some 20 ns a page.
        """
        states = self.page_states()
        names = [field.name for field in fields(VolatileState)]
        counts = {name: states.count(number) * mmap.PAGESIZE for number, name in enumerate(names)}
        counts[names[states[-1]]] -= len(states) * mmap.PAGESIZE - self.nbytes  # the last page may be shorter
        return VolatileState(**counts)

    def page_states(self) -> bytes:
        """The state of each page.

        Returns:
            One byte a page: 0 untouched, 1 pinned, 2 volatile, 3 purged, 4 refilled; as in `VolatileState`.

        Raises:
            RegionClosedError: The buffer is closed.
        """
        return _core.volatile_pages(self)

    def __repr__(self) -> str:
        facts = [f"delivery={self.options.delivery!r}"]
        if self.source.refill is not None:
            facts.append(f"refill={self.source.refill!r}")
        phase = self._phase()
        if phase == "open":
            state = self.state()
            facts += [
                f"{format_bytes(count)} {field.name}" for field in fields(state) if (count := getattr(state, field.name)) > 0
            ]
        return f"<VolatileBuffer of {format_bytes(self.nbytes)}: {', '.join(facts)}, {phase}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a VolatileBuffer cannot be pickled or copied: nothing but it holds its bytes; send `buffer.read()`")

    def _phase(self) -> str:
        # `state` of the native class, which `state()` hides here.
        return str(_core.NativeRegion.state.__get__(self))

    def _bounds(self, start: SupportsIndex, stop: SupportsIndex | None) -> tuple[int, int]:
        first = operator.index(start)
        last = self.nbytes if stop is None else operator.index(stop)
        if not 0 <= first <= last <= self.nbytes:
            raise OptionError(f"bytes {first} to {last} do not lie in the buffer's {self.nbytes} bytes")
        return first, last

    def _slices(self, runs: list[tuple[int, int]]) -> list[slice]:
        return [slice(start * mmap.PAGESIZE, min(stop * mmap.PAGESIZE, self.nbytes)) for start, stop in runs]

    def _enter(self, block: _Block, first: int, last: int) -> list[slice]:
        if self._phase() == "open":  # in a forked child the lock may be taken for good
            with self._lock:
                self._blocks.append(block)  # before it is pinned: who leaves a block meanwhile leaves this one's pages to it
        # One call, after which an exception from outside may come: what it did is known then.
        with _as_interrupted():
            block.found.extend(map(_core.volatile_pin, [self], [first], [last]))
        lost, _ = block.found[0]
        return self._slices(lost)

    def _leave(self, block: _Block) -> None:
        """Unpin what was volatile before a block; what another block needs too becomes that one's to unpin. Again is fine."""
        if self._phase() != "open":
            return
        with self._lock:
            if block not in self._blocks:
                return
            rest = block.owed + [range(*run) for _, were_volatile in block.found for run in were_volatile]
            for other in self._blocks:
                rest = rest if other is block else [part for run in rest for part in other.take_over(run)]
            for run in rest:
                with suppress(OSError, RegionClosedError):  # all memory has been locked since (mlockall): then it stays
                    _core.volatile_unpin(self, run.start * mmap.PAGESIZE, min(run.stop * mmap.PAGESIZE, self.nbytes))
            self._blocks.remove(block)


@dataclass(eq=False)
class _Block:
    """A `pinned` block that is being executed: its pages, what pinning them found, and what other blocks leave it to unpin."""

    pages: range
    found: list[tuple[list[tuple[int, int]], list[tuple[int, int]]]] = field(default_factory=list)
    owed: list[range] = field(default_factory=list)

    def take_over(self, run: range) -> list[range]:
        """Keep what this block needs of a run; answer the rest."""
        shared = range(max(run.start, self.pages.start), min(run.stop, self.pages.stop))
        if not shared:
            return [run]
        self.owed.append(shared)
        return [part for part in (range(run.start, shared.start), range(shared.stop, run.stop)) if part]


@contextmanager
def _as_interrupted() -> Iterator[None]:
    """Ctrl-C in the middle of a refill in Python is Ctrl-C, and no error of the refill's; so is whatever is no Exception."""
    try:
        yield
    except PageError as error:
        if isinstance(error.cause, BaseException) and not isinstance(error.cause, Exception):
            raise error.cause from None
        raise
