"""What somebody means who names a source by a path, a URL, or the bytes themselves."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from userfault.sources.base import Source
from userfault.sources.local import Bytes, File, Image

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["source_of"]

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
