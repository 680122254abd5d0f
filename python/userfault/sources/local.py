"""Sources that are native code: zeros, bytes, files, images, and layers around any source."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from userfault import _core
from userfault.errors import OptionError
from userfault.sources.base import Source, native
from userfault.units import parse_bytes, parse_count, parse_seconds

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Bytes", "Checksum", "Deadline", "File", "Image", "Retry", "Zero"]


@dataclass(frozen=True)
class Zero(Source):
    """Memory of zeros that costs nothing until it is written.

    Args:
        length: Bytes, or a string such as "64GiB".
    """

    length: int | str

    def open(self) -> _core.NativeSource:
        """Open it; see `Source.open`."""
        return _core.NativeSource.zero(parse_bytes(self.length, "length"))


class Bytes(Source):
    """Bytes that are in memory already; kept alive, and read by the kernel alone.

    They must not change while regions of them are open: a page that was evicted would come back different.

    Args:
        buffer: Any contiguous object with the buffer protocol. Memory of a Region is refused.
    """

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer

    def open(self) -> _core.NativeSource:
        """Open it; see `Source.open`."""
        view = memoryview(self.buffer)
        if not view.c_contiguous:
            raise OptionError("Bytes: the buffer must be contiguous; numpy.ascontiguousarray makes it so")
        return _core.NativeSource.bytes(view.cast("B"), _is_heap(self.buffer))

    def __repr__(self) -> str:
        return f"Bytes({memoryview(self.buffer).nbytes} bytes)"

    def __reduce__(self) -> tuple[Any, ...]:
        return Bytes, (bytes(self.buffer),)


def _is_heap(buffer: Buffer) -> bool:
    """Whether the interpreter or NumPy allocated these bytes: reading them then waits for nothing and cannot fail."""
    kind = type(buffer)
    owns = kind.__name__ == "ndarray" and getattr(getattr(buffer, "flags", None), "owndata", False)
    return kind in (bytes, bytearray) or bool(owns)


#: Device, inode, length, and last change in seconds and nanoseconds.
Seen: TypeAlias = tuple[int, int, int, int, int]


class _Named(Source):
    """Opened by the name of a file. In a pager `_seen` tells which file that was in its owner; another one is refused."""

    _seen: Seen | None = None


@dataclass(frozen=True)
class File(_Named):
    """A range of a file, read with pread and never mapped: a bad sector is a PageError, not a crash.

    The length is fixed when it is opened: growth is not seen, a byte that was truncated away is a PageError.
    For a local uncompressed file the kernel's own paging (`numpy.memmap`) is faster; use this for its errors, its units and
    its limits.

    Args:
        path: The file.
        offset: First byte.
        length: Bytes; None: to the end.
    """

    path: str | os.PathLike[str]
    offset: int | str = 0
    length: int | str | None = None

    def open(self) -> _core.NativeSource:
        """Open it; see `Source.open`."""
        length = None if self.length is None else parse_bytes(self.length, "length")
        return _core.NativeSource.file(os.fspath(self.path), parse_bytes(self.offset, "offset"), length, self._seen)


@dataclass(frozen=True)
class Image(_Named):
    """The bytes inside a seekable zstd image, decoded frame by frame as they are touched.

    Args:
        path: A file made by `userfault pack`, or by any writer of the seekable format; or a Source of the bytes of one, of
            which the seek table is read when it is opened, and each frame when it is touched.
    """

    path: str | os.PathLike[str] | Source

    def open(self) -> _core.NativeSource:
        """Open it; see `Source.open`. A damaged or hostile file raises ImageError, a source that fails PageError."""
        if isinstance(self.path, Source):
            return native(self.path).unpacked()
        return _core.NativeSource.image(os.fspath(self.path), self._seen)


_MOST_ATTEMPTS = 2**32 - 1


@dataclass(frozen=True)
class Retry(Source):
    """Read again where a failure may pass (EIO, ETIMEDOUT, ESTALE, a deadline …), with doubling pauses.

    Args:
        source: Any source.
        attempts: Reads in all, at least 1.
        pause: Before the second read; seconds, or a string such as "10ms".
    """

    source: Source
    attempts: int = 3
    pause: float | str = "10ms"

    def open(self) -> _core.NativeSource:
        """Open it; see `Source.open`."""
        attempts = parse_count(self.attempts, "attempts", 1, _MOST_ATTEMPTS)
        return native(self.source).retry(attempts, parse_seconds(self.pause, "pause"))


@dataclass(frozen=True)
class Deadline(Source):
    """Give up on a read after a while: its page then raises PageError.

    The read goes on in a thread of its own and its result is thrown away.

    Args:
        source: Any source.
        limit: Seconds, or a string such as "5s".
    """

    source: Source
    limit: float | str

    def open(self) -> _core.NativeSource:
        """Open it; see `Source.open`."""
        limit = parse_seconds(self.limit, "limit")
        if limit == 0:
            raise OptionError(f"limit={self.limit!r}: must be above zero, or no read would ever be in time")
        return native(self.source).deadline(limit)


@dataclass(frozen=True)
class Checksum(Source):
    """Verify the XXH64 of every block that is read.

    Args:
        source: Any source.
        block: Bytes in a block; the last may be shorter.
        sums: XXH64 (seed 0) of each block, as integers.
    """

    source: Source
    block: int | str
    sums: Sequence[int] = field(repr=False)

    def open(self) -> _core.NativeSource:
        """Open it; see `Source.open`."""
        sums = [parse_count(value, f"sums[{number}]", 0, 2**64 - 1) for number, value in enumerate(self.sums)]
        return native(self.source).checksum(parse_bytes(self.block, "block"), sums)
