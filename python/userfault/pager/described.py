"""Sources as data: what a pager takes that serves everybody of a user, where nothing is unpickled."""

from __future__ import annotations

import os

from userfault.errors import OptionError
from userfault.pager.pinned import seen
from userfault.pager.protocol import Description, FileDescription, ImageDescription, ZeroDescription
from userfault.sources import File, Image, Source, Zero
from userfault.sources.called import name_of
from userfault.sources.local import Seen
from userfault.units import parse_bytes

__all__ = ["describe", "source_from"]


def describe(source: Source) -> Description:
    """A source as data.

    Args:
        source: A File, an Image of a file, or a Zero.

    Raises:
        OptionError: It is something else, or its name is no UTF-8.
    """
    if type(source) is File:
        length = None if source.length is None else parse_bytes(source.length, "length")
        return FileDescription(_absolute(source.path), parse_bytes(source.offset, "offset"), length, seen(source))
    if type(source) is Image and not isinstance(source.path, Source):
        return ImageDescription(_absolute(source.path), seen(source))
    if type(source) is Zero:
        return ZeroDescription(parse_bytes(source.length, "length"))
    raise OptionError(
        f"a pager at a path takes data, not code: File, Image or Zero, and {name_of(source)} is of type {type(source).__name__}"
    )


def source_from(description: Description) -> Source:
    """And back.

    Args:
        description: As `describe` made it, or anybody else.

    Returns:
        The source, not opened.
    """
    if isinstance(description, FileDescription):
        return _pinned(File(description.path, description.offset, description.length), description.seen)
    if isinstance(description, ImageDescription):
        return _pinned(Image(description.path), description.seen)
    return Zero(description.length)


def _pinned(source: File | Image, known: Seen | None) -> Source:
    vars(source)["_seen"] = known  # they are frozen for others
    return source


def _absolute(path: str | os.PathLike[str]) -> str:
    absolute = os.path.abspath(os.fspath(path))
    try:
        absolute.encode()
    except UnicodeEncodeError:
        raise OptionError(f"a pager at a path takes names of files that are UTF-8, and {absolute!r} is none") from None
    return absolute
