"""Sources: where pages come from.

A source is a small picklable description. `userfault.map` opens it; nothing is read before a page is touched.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from userfault import _core
from userfault.errors import OptionError
from userfault.units import parse_bytes, parse_count, parse_seconds

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Bytes", "Checksum", "Deadline", "File", "Image", "Retry", "Source", "Zero", "native", "source_of"]


class Source:
    """What every source is. Choose one of its subclasses.

    Sources of your own, in Python, are the matter of a later version; today a source is one of this module's, or layers of
    them.
    """

    def open(self) -> _core.NativeSource:
        """Open it: the native half, as `userfault.map` uses it.

        Returns:
            A handle that keeps files open and buffers exported as long as it lives.

        Raises:
            OSError: A file cannot be opened.
            OptionError: The parameters do not fit what was found.
        """
        raise TypeError(f"{type(self).__name__} cannot be opened: a source is one of userfault.sources, or layers of them")


def native(source: Source) -> _core.NativeSource:
    """Open a source, if it is one: for those who were given it.

    Args:
        source: What should be a source.

    Returns:
        As `Source.open`.

    Raises:
        OptionError: It is none; otherwise as `Source.open`.
    """
    if isinstance(source, Source):
        return source.open()
    raise OptionError(
        f"source: must be a Source, such as File, Bytes or Image, and is of type {type(source).__name__}; "
        "only userfault.map takes paths and bytes themselves"
    )


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


@dataclass(frozen=True)
class File(Source):
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
        return _core.NativeSource.file(os.fspath(self.path), parse_bytes(self.offset, "offset"), length)


@dataclass(frozen=True)
class Image(Source):
    """The bytes inside a seekable zstd image, decoded frame by frame as they are touched.

    Args:
        path: A file made by `userfault pack`, or by any writer of the seekable format.
    """

    path: str | os.PathLike[str]

    def open(self) -> _core.NativeSource:
        """Open it; see `Source.open`. A damaged or hostile file raises ImageError."""
        return _core.NativeSource.image(os.fspath(self.path))


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


_ZSTD_FRAME = 0xFD2FB528
_SKIPPABLE_FRAMES = range(0x184D2A50, 0x184D2A60)


def source_of(what: Source | str | os.PathLike[str] | Buffer) -> Source:
    """The source that `what` means: itself, a path opened by what it holds, or bytes in memory.

    Args:
        what: A Source, a path, or an object with the buffer protocol.

    Returns:
        The source; a file that begins as zstd data does is an Image.

    Raises:
        OSError: The file cannot be read.
        TypeError: It is none of these.
    """
    if isinstance(what, Source):
        return what
    if isinstance(what, (str, os.PathLike)):
        with open(what, "rb") as file:
            magic = int.from_bytes(file.read(4), "little")
        return Image(what) if magic == _ZSTD_FRAME or magic in _SKIPPABLE_FRAMES else File(what)
    try:
        memoryview(what)
    except TypeError:
        raise TypeError(f"{type(what).__name__}: expected a Source, a path, or a bytes-like object") from None
    return Bytes(what)
