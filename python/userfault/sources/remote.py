"""What sources over stores have in common: which version is read, retries, a deadline, and that a short answer is none."""

from __future__ import annotations

import hashlib
import random
import re
import threading
import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from userfault import _core
from userfault.errors import OptionError, StoreChanged, StoreError, shown
from userfault.sources.aside import aside
from userfault.sources.base import Source
from userfault.units import parse_count, parse_seconds

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["RemoteSource", "Version", "masked", "needed", "parts_of", "without_secrets"]

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0
_LINK = re.compile(r"([A-Za-z][\w+.-]*://)([^/?#]*)(.*)", re.DOTALL)
_HOST = re.compile(r"([^:]+|\[.*\])(:\d*)?")
_IN_TEXT = re.compile(r"[A-Za-z][\w+.-]*://[^\s<>\"']+")


@dataclass(frozen=True)
class Version:
    """Which object was found when it was opened.

    Attributes:
        length: Bytes.
        tag: An ETag or whatever else differs when the object is replaced; "" where the store tells nothing of that kind.
    """

    length: int
    tag: str


class RemoteSource(Source):
    """One object of a store. A store of your own needs two methods, `look` and `get`; the rest is here.

    The object's length and version are asked for once. Every read is then of that version or fails: one that was replaced
    underneath is `StoreChanged`, never a mixture. A pickled source carries the version, so that whoever unpickles it reads
    the same or nothing. Reads that fail in passing are repeated with growing pauses, within the deadline.

    Args:
        url: Of the object, for people: `url` shows it without a password and query. Part of `identity`.
        deadline: For one read with all its repetitions; seconds, or a string such as "20s".
        attempts: Reads in all, at least 1.
        unit: As `Source.unit`.
        unversioned: Read an object of which the store tells no version: then nobody notices that it was replaced.

    Attributes:
        readahead: True: a sequential reader's next units are asked for early.
        preferred_size: 1 MiB: a request costs as much as a good many bytes.
    """

    readahead = True
    preferred_size = "1MiB"

    def __init__(
        self,
        url: str,
        *,
        deadline: float | str = "20s",
        attempts: int = 4,
        unit: int | str | None = None,
        unversioned: bool = False,
    ) -> None:
        if not isinstance(url, str):
            raise OptionError(f"{type(self).__name__}: the url must be a text, and is of type {type(url).__name__}")
        self.url = without_secrets(url)
        # What is not shown (a query may be a signature) tells addresses apart all the same.
        self._whole = "" if self.url == url else hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
        self.deadline = parse_seconds(deadline, "deadline")
        self.attempts = parse_count(attempts, "attempts", 1, 2**31)
        self.unit = unit
        self.unversioned = unversioned
        if self.deadline == 0:
            raise OptionError(f"deadline={deadline!r}: must be above zero, or no read would ever be in time")
        self._found: Version | None = None
        self._lock = threading.RLock()

    @abstractmethod
    def look(self) -> Version:
        """Ask the store which object there is now.

        Returns:
            Its length and version.

        Raises:
            StoreMissing: None.
            StoreError: Any other failure; a transient one is repeated.
        """

    @abstractmethod
    def get(self, version: Version, start: int, stop: int) -> Buffer:
        """Ask the store for bytes.

        Args:
            version: What `look` found: bytes of another version must not be returned.
            start: The first byte.
            stop: Behind the last one.

        Returns:
            The bytes. Fewer than asked for are an answer that was cut off, and asked for again.

        Raises:
            StoreChanged: The object has another version now.
            StoreError: Any other failure; a transient one is repeated.
        """

    @property
    def version(self) -> Version:
        """The version that is read: looked up when it is first needed, and kept until the source is closed."""
        if "_lock" not in vars(self):
            kind = type(self).__name__
            raise OptionError(f"{kind} is no source yet: {kind}.__init__ must call super().__init__(url)")
        found = self._found
        if found is None:
            fresh = self._in_time(self.look)
            if not fresh.tag and not self.unversioned:
                raise StoreError(
                    self.url,
                    "the store tells neither ETag nor date of it, so that nobody would notice if it was replaced while it is "
                    f"read; {type(self).__name__}(url, unversioned=True) reads it all the same",
                )
            with self._lock:
                found = self._found = self._found or fresh
        return found

    @property
    def length(self) -> int:
        """Bytes."""
        return self.version.length

    @property
    def identity(self) -> str | None:
        """Names these very bytes: what caches share them by. None where the version is not known."""
        version = self.version
        return f"{self.place()} {version.tag} {version.length}" if version.tag else None

    def place(self) -> str:
        """The object's full address, in which two of different stores differ. The URL, unless overridden."""
        return f"{self.url} {self._whole}" if self._whole else self.url

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See `Source.read_into`."""
        version = self.version
        buffer[:] = self._in_time(self._get_all, version, offset, offset + len(buffer))

    def close(self) -> None:
        """See `Source.close`. Opened again it reads what is there then."""
        self._found = None

    def _in_time(self, call: Any, *arguments: Any) -> Any:
        until, repeats = time.monotonic() + self.deadline, [0]
        try:
            return aside(self._again, until, repeats, call, arguments, seconds=self.deadline)
        except TimeoutError as late:
            raise StoreError(self.url, str(late), transient=True) from None
        finally:
            if repeats[0]:
                _core.count_repeats(repeats[0])

    def _again(self, until: float, repeats: list[int], call: Any, arguments: tuple[Any, ...]) -> Any:
        """Until it succeeds, fails for good, or was tried often enough."""
        pause = _FIRST_PAUSE
        for left in reversed(range(self.attempts)):
            try:
                return call(*arguments)
            except StoreError as error:
                failed = error
            except (ConnectionError, TimeoutError) as error:  # of a store of somebody's own
                failed = StoreError(self.url, shown(error) or type(error).__name__, transient=True)
                failed.__cause__ = error
            wait = pause * random.uniform(0.5, 1.5)  # or many readers that failed together would come back together
            if not failed.transient or not left or time.monotonic() + wait > until:
                raise failed
            time.sleep(wait)
            repeats[0] += 1
            pause = min(2 * pause, _LONGEST_PAUSE)
        raise AssertionError("the last attempt returns or raises")

    def _get_all(self, version: Version, start: int, stop: int) -> memoryview:
        got = memoryview(self.get(version, start, stop)).cast("B")
        if len(got) != stop - start:
            raise StoreError(self.url, f"{stop - start} bytes at {start} were asked for, {len(got)} came", transient=True)
        return got

    def changed(self, version: Version, now: object) -> StoreChanged:
        """The exception for an object that was replaced.

        Args:
            version: What was opened.
            now: What is there.
        """
        return StoreChanged(self.url, f"it was {version.tag} with {version.length} bytes when it was opened, and is now {now}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in self._KEPT_HERE}

    #: Attributes that do not travel.
    _KEPT_HERE = frozenset({"_lock"})

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.RLock()


def without_secrets(url: str) -> str:
    """What may be shown of a URL: no user and password, and nothing of a query or fragment, which may be a signature.

    Args:
        url: Any; with several of fsspec's, "zip://a::sftp://…", each of them.
    """
    return "::".join(_masked(link) for link in re.split(r"::(?=[A-Za-z][\w+.-]*:)", url))


def _masked(link: str) -> str:
    """Up to the last @: people write passwords with @ and / in them. Of the web's paths those may have one without a password."""
    parts = _LINK.match(link)
    if parts is None:
        return link
    scheme, host, rest = parts.groups()
    may_have_user = not scheme.lower().startswith("http") and ":" in host
    if "@" in host or ("@" in rest and (may_have_user or (host and not _HOST.fullmatch(host)))):
        link = f"{scheme}…@{(host + rest).rpartition('@')[2]}"
    return re.sub(r"([?#]).+", r"\1…", link, flags=re.DOTALL)


def masked(text: str) -> str:
    """A text, of a library say, with every URL in it as `without_secrets` shows it.

    Args:
        text: Any; not cut before, for what is left of a password may look like a server.
    """
    return _IN_TEXT.sub(lambda link: without_secrets(link[0]), text)


def parts_of(url: str) -> SplitResult:
    """Take a URL apart.

    Args:
        url: Any.

    Raises:
        OptionError: It is none. What `urlsplit` says of it is not shown: a password may be part of that.
    """
    try:
        return urlsplit(url)
    except ValueError:
        wanted = "after // comes a server, such as host, host:80 or [::1]:80"
        raise OptionError(f"{without_secrets(url)!r} is no URL: {wanted}") from None


def needed(module: str, extra: str) -> Any:
    """Import a library that only some sources need.

    Args:
        module: Its name.
        extra: The extra of this package that brings it.

    Returns:
        The module.

    Raises:
        OptionError: It is not installed; says how to have it.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        raise OptionError(f"{missing.name} is not installed, which this source needs: pip install 'userfault[{extra}]'") from None
