"""Pack a file into an image: read in pieces, compressed by all CPUs, written in order."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from userfault import _core
from userfault.errors import OptionError
from userfault.image.ordered import check_threads, map_ordered
from userfault.image.reading import Piece, Pieces, Source, cut
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
        threads: how many compress; one per CPU if None.
        progress: called with (bytes done, bytes in all or None) now and then, in this thread.
        overwrite: replace an existing file; otherwise raise.

    Returns:
        Sizes and counts.

    Raises:
        OptionError: a frame size, level or number of threads that is not possible.
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
    encoders = _core.FrameEncoders(frame_bytes, check_level(level))
    piece_bytes = max(PIECE_BYTES // frame_bytes, 1) * frame_bytes
    with contextlib.ExitStack() as stack:
        pieces = cut(source, frame_bytes, piece_bytes)
        stack.callback(pieces.close)
        path = out if isinstance(out, (str, os.PathLike)) else None
        target = out if path is None else stack.enter_context(whole_file(path, overwrite=overwrite))
        writer = ImageWriter(target, frame_bytes)  # type: ignore[arg-type]
        done = _write(pieces, writer, encoders, threads, progress)
    return Packed(done, writer.file_bytes, writer.frames, writer.zero_bytes, time.monotonic() - started)


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
    def encode(piece: Piece) -> tuple[int, _Encoded]:
        if isinstance(piece, int):
            return piece, [piece]
        return len(piece), encoders.encode(piece)

    done = 0
    with contextlib.closing(map_ordered(encode, pieces.pieces, threads)) as results:  # type: ignore[type-var]
        for count, encoded in results:
            for part in encoded:
                if isinstance(part, int):
                    writer.zeros(part)
                else:
                    writer.encoded(*part)
            done += count
            if progress:
                progress(done, pieces.total_bytes)
    writer.finish()
    return done
