"""Check an image: decompress every frame and compare its checksum."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from userfault import _core
from userfault.image.ordered import check_threads, map_ordered
from userfault.image.pack import Progress

BATCH_BYTES = 4 << 20
"""Threads are given about this much at a time."""


@dataclass(frozen=True)
class BadFrame:
    """A frame that cannot be had."""

    frame: int
    decoded_offset: int
    """The first byte that is lost, in what the image decompresses to."""
    decoded_bytes: int
    """How many are lost."""
    error: str
    """What is wrong with it, and where in the file."""


@dataclass(frozen=True)
class Verification:
    """What `verify` found."""

    path: str
    frames: int
    """How many there are that hold bytes. All were checked, and those to be skipped too."""
    decoded_bytes: int
    checksums: bool
    """Whether there were checksums to compare; without, only that each frame decompresses to its length is known."""
    bad: tuple[BadFrame, ...]

    @property
    def ok(self) -> bool:
        """Whether every frame is good."""
        return not self.bad


def verify(path: str | os.PathLike[str], *, threads: int | None = None, progress: Progress | None = None) -> Verification:
    """Decompress all of an image and compare its checksums.

    Args:
        path: the image.
        threads: how many decompress; one per CPU if None.
        progress: called with (bytes done, bytes in all) now and then, in this thread.

    Returns:
        All bad frames; a bad frame is no exception.

    Raises:
        ImageError: it is no image, or its seek table is damaged or impossible.
        OSError: it cannot be read.

    Example:
        >>> verify("weights.img").ok  # doctest: +SKIP
        True
    """
    index = _core.ImageIndex(os.fspath(path))
    bad: list[BadFrame] = []
    for stop, found in map_ordered(lambda batch: _check(index, *batch), _batches(index), check_threads(threads)):
        bad += found
        if progress:
            _, _, decoded_offset, decoded_bytes, _ = index.frame(stop - 1)
            progress(decoded_offset + decoded_bytes, index.decoded_bytes)
    return Verification(os.fspath(path), index.filled_frames, index.decoded_bytes, index.has_checksums, tuple(bad))


def _batches(index: _core.ImageIndex) -> Iterator[tuple[int, int]]:
    count = len(index)
    average = max(index.decoded_bytes // max(count, 1), 1)
    step = max(BATCH_BYTES // average, 1)
    return ((start, min(start + step, count)) for start in range(0, count, step))


def _check(index: _core.ImageIndex, start: int, stop: int) -> tuple[int, list[BadFrame]]:
    return stop, [BadFrame(*found) for found in index.verify(start, stop)]
