"""What is packed, in pieces: bytes that were read, or a number of bytes known to be zero without reading."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from userfault.errors import ImageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


@runtime_checkable
class Readable(Protocol):
    """Anything with a binary ``read``."""

    def read(self, size: int, /) -> bytes | None:
        """Up to `size` bytes; none at the end."""


Source: TypeAlias = "str | os.PathLike[str] | Readable | ReadableBuffer"
Piece: TypeAlias = "bytes | int"
"""Bytes, or so many zeros."""


@dataclass(frozen=True)
class Pieces:
    """A source cut into pieces, each a multiple of the frame size (the last one aside)."""

    total_bytes: int | None
    """How many bytes there will be, if that is known."""
    pieces: Iterator[Piece]
    close: Callable[[], object] = lambda: None
    """Gives back what it read from."""


def cut(source: Source, frame_bytes: int, piece_bytes: int) -> Pieces:
    """Cut a source into pieces.

    Args:
        source: a path, a binary file object (read to its end), or a bytes-like object.
        frame_bytes: pieces begin at multiples of this.
        piece_bytes: largest piece of bytes, a multiple of `frame_bytes`.

    Raises:
        OSError: the path cannot be opened.
    """
    if isinstance(source, (str, os.PathLike)):
        return _cut_path(source, frame_bytes, piece_bytes)
    if isinstance(source, Readable):
        return Pieces(None, _read_stream(source, piece_bytes))
    view = memoryview(source).cast("B")
    return Pieces(len(view), (bytes(view[at : at + piece_bytes]) for at in range(0, len(view), piece_bytes)))


def _cut_path(path: str | os.PathLike[str], frame_bytes: int, piece_bytes: int) -> Pieces:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    except BaseException:
        os.close(descriptor)
        raise
    # Files that the kernel makes up as they are read (/proc) say that they have no bytes; only reading tells.
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        stream = os.fdopen(descriptor, "rb")
        return Pieces(None, _read_stream(stream, piece_bytes), stream.close)
    file = _File(descriptor, os.fspath(path), status.st_size)
    return Pieces(file.size, file.pieces(frame_bytes, piece_bytes), lambda: os.close(descriptor))


def _read_stream(stream: Readable, piece_bytes: int) -> Iterator[bytes]:
    while piece := _read_full(stream, piece_bytes):
        yield piece


def _read_full(stream: Readable, size: int) -> bytes:
    """As many bytes as wanted, fewer only at the end: pipes give what they have."""
    parts = []
    left = size
    while left:
        part = stream.read(left)
        if part is None:
            raise BlockingIOError(errno.EAGAIN, "the stream is non-blocking and has nothing yet; give a blocking one")
        if not part:
            break
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


class _File:
    """A regular file that is read by offset, its holes left out."""

    def __init__(self, descriptor: int, name: str, size: int) -> None:
        self.descriptor = descriptor
        self.name = name
        self.size = size

    def pieces(self, frame_bytes: int, piece_bytes: int) -> Iterator[Piece]:
        """Holes as numbers, data as bytes, in order."""
        done = 0
        while done < self.size:
            start = self._next_data(done)
            if start < self.size:
                # A hole that ends within a frame ends for us where the frame begins.
                start = start // frame_bytes * frame_bytes
            if start > done:
                yield start - done
                done = start
                continue
            stop = min(self._data_end(done, frame_bytes), self.size)
            while done < stop:
                piece = self._read(done, min(piece_bytes, stop - done))
                yield piece
                done += len(piece)

    def _next_data(self, offset: int) -> int:
        """Where the first data at or behind `offset` begins; the file's size if there is none."""
        return min(self._seek(offset, os.SEEK_DATA, at_end=self.size), self.size)

    def _data_end(self, offset: int, frame_bytes: int) -> int:
        """Where data ends, rounded up to frames; at least one frame further."""
        hole = self._seek(self._next_data(offset), os.SEEK_HOLE, at_end=self.size)
        return max(-(-hole // frame_bytes), offset // frame_bytes + 1) * frame_bytes

    def _seek(self, offset: int, whence: int, *, at_end: int) -> int:
        try:
            return os.lseek(self.descriptor, offset, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return at_end
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                # The filesystem knows no holes: all of it is data.
                return offset if whence == os.SEEK_DATA else at_end
            raise

    def _read(self, offset: int, size: int) -> bytes:
        parts = []
        while size:
            part = os.pread(self.descriptor, size, offset)
            if not part:
                raise ImageError(f"{self.name}: was cut to {offset} bytes while it was packed; it had {self.size}")
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return b"".join(parts)
