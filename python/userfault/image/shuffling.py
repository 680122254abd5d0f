"""The byte-shuffle: an array's bytes in an order in which zstd finds more in them, and back.

In each block all first bytes of the items come first, then all second bytes, and so on. Numbers that differ little share
their upper bytes: these become long runs, and what is noise is kept as it is instead of being searched.
"""

from __future__ import annotations

import math
import operator
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsIndex, TypeAlias

from userfault import _core
from userfault.errors import ImageError, OptionError
from userfault.image.reading import Source, cut
from userfault.image.writing import Writable, write_all
from userfault.units import parse_bytes

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

ItemType: TypeAlias = "DTypeLike | SupportsIndex"
"""A NumPy dtype such as "f4", or the size of an item in bytes."""

BLOCK_BYTES = 64 << 10
"""What is shuffled together, if nobody says otherwise."""

_PIECE_BYTES = 1 << 20
_NPY_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class Shuffle:
    """How bytes were shuffled.

    The whole is cut into blocks, and in each its whole items are shuffled; bytes before the first and behind the last whole
    item stay where they are.
    """

    item_bytes: int
    """The size of an item, from 2 to 255 bytes."""
    block_bytes: int = BLOCK_BYTES
    """How many bytes are shuffled together."""
    offset: int = 0
    """Where the first item begins: behind a header."""

    def __post_init__(self) -> None:
        if not 2 <= self.item_bytes <= _core.MAX_ITEM_BYTES:
            raise OptionError(f"items of {self.item_bytes} bytes: 2 to {_core.MAX_ITEM_BYTES} can be shuffled")
        if not self.item_bytes <= self.block_bytes <= _core.MAX_BLOCK_BYTES:
            raise OptionError(
                f"blocks of {self.block_bytes} bytes: they must hold an item of {self.item_bytes}, "
                f"and are {_core.MAX_BLOCK_BYTES} at most"
            )
        if self.offset < 0:
            raise OptionError(f"offset={self.offset}: must be 0 or more")

    @property
    def numbers(self) -> tuple[int, int, int]:
        """As the native half takes it."""
        return self.item_bytes, self.block_bytes, self.offset

    def command(self, path: str) -> str:
        """The shell command that gives the bytes inside the image at `path` without this package's reader of images."""
        options = f"--dtype {self.item_bytes} --block {self.block_bytes} --offset {self.offset}"
        return f"zstd -dc -- {shlex.quote(path)} | userfault unshuffle {options}"


def item_bytes_of(dtype: ItemType) -> int:
    """The size of an item.

    Args:
        dtype: a NumPy dtype, its name such as "f4", or a number of bytes.

    Returns:
        Bytes, 2 to 255.

    Raises:
        OptionError: no such type, Python objects, or items that cannot be shuffled.

    Example:
        >>> item_bytes_of("f4"), item_bytes_of("complex128"), item_bytes_of(3)
        (4, 16, 3)
    """
    try:
        size = operator.index(int(dtype) if isinstance(dtype, str) and dtype.isdecimal() else dtype)  # type: ignore[arg-type]
    except TypeError:
        size = _size_of_dtype(dtype)
    if not 2 <= size <= _core.MAX_ITEM_BYTES:
        raise OptionError(f"dtype={dtype!r}: items of {size} bytes; 2 to {_core.MAX_ITEM_BYTES} can be shuffled")
    return size


def _size_of_dtype(dtype: ItemType) -> int:
    import numpy as np

    try:
        found = np.dtype(dtype)  # type: ignore[arg-type]
    except (TypeError, ValueError, SyntaxError):
        raise OptionError(f"dtype={dtype!r}: must be a NumPy dtype such as f4, or a number of bytes") from None
    if found.hasobject:
        raise OptionError(f"dtype={dtype!r}: Python objects are no bytes")
    return found.itemsize


def npy_data_offset(head: bytes) -> int:
    """Where the items of a ``.npy`` file begin, by its first bytes; 0 of any other file."""
    if not head.startswith(_NPY_MAGIC) or len(head) < 12:
        return 0
    width = 2 if head[6] == 1 else 4
    return 8 + width + int.from_bytes(head[8 : 8 + width], "little")


def unshuffle(source: Source, out: Writable, shuffle: Shuffle, *, length: int | None = None) -> int:
    """Undo a byte-shuffle, a piece at a time: of what ``zstd -d`` gives of an image that was packed with a dtype.

    Args:
        source: a path, a binary file object (read to its end), or a bytes-like object.
        out: a binary file object.
        shuffle: how the bytes were shuffled, all of them: `ImageInfo.shuffle` of an image.
        length: how many bytes there must be, if that is known.

    Returns:
        How many bytes were written.

    Raises:
        ImageError: there are fewer or more bytes than `length`; what was there has been written.
        OSError: something cannot be read or written.

    Memory: a few pieces of 1 MiB, or blocks where these are larger.

    Example:
        >>> import io
        >>> out = io.BytesIO()
        >>> unshuffle(b"acebdf", out, Shuffle(item_bytes=2)), out.getvalue()
        (6, b'abcdef')
    """
    done = 0
    for piece in _pieces(source, shuffle.block_bytes):
        write_all(out, _core.unshuffle(piece, shuffle.numbers, done))
        done += len(piece)
        if length is not None and done > length:
            break
    if length is not None and done != length:
        raise ImageError(f"{'more than ' if done > length else ''}{min(done, length)} bytes came, and {length} were expected")
    return done


def _pieces(source: Source, block_bytes: int) -> Iterator[bytes]:
    piece_bytes = max(_PIECE_BYTES // block_bytes, 1) * block_bytes
    pieces = cut(source, block_bytes, piece_bytes)
    try:
        for piece in pieces.pieces:
            if isinstance(piece, int):
                yield from (bytes(min(piece_bytes, piece - at)) for at in range(0, piece, piece_bytes))
            else:
                yield piece
    finally:
        pieces.close()


def shuffle_for(dtype: ItemType, frame_bytes: int, block: str | int | None, offset: str | int | None, head: bytes) -> Shuffle:
    """The shuffle that was asked for, of a file that begins with `head`.

    Args:
        dtype: as `item_bytes_of` takes it.
        frame_bytes: must be a multiple of the block.
        block: bytes shuffled together; 64 KiB if that fits the frame, otherwise what fits both, if None.
        offset: where items begin; behind the header of a ``.npy`` file, otherwise at 0, if None.
        head: the first bytes of the file.

    Raises:
        OptionError: an option is not possible.
    """
    block_bytes = math.gcd(BLOCK_BYTES, frame_bytes) if block is None else parse_bytes(block, "block")
    start = npy_data_offset(head) if offset is None else parse_bytes(offset, "offset")
    shuffle = Shuffle(item_bytes_of(dtype), block_bytes, start)
    if frame_bytes % block_bytes:
        raise OptionError(f"block={block!r}: the frame, {frame_bytes} bytes, must be a multiple of it")
    return shuffle
