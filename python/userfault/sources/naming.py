"""What somebody means who names a source by a path, a URL, or the bytes themselves."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from userfault.errors import OptionError
from userfault.sources.base import Source
from userfault.sources.local import Bytes, File, Image

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from userfault.sources.caching import Cached
    from userfault.sources.remote import RemoteSource

__all__ = ["remote_of", "source_of"]

_ZSTD_FRAME = 0xFD2FB528
_SKIPPABLE_FRAMES = range(0x184D2A50, 0x184D2A60)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(//|:)")


def source_of(what: Source | str | os.PathLike[str] | Buffer) -> Source:
    """The source that `what` means: itself, a path or URL opened by what it holds, or bytes in memory.

    Args:
        what: A Source, a path, a URL, or an object with the buffer protocol.

    Returns:
        The source; what begins as zstd data does is an Image. What a URL names is Cached with the defaults.

    Raises:
        OSError: The file cannot be read, the object not be had.
        OptionError: A URL of an object that cannot be opened, or the library for it is not installed.
        TypeError: It is none of these.
    """
    if isinstance(what, Source):
        return what
    if isinstance(what, str) and _URL.match(what):
        if what.lower().startswith("file://"):
            return source_of(_path_of(what))
        from userfault.sources.caching import Cached  # of no use to those who have no URL

        cached = Cached(remote_of(what))
        return Image(cached) if _is_image(_first_bytes(cached)) else cached
    if isinstance(what, (str, os.PathLike)):
        with open(what, "rb") as file:
            return Image(what) if _is_image(file.read(4)) else File(what)
    try:
        memoryview(what)
    except TypeError:
        raise TypeError(f"{type(what).__name__}: expected a Source, a path, a URL, or a bytes-like object") from None
    return Bytes(what)


def remote_of(url: str) -> RemoteSource:
    """The source of what a URL names, without a cache.

    Args:
        url: "s3://…", "gs://…", "az://…", "https://…": a Blob; "redis://…": Redis; any other: Fsspec, and so are web pages with
            a user, a query or a path that obstore would not send as it is.

    Raises:
        OptionError: It names nothing; the library for it is not installed.
    """
    from userfault.sources import objects, redis
    from userfault.sources.fsspec import Fsspec
    from userfault.sources.remote import parts_of

    parts = parts_of(url)
    if parts.scheme in redis.SCHEMES:
        return redis.Redis(url)
    if parts.scheme in objects.SCHEMES and "::" not in url and not objects.has_more(parts):
        return objects.Blob(url)
    return Fsspec(url)


def _path_of(url: str) -> str:
    from userfault.sources.remote import parts_of, without_secrets

    parts = parts_of(url)
    if parts.netloc not in ("", "localhost"):
        raise OptionError(f"{without_secrets(url)!r}: is on another machine; a path of this one begins with file:///")
    if parts.query or parts.fragment:
        raise OptionError(
            f"{without_secrets(url)!r}: a file's name with '?' or '#' in it is written with %3F or %23 in a URL; or give its path"
        )
    return unquote(parts.path) or "/"


def _first_bytes(source: Cached) -> bytes:
    first = bytearray(min(4, source.length))
    if first:
        source.read_into(0, memoryview(first))
    return bytes(first)


def _is_image(first: bytes) -> bool:
    magic = int.from_bytes(first, "little")
    return len(first) == 4 and (magic == _ZSTD_FRAME or magic in _SKIPPABLE_FRAMES)
