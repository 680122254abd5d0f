"""Look at an image: what it holds, how it is cut, what it would cost to touch it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from userfault import _core
from userfault.image.shuffling import Shuffle


@dataclass(frozen=True)
class ImageInfo:
    """An image seen from outside: its seek table, and what the frames of zeros say."""

    path: str
    decoded_bytes: int
    """What it decompresses to."""
    file_bytes: int
    """What it takes."""
    frames: int
    """How many frames hold bytes, zeros included; frames that are only to be skipped are not counted."""
    frame_bytes: int | None
    """The one size that its frames have (the last, and zeros, aside); None if there is none."""
    largest_frame_bytes: int
    """The most that touching one byte has to decompress."""
    zero_frames: int
    """How many frames hold only zeros, written as such."""
    zero_bytes: int
    """How many bytes these are."""
    checksums: bool
    """Whether each frame has a checksum."""
    shuffle: Shuffle | None = None
    """How its bytes were shuffled before they were compressed; None if they were not."""

    @property
    def ratio(self) -> float:
        """How many times smaller than its contents it is."""
        return self.decoded_bytes / self.file_bytes


@dataclass(frozen=True)
class FrameInfo:
    """One frame of an image."""

    number: int
    offset: int
    """Where it begins in the file, bytes."""
    compressed_bytes: int
    decoded_offset: int
    """Where its bytes begin in what the image decompresses to."""
    decoded_bytes: int
    """0 for a frame that is only to be skipped."""
    checksum: int | None
    """The low half of XXH64 of its bytes, if the image keeps checksums."""
    zero: bool
    """Whether it holds only zeros, written as such."""


def inspect(path: str | os.PathLike[str]) -> ImageInfo:
    """Read what an image says about itself; nothing is decompressed.

    Args:
        path: the image.

    Raises:
        ImageError: it is none, or its seek table is damaged or impossible; says what and where.
        OSError: it cannot be read.

    Example:
        >>> inspect("weights.img").decoded_bytes  # doctest: +SKIP
        209715200
    """
    index = _core.ImageIndex(os.fspath(path))
    zero_frames, zero_bytes = index.count_zeros()
    return ImageInfo(
        path=os.fspath(path),
        decoded_bytes=index.decoded_bytes,
        file_bytes=index.file_bytes,
        frames=index.filled_frames,
        frame_bytes=index.common_frame_bytes or None,
        largest_frame_bytes=index.largest_frame_bytes,
        zero_frames=zero_frames,
        zero_bytes=zero_bytes,
        checksums=index.has_checksums,
        shuffle=Shuffle(*index.filter) if index.filter else None,
    )


def frames(path: str | os.PathLike[str]) -> Iterator[FrameInfo]:
    """Each frame of an image, in order.

    Args:
        path: the image.

    Raises:
        ImageError: it is none, or its seek table is damaged or impossible.
        OSError: it cannot be read.
    """
    index = _core.ImageIndex(os.fspath(path))
    return (FrameInfo(number, *index.frame(number), zero=index.is_zero(number)) for number in range(len(index)))
