"""Ranges of files on web servers, by fsspec's filesystem for them, which itself takes any answer for the one it asked for."""

from __future__ import annotations

import re
import sys
from typing import Any

from userfault.errors import StoreError, StoreMissing
from userfault.sources.remote import needed

__all__ = ["is_web", "of_status", "patient", "range_of"]

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)", re.IGNORECASE)
#: What an answer says of the file's version, in the names of `info`.
_ABOUT = ("ETag", "Last-Modified")
#: Statuses below 500 after which the same request may succeed: too slow, too early, too many.
_PASSING = (408, 425, 429)


def is_web(filesystem: Any) -> bool:
    """Whether it is fsspec's own for web servers, and no other that was registered for their URLs.

    Args:
        filesystem: An object, or its class.
    """
    http = sys.modules.get("fsspec.implementations.http")
    kind = filesystem if isinstance(filesystem, type) else type(filesystem)
    return http is not None and issubclass(kind, http.HTTPFileSystem)


def patient(url: str, deadline: float, options: dict[str, Any]) -> dict[str, Any]:
    """Options of the filesystem, with timeouts where the caller gave none: aiohttp would wait for five minutes.

    Args:
        url: What is to be opened.
        deadline: Seconds for one read with its repetitions. A server that sends nothing is given up after a quarter.
        options: The caller's.

    Raises:
        ImportError, ValueError: Of fsspec, which does not know the URL.
    """
    fsspec = needed("fsspec", "fsspec")
    scheme = url.partition("://")[0]
    if scheme not in ("http", "https") or "::" in url or scheme in options:
        return options
    kind = fsspec.get_filesystem_class(scheme)
    given = fsspec.config.apply_config(kind, options)  # with what the user's configuration files say
    if not is_web(kind) or "get_client" in given:
        return options
    import aiohttp

    quarter = deadline / 4
    timeout = aiohttp.ClientTimeout(total=deadline, sock_connect=quarter, sock_read=quarter)
    return {**options, "client_kwargs": {"timeout": timeout, **(given.get("client_kwargs") or {})}}


def range_of(filesystem: Any, url: str, shown: str, start: int, stop: int) -> tuple[bytes, dict[str, Any]]:
    """Read a range through the filesystem's session: its headers, credentials, proxies and timeouts hold. Blocks.

    Args:
        filesystem: One of which `is_web` is true.
        url: Of the file.
        shown: The same for people.
        start: The first byte.
        stop: Behind the last one, which is another.

    Returns:
        The bytes; and what the answer says of the file as `info` names it: "size", "ETag", "Last-Modified", each if it does.

    Raises:
        StoreError: Another range came, or not all of it (transient); the server does not serve ranges.
        Exception: Whatever aiohttp and fsspec raise.
    """
    asyn = needed("fsspec.asyn", "fsspec")
    got: tuple[bytes, dict[str, Any]] = asyn.sync(filesystem.loop, _range_of, filesystem, url, shown, start, stop)
    return got


async def _range_of(filesystem: Any, url: str, shown: str, start: int, stop: int) -> tuple[bytes, dict[str, Any]]:
    options = dict(filesystem.kwargs)
    # Not compressed: of a compressed file the range would be another.
    wanted = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    options["headers"] = {**(options.get("headers") or {}), **wanted}
    session = await filesystem.set_session()
    async with session.get(filesystem.encode_url(url), **options) as answer:
        answer.raise_for_status()
        came, size = _announced(answer)
        if came != (start, stop):
            raise _another(shown, answer.status, (start, stop), came)
        about = {name: answer.headers[name] for name in _ABOUT if answer.headers.get(name)}
        return await answer.read(), about if size is None else {"size": size, **about}


def _announced(answer: Any) -> tuple[tuple[int, int] | None, int | None]:
    """Which bytes an answer says that it has, and the file's length; None of what it does not say."""
    if answer.status == 206:
        said = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
        if said is None:
            return None, None
        first, last, size = said.groups()
        return (int(first), int(last) + 1), None if size == "*" else int(size)
    length = answer.content_length
    return (None, None) if answer.status != 200 or length is None else ((0, length), length)


def _another(shown: str, status: int, wanted: tuple[int, int], came: tuple[int, int] | None) -> StoreError:
    asked = f"bytes {wanted[0]} to {wanted[1]} were asked for, "
    if status == 200:
        return StoreError(shown, f"{asked}all came: the server does not serve ranges")
    which = "an answer came that does not say which it has" if came is None else f"bytes {came[0]} to {came[1]} came"
    return StoreError(shown, asked + which, transient=True)


def of_status(shown: str, error: BaseException) -> StoreError | None:
    """What an exception means that is about a status of HTTP; None: it is not.

    Args:
        shown: The URL for people. The error's own is not shown: a server may have sent the client on to one with a signature.
        error: Any.
    """
    status = getattr(error, "status", None)
    if not type(error).__module__.startswith("aiohttp") or not isinstance(status, int) or status < 400:
        return None
    reason = f"status {status} {getattr(error, 'message', '')}".rstrip()
    if status == 404:
        return StoreMissing(shown, reason)
    garbled = error.__cause__ is not None  # no status at all: aiohttp calls what it cannot parse 400
    return StoreError(shown, reason, transient=garbled or status >= 500 or status in _PASSING)
