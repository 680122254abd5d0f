"""Files of any filesystem that fsspec knows: the fallback for stores that obstore does not."""

from __future__ import annotations

import hashlib
import json
import os
import re
from datetime import date, timedelta
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from userfault.errors import OptionError, StoreError, StoreMissing, shown
from userfault.sources import web
from userfault.sources.remote import RemoteSource, Version, masked, needed

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Fsspec"]

#: What filesystems say of a file that differs when it was replaced.
_TELLING = (
    *(
        "ETag",
        "etag",
        "e_tag",
        "checksum",
        "md5",
        "md5Hash",
        "content_md5",
        "generation",
        "VersionId",
        "version_id",
        "sha",
        "oid",
    ),
    *("LastModified", "last_modified", "Last-Modified", "mtime", "modified", "updated", "created", "ino"),
)
#: A filesystem in memory, in a URL or among the options: of this process alone.
_MEMORY = re.compile(r"\bmemory(:|\\*\")")


class Fsspec(RemoteSource):
    """One file by any URL of fsspec: "sftp://…", "hf://…", "memory://…", "zip://member::s3://…", and those of its plugins.

    Use `Blob` for the stores that it knows: a store checks the version itself with each read of a Blob, while here it is asked
    for again after each read, which costs one more request. Web servers ("https://…?signature") say it with the bytes, as
    they say which range they send, and both are compared.

    Args:
        url: The file.
        deadline: As `RemoteSource`; likewise for the other three.
        attempts: Reads in all.
        unit: Bytes filled for one touch.
        unversioned: Whether to read it where the filesystem tells neither checksum nor date.
        **options: For the filesystem, as `fsspec.filesystem` takes them.

    Raises:
        OptionError: fsspec, or the plugin that the URL needs, is not installed; the URL or an option makes no sense to it.
        StoreError: The filesystem connects to its server at once, and cannot.
    """

    def __init__(
        self,
        url: str,
        *,
        deadline: float | str = "20s",
        attempts: int = 4,
        unit: int | str | None = None,
        unversioned: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(url, deadline=deadline, attempts=attempts, unit=unit, unversioned=unversioned)
        self._address = url
        self.options = options
        self._made_in = os.getpid()
        self.filesystem, self.path = self._opened()

    def look(self) -> Version:
        """See `RemoteSource.look`."""
        try:
            self.filesystem.invalidate_cache()  # listings from before the file was replaced
            about = self.filesystem.info(self.path)
        except Exception as error:
            raise self._meaning(error) from self._shown(error)
        if about.get("type") == "directory" or about.get("size") is None:
            raise StoreError(self.url, "it is a directory, or the store does not tell its length")
        return Version(about["size"], " ".join(_telling(about)))

    def get(self, version: Version, start: int, stop: int) -> Buffer:
        """See `RemoteSource.get`."""
        about: dict[str, Any] = {}
        try:
            if web.is_web(self.filesystem) and start < stop:
                got, about = web.range_of(self.filesystem, self.path, self.url, start, stop)
            else:
                got = self.filesystem.cat_file(self.path, start, stop)
        except Exception as error:
            if getattr(error, "status", None) == 416:
                self._compare(version, {})  # no such range: it may be shorter now
            raise self._meaning(error) from self._shown(error)
        self._compare(version, about)
        return got

    def _compare(self, version: Version, about: dict[str, Any]) -> None:
        """StoreChanged if the file is another now: by what an answer says of itself, or by asking where it does not say all."""
        told = _telling(about)
        known = f"{version.tag} "
        now = Version(about.get("size", version.length), " ".join(told))
        denied = any(f"{part.partition('=')[0]}=" in known and f"{part} " not in known for part in told)
        if "size" in about and now == version:
            return
        if now.length == version.length and not denied:
            now = self.look()
        if now != version:
            raise self.changed(version, f"{now.tag} with {now.length} bytes")

    @property
    def identity(self) -> str | None:
        """See `RemoteSource.identity`. None, too, with an option that has no form of its own, such as an open file."""
        return None if _told(self.options) is None else super().identity

    def place(self) -> str:
        """See `RemoteSource.place`: with other options it may be another file. A hash of them: a password may be among them."""
        told = _told(self.options) or ""
        here = f" in process {os.getpid()}" if self._is_in_memory() else ""
        return f"{super().place()} {hashlib.sha256(told.encode()).hexdigest()}{here}"

    def _opened(self) -> tuple[Any, str]:
        fsspec = needed("fsspec", "fsspec")
        try:
            options = web.patient(self._address, self.deadline, self.options)
            filesystem, path = fsspec.core.url_to_fs(self._address, **options)
        except (ImportError, ValueError, TypeError) as error:
            raise OptionError(f"{self.url!r}: {self._said(error)}") from None
        except Exception as error:  # of filesystems that connect to their server when they are made
            raise self._meaning(error) from self._shown(error)
        return filesystem, path

    def _is_in_memory(self) -> bool:
        return _MEMORY.search(f"{self._address} {_told(self.options) or ''}") is not None

    def _said(self, error: Exception) -> str:
        """What an exception says, without what the URL is not to show."""
        return masked((shown(error) or type(error).__name__).replace(self._address, self.url))

    def _shown(self, error: Exception) -> Exception | None:
        """As a cause: not where its text has in it what the URL's is not to show."""
        return error if self._said(error) == (shown(error) or type(error).__name__) else None

    def _meaning(self, error: Exception) -> StoreError:
        if isinstance(error, StoreError):
            return error
        if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception) and web.is_web(self.filesystem):
            error = error.__cause__  # `info` calls everything that goes wrong a missing file
        status = web.of_status(self.url, error)
        if status is not None:
            return status
        reason = self._said(error)
        if isinstance(error, FileNotFoundError):
            if self._made_in != os.getpid() and self._is_in_memory():
                reason = (
                    f"{reason}: what is in memory belongs to one process, {self._made_in}, and this is {os.getpid()}: "
                    "delivery='thread' reads it where it is"
                )
            return StoreMissing(self.url, reason)
        passing = isinstance(error, OSError) and not isinstance(error, PermissionError | IsADirectoryError)
        return StoreError(self.url, reason, transient=passing or type(error).__module__.startswith("aiohttp"))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.filesystem, self.path = self._opened()

    _KEPT_HERE = frozenset({"_lock", "filesystem", "path"})


def _told(options: dict[str, Any]) -> str | None:
    """Options in a form that is the same in every process; None where one has none."""
    try:
        return json.dumps(options, sort_keys=True, default=_text)
    except (TypeError, ValueError):
        return None


def _text(value: object) -> str:
    """Of another filesystem, say; TypeError of what may differ and look alike, such as an open file."""
    if isinstance(value, bytes | bytearray | PurePath | date | timedelta):
        return repr(value)
    if hasattr(value, "to_json"):
        return str(value.to_json())
    raise TypeError(f"{type(value).__name__} has no form of its own")


def _telling(about: dict[str, Any]) -> list[str]:
    return [f"{name}={about[name]}" for name in _TELLING if about.get(name) is not None]
