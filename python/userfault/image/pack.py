"""Pack a file into an image: read in pieces, compressed by all CPUs, written in order."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from userfault import _core
from userfault.errors import OptionError
from userfault.image.ordered import check_threads, map_ordered
from userfault.image.reading import Piece, Pieces, Source, cut
from userfault.image.shuffling import ItemType, Shuffle, shuffle_for
from userfault.image.writing import ImageWriter, Writable, whole_file
from userfault.units import format_bytes, parse_bytes

PIECE_BYTES = 1 << 20
"""Threads are given about this much at a time."""

LEAST_FRAME_BYTES = 4096
MOST_FRAME_BYTES = 64 << 20

Progress: TypeAlias = "Callable[[int, int | None], object]"
"""Called with (bytes done, bytes in all or None)."""

_Encoded: TypeAlias = "list[tuple[bytes, bytes] | int]"


@dataclass(frozen=True)
class Packed:
    """What `pack` made."""

    decoded_bytes: int
    """What it was given."""
    file_bytes: int
    """What the image takes."""
    frames: int
    """How many frames it has."""
    zero_bytes: int
    """How many bytes lie in frames of zeros, which cost nothing."""
    seconds: float
    """How long it took."""
    shuffle: Shuffle | None = None
    """How the bytes were shuffled before they were compressed, if that was asked for."""

    @property
    def ratio(self) -> float:
        """How many times smaller it became."""
        return self.decoded_bytes / self.file_bytes


def pack(
    source: Source,
    out: str | os.PathLike[str] | Writable,
    *,
    frame: str | int = "64KiB",
    level: int = 3,
    dtype: ItemType | None = None,
    block: str | int | None = None,
    offset: str | int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    overwrite: bool = True,
) -> Packed:
    """Pack a file into an image.

    Holes of a sparse file are not even read, and frames of zeros take a few bytes.

    Args:
        source: a path, a binary file object (read to its end), or a bytes-like object.
        out: a path, or a binary file object. A path appears when all is written, or never.
        frame: bytes that decompress together, a multiple of 4 KiB up to 64 MiB: about what one touch wants.
            Larger frames compress better, smaller ones are there sooner.
        level: zstd's, from fast (1, or even less than 0) to small (22).
        dtype: of the numbers in the file: a NumPy dtype such as "f4", or their size in bytes. Their bytes are then shuffled
            before they are compressed, and put back by whoever maps the image; ``zstd -d`` gives them shuffled, for
            ``userfault unshuffle``.
        block: bytes that are shuffled together, a divisor of `frame`; 64 KiB, or what divides both, if None.
        offset: where the numbers begin; behind the header of a ``.npy`` file, and otherwise at 0, if None.
        threads: how many compress; one per CPU if None.
        progress: called with (bytes done, bytes in all or None) now and then, in this thread.
        overwrite: replace an existing file; otherwise raise.

    Returns:
        Sizes and counts.

    Raises:
        OptionError: a frame size, level, dtype, block, offset or number of threads that is not possible.
        FileExistsError: `out` exists, and `overwrite` is false.
        OSError: something cannot be read or written.
        ImageError: the source became shorter meanwhile.

    Blocks:
        Until the file is on the disk.

    Example:
        >>> pack("weights.bin", "weights.img", frame="256KiB")  # doctest: +SKIP
    """
    started = time.monotonic()
    frame_bytes = check_frame(frame)
    threads = check_threads(threads)
    check_level(level)
    if dtype is None and (block is not None or offset is not None):
        raise OptionError("block and offset say how items are shuffled: they need a dtype")
    piece_bytes = max(PIECE_BYTES // frame_bytes, 1) * frame_bytes
    with contextlib.ExitStack() as stack:
        pieces = cut(source, frame_bytes, piece_bytes)
        stack.callback(pieces.close)
        head, pieces = _look_ahead(pieces)
        shuffle = None if dtype is None else shuffle_for(dtype, frame_bytes, block, offset, head)
        if shuffle and pieces.total_bytes is not None and shuffle.offset > pieces.total_bytes:
            raise OptionError(f"items begin at byte {shuffle.offset}, and there are {pieces.total_bytes} bytes")
        encoders = _core.FrameEncoders(frame_bytes, level, shuffle.numbers if shuffle else None)
        path = out if isinstance(out, (str, os.PathLike)) else None
        target = out if path is None else stack.enter_context(whole_file(path, overwrite=overwrite))
        writer = ImageWriter(target, frame_bytes)  # type: ignore[arg-type]
        done = _write(pieces, writer, encoders, threads, progress)
        if shuffle and shuffle.offset > done:
            raise OptionError(f"items begin at byte {shuffle.offset}, and {done} bytes came")
        writer.finish(shuffle.numbers if shuffle else None)
    return Packed(done, writer.file_bytes, writer.frames, writer.zero_bytes, time.monotonic() - started, shuffle)


def _look_ahead(pieces: Pieces) -> tuple[bytes, Pieces]:
    """The first bytes, and all pieces still."""
    first = next(pieces.pieces, None)
    if first is None:
        return b"", pieces
    head = first[:64] if isinstance(first, bytes) else b""
    return head, Pieces(pieces.total_bytes, itertools.chain([first], pieces.pieces))


def check_frame(frame: str | int) -> int:
    """A frame size in bytes, if it is possible.

    Raises:
        OptionError: it is not.
    """
    frame_bytes = parse_bytes(frame, "frame")
    if not LEAST_FRAME_BYTES <= frame_bytes <= MOST_FRAME_BYTES or frame_bytes % LEAST_FRAME_BYTES:
        raise OptionError(
            f"a frame must be a multiple of {format_bytes(LEAST_FRAME_BYTES)} "
            f"up to {format_bytes(MOST_FRAME_BYTES)}, not {frame_bytes} bytes"
        )
    return frame_bytes


def check_level(level: int) -> int:
    """A level of zstd, if there is such a one.

    Raises:
        OptionError: there is none.
    """
    lowest, highest = _core.ZSTD_LEVELS
    if not lowest <= level <= highest:
        raise OptionError(f"level must be from {lowest} to {highest}, not {level}")
    return level


def _write(pieces: Pieces, writer: ImageWriter, encoders: _core.FrameEncoders, threads: int, progress: Progress | None) -> int:
    def encode(placed: tuple[int, Piece]) -> tuple[int, _Encoded]:
        at, piece = placed
        if isinstance(piece, int):
            return piece, [piece]
        return len(piece), encoders.encode(piece, at)

    def placed() -> Iterator[tuple[int, Piece]]:
        at = 0
        for piece in pieces.pieces:
            yield at, piece
            at += piece if isinstance(piece, int) else len(piece)

    done = 0
    with contextlib.closing(map_ordered(encode, placed(), threads)) as results:  # type: ignore[type-var]
        for count, encoded in results:
            for part in encoded:
                if isinstance(part, int):
                    writer.zeros(part)
                else:
                    writer.encoded(*part)
            done += count
            if progress:
                progress(done, pieces.total_bytes)
    return done
