"""A source whose bytes are kept in chunks: in memory, shared by all regions, and in a directory if one is given."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from userfault import _core
from userfault.errors import OptionError, PageError
from userfault.sources.aside import in_slices
from userfault.sources.base import Source, native
from userfault.sources.chunks import Chunk, Claim, Flight, Key, shared_chunks
from userfault.units import parse_bytes

if TYPE_CHECKING:
    from userfault.sources.disk import DiskChunks

__all__ = ["CacheStatistics", "Cached"]

#: Adjacent missing chunks come with one read, but never more than this in one.
_MOST_BYTES = 8 << 20
_TOKENS = itertools.count()
#: Those of this process, by a number: a class derived from `Cached` may compare, and hash, as it likes.
_ALL: weakref.WeakValueDictionary[int, Cached] = weakref.WeakValueDictionary()


def _begin_all() -> None:
    for cached in list(_ALL.values()):
        cached._begin()


os.register_at_fork(after_in_child=_begin_all)


@dataclass(frozen=True)
class CacheStatistics:
    """What a cached source did so far.

    Attributes:
        found: Chunks that were in memory.
        awaited: Chunks that another thread was fetching already.
        disk: Chunks that were in the directory.
        fetched: Chunks that came from the source.
        reads: Reads of the source: fewer than chunks where adjacent ones were missing.
        corrupt: Chunks in the directory that did not match their checksum, and were fetched again.
    """

    found: int = 0
    awaited: int = 0
    disk: int = 0
    fetched: int = 0
    reads: int = 0
    corrupt: int = 0


class Cached(Source):
    """Reads whole chunks of another source and keeps them.

    The memory is one cache for all Cached sources of the process, as large as the largest `memory` among those that are open.
    Chunks of a source with an `identity` (those over stores) are shared by all that read the same version; of others they are
    this object's own, and forgotten when it is closed. A chunk that several threads want is fetched once, and adjacent missing
    chunks with one read. A failed read keeps nothing.

    Args:
        source: Any source.
        chunk: Bytes in a chunk, or a string such as "1MiB".
        memory: Bytes kept in memory, or a string.
        directory: Where chunks are kept too, for any number of processes and the next start; None: nowhere. Whoever can write
            there decides what is read.
        disk: Bytes that the directory may take.

    Raises:
        OptionError: Sizes that make no sense; when it is opened: a directory for a source without an identity.
    """

    readahead = True
    _open: _Open | None = None

    def __init__(
        self,
        source: Source,
        *,
        chunk: int | str = "1MiB",
        memory: int | str = "256MiB",
        directory: str | os.PathLike[str] | None = None,
        disk: int | str = "10GiB",
    ) -> None:
        if not isinstance(source, Source):
            raise OptionError(f"Cached: takes a Source, and was given one of type {type(source).__name__}")
        self.source = source
        self.chunk = parse_bytes(chunk, "chunk")
        self.memory = parse_bytes(memory, "memory")
        self.directory = None if directory is None else _directory(directory)
        self.disk = parse_bytes(disk, "disk")
        self.unit = source.unit
        if not 0 < self.chunk <= 1 << 30:
            raise OptionError(f"chunk={chunk!r}: must be from 1 byte to 1 GiB")
        self.preferred_size = max(self.chunk, parse_bytes(source.preferred_size or 0))
        self._begin()
        _ALL[next(_TOKENS)] = self
        self._counts = dict.fromkeys(("found", "awaited", "disk", "fetched", "reads"), 0)

    @property
    def length(self) -> int:
        """Bytes."""
        return self._opened().inner.length

    @property
    def identity(self) -> str | None:
        """That of the source, if it has one."""
        found: str | None = getattr(self.source, "identity", None)
        return found

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See `Source.read_into`."""
        first, stop = offset // self.chunk, -(-(offset + len(buffer)) // self.chunk)
        for number, chunk in self._chunks(first, stop):
            start = number * self.chunk
            low, high = max(offset - start, 0), min(offset + len(buffer) - start, self.chunk)
            buffer[start + low - offset : start + high - offset] = memoryview(chunk)[low:high]

    def prefetch_hint(self, offset: int, length: int) -> None:
        """See `Source.prefetch_hint`."""
        self.source.prefetch_hint(offset, length)

    def close(self) -> None:
        """See `Source.close`."""
        with self._lock:
            opened, self._open = self._open, None
        if opened is not None:
            shared_chunks().leave(opened)

    def _begin(self) -> None:
        """Closed, in this process: a forked one may find the lock taken for good, and has no chunks in memory yet."""
        self._lock = threading.RLock()
        self._open = None

    def statistics(self) -> CacheStatistics:
        """What it did so far.

        Returns:
            A snapshot.
        """
        with self._lock:
            opened = self._open
            corrupt = opened.disk.corrupt if opened is not None and opened.disk is not None else 0
            return CacheStatistics(**self._counts, corrupt=corrupt)

    def _opened(self) -> _Open:
        with self._lock:
            if self._open is None:
                self._open = self._open_now()
                shared_chunks().want(self._open, self.memory)
            return self._open

    def _open_now(self) -> _Open:
        inner = native(self.source)
        name = self.identity
        if name is None and self.directory is not None:
            raise OptionError(
                f"directory={self.directory!r}: {self.source!r} has no identity that says which bytes and which version it "
                "gives, so that what was kept could be taken for something else"
            )
        disk = None
        if self.directory is not None:
            from userfault.sources.disk import DiskChunks

            disk = DiskChunks(self.directory, self.disk)
        return _Open(inner, name or f"\0{next(_TOKENS)}", disk)

    def _chunks(self, first: int, stop: int) -> Iterator[tuple[int, Chunk]]:
        """The chunks with these numbers, in any order. What this thread has to fetch it fetches first, then it waits."""
        opened, shared = self._opened(), shared_chunks()
        others: list[tuple[int, Flight]] = []
        claim, mine = Claim(), dict[Key, Flight]()
        try:
            for number in range(first, stop):
                key = (opened.name, self.chunk, number)
                found = shared.find_or_claim(key, claim, mine)
                if not isinstance(found, Flight):
                    self._tell("found")
                    yield number, found
                elif key not in mine:
                    others.append((number, found))
            yield from self._fetched(opened, mine)
        except BaseException as error:
            try:
                _give_up(mine, error)
            finally:
                claim.is_over = True  # whatever came in between
            raise
        for number, flight in others:
            self._tell("awaited")
            in_slices(flight.wait)  # as long as the read lasts: what limits that, and a touch, limits this
            if flight.chunk is not None:
                yield number, flight.chunk
            elif flight.error is not None:
                raise flight.error
            else:
                yield from self._chunks(number, number + 1)

    def _fetched(self, opened: _Open, mine: dict[Key, Flight]) -> Iterator[tuple[int, Chunk]]:
        missing = []
        for (_, _, number), flight in mine.items():
            kept = opened.disk.get(self._disk_name(opened, number), self._size(opened, number)) if opened.disk else None
            if kept is None:
                missing.append(number)
                continue
            self._tell("disk")
            shared_chunks().land((opened.name, self.chunk, number), flight, kept, None)
            yield number, kept
        for run in _runs(missing, max(1, _MOST_BYTES // self.chunk)):
            for number, chunk in self._read(opened, run):
                key = (opened.name, self.chunk, number)
                shared_chunks().land(key, mine[key], chunk, None)
                yield number, chunk
                if opened.disk:
                    opened.disk.put(self._disk_name(opened, number), chunk)

    def _read(self, opened: _Open, run: range) -> Iterator[tuple[int, Chunk]]:
        """Adjacent chunks, with one read."""
        start = run.start * self.chunk
        fresh = bytearray(sum(self._size(opened, number) for number in run))
        try:
            opened.inner.read_into(start, fresh)
        except PageError as error:
            # What the source raised is the cause for the toucher too: one PageError says it all.
            raise error.cause if isinstance(error.cause, BaseException) else error from None
        self._tell("reads")
        self._tell("fetched", len(run))
        if len(run) == 1:
            yield run.start, fresh
            return
        view = memoryview(fresh)
        for number in run:
            low = number * self.chunk - start
            yield number, bytes(view[low : low + self.chunk])  # a copy: a slice would keep all of them alive

    def _size(self, opened: _Open, number: int) -> int:
        return min(self.chunk, opened.inner.length - number * self.chunk)

    def _disk_name(self, opened: _Open, number: int) -> str:
        return f"{opened.name}\0{self.chunk}\0{number}"

    def _tell(self, what: str, more: int = 1) -> None:
        with self._lock:
            self._counts[what] += more

    def __repr__(self) -> str:
        kept = f", directory={self.directory!r}" if self.directory else ""
        return f"Cached({self.source!r}{kept})"

    def __reduce__(self) -> tuple[Any, ...]:
        options = {"chunk": self.chunk, "memory": self.memory, "directory": self.directory, "disk": self.disk}
        return _cached, (self.source, options)

    def __del__(self) -> None:
        if getattr(self, "_open", None) is not None:
            self.close()


def _give_up(mine: dict[Key, Flight], error: BaseException) -> None:
    """Whoever waits for what this thread claimed hears why it does not come; of Ctrl-C he hears nothing, and tries."""
    reason = error if isinstance(error, Exception) else None
    for key, flight in mine.items():
        if not flight.is_landed:
            shared_chunks().land(key, flight, None, reason)


class _Open:
    """What a cached source has while it is open."""

    def __init__(self, inner: _core.NativeSource, name: str, disk: DiskChunks | None) -> None:
        self.inner = inner
        self.name = name
        self.disk = disk


def _cached(source: Source, options: dict[str, Any]) -> Cached:
    return Cached(source, **options)


def _directory(given: str | os.PathLike[str]) -> str:
    path = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not path or not isinstance(path, str):
        raise OptionError(f"directory={given!r}: must be the path of a directory, a str or os.PathLike")
    return os.path.abspath(path)


def _runs(numbers: list[int], most: int) -> Iterator[range]:
    """Adjacent numbers together, `most` of them at most."""
    start = end = None
    for number in numbers:
        if start is not None and end is not None and number == end and end - start < most:
            end += 1
            continue
        if start is not None and end is not None:
            yield range(start, end)
        start, end = number, number + 1
    if start is not None and end is not None:
        yield range(start, end)
