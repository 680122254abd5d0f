"""Bytes kept in Valkey or Redis, in chunks under keys of their own.

    KEY                a hash: length, chunk (bytes in each, the last may have fewer), version
    {KEY}:VERSION:N    chunk N

A new version gets new chunk keys, and the hash changes last: who opened an older one reads that or nothing, never a
mixture. The braces keep all chunks of an object on one node of a cluster.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlunsplit

from userfault.errors import OptionError, StoreError, StoreMissing
from userfault.sources.remote import RemoteSource, Version, needed, parts_of, without_secrets
from userfault.units import parse_bytes, parse_seconds

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Redis"]

SCHEMES = frozenset({"redis", "rediss", "valkey", "valkeys"})
_MOST_CONFLICTS = 1000


class Redis(RemoteSource):
    """Bytes that `Redis.put` stored in a Valkey or Redis server. A missing or short value is a PageError, never zeros.

    Args:
        url: "redis://host:6379/0/KEY": server, number of the database, key; "rediss://…" over TLS, "valkey://…" likewise.
        deadline: As `RemoteSource`; likewise for the other two.
        attempts: Reads in all.
        unit: Bytes filled for one touch.
        **options: For `redis.Redis.from_url`, such as `password`.

    Raises:
        OptionError: redis is not installed; the URL has no key.

    Example:
        >>> table = Redis.put("redis://localhost:6379/0/table", numpy.arange(1 << 20))
        >>> region = userfault.map(table)
    """

    def __init__(
        self,
        url: str,
        *,
        deadline: float | str = "20s",
        attempts: int = 4,
        unit: int | str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(url, deadline=deadline, attempts=attempts, unit=unit)
        self.server, self.key = _split(url)
        self.options = options
        self._client = self._connected()

    @classmethod
    def put(
        cls, url: str, data: Buffer, *, chunk: int | str = "256KiB", expire: float | str | None = None, **options: Any
    ) -> Redis:
        """Store bytes, in place of those that are there.

        Args:
            url: As `Redis`.
            data: Any buffer. One with gaps, such as `array[::2]`, is copied first, row by row.
            chunk: Bytes in a value, or a string such as "256KiB".
            expire: After which time the server drops them all: seconds, or a string such as "1h"; None: never.
            **options: As `Redis`.

        Returns:
            The source that reads them.

        Raises:
            OptionError: As `Redis`; `chunk` or `expire` is none.
            StoreError: The server did not take them, or the key holds something else; what was there is as it was. Only if the
                connection breaks while the server changes the key nobody can tell: it holds the old bytes or the new ones, and
                the values of both stay.
        """
        size = parse_bytes(chunk, "chunk")
        if not size:
            raise OptionError("chunk=0: a value needs at least one byte")
        milliseconds = None if expire is None else round(parse_seconds(expire, "expire") * 1000)
        if milliseconds == 0:
            raise OptionError(f"expire={expire!r}: must be a millisecond at least, or the bytes would never be there")
        source = cls(url, **options)
        view = _bytes_of(data)
        try:
            source._store(view, size, milliseconds)
        except Exception as error:
            raise source._meaning(error) from error
        return source

    def _store(self, data: memoryview, size: int, milliseconds: int | None) -> None:
        _look_at(self._client.hgetall(self.key))
        version, count = secrets.token_hex(8), -(-len(data) // size)
        try:
            for number in range(count):
                value = bytes(data[number * size : (number + 1) * size])
                self._client.set(self._chunk_key(version, number), value, px=milliseconds)
        except BaseException:
            self._give_up(version, count)  # a server that is full is not to keep what nobody will find
            raise
        before = self._exchange({"length": len(data), "chunk": size, "version": version}, count, milliseconds)
        if before:
            _, length, old_size, old = _manifest(before)
            self._unlink(old, -(-length // old_size))

    def _exchange(self, manifest: dict[str, Any], count: int, milliseconds: int | None) -> dict[bytes, bytes]:
        """Have the key say what is there now; what it said until then, and nobody else changed in between."""
        import redis

        lost = redis.ConnectionError, redis.TimeoutError, OSError
        with self._client.pipeline(transaction=True) as change:
            for _ in range(_MOST_CONFLICTS):
                try:
                    before = self._queue(change, manifest, count, milliseconds)
                except BaseException:
                    self._give_up(manifest["version"], count)
                    raise
                try:
                    change.execute()
                    return before
                except redis.WatchError as error:  # another put came first, or, to redis-py, the connection broke
                    if not isinstance(error.__context__, lost):
                        continue
                    if self._holds(manifest["version"]):
                        return before
                    # Perhaps it arrives yet: the chunks stay.
                    raise error.__context__ from None
                except redis.ResponseError:  # the server will not do it
                    self._give_up(manifest["version"], count)
                    raise
        self._give_up(manifest["version"], count)
        raise StoreError(self.url, f"{_MOST_CONFLICTS} times others changed the key in between", transient=True)

    def _queue(self, change: Any, manifest: dict[str, Any], count: int, milliseconds: int | None) -> dict[bytes, bytes]:
        """What is to be done at once; what is there now."""
        change.watch(self.key)
        before = _look_at(change.hgetall(self.key))
        change.multi()
        change.delete(self.key)
        change.hset(self.key, mapping=manifest)
        if milliseconds is not None:  # anew for the chunks, whose time began when they were stored
            for key in (self.key, *(self._chunk_key(manifest["version"], number) for number in range(count))):
                change.pexpire(key, milliseconds)
        return before

    def _holds(self, version: str) -> bool:
        with suppress(Exception):
            return bool(self._client.hget(self.key, "version") == version.encode())
        return False

    def _give_up(self, version: str, count: int) -> None:
        """The error that came before is the one that counts."""
        with suppress(Exception):
            self._unlink(version, count)

    def _unlink(self, version: str, count: int) -> None:
        for first in range(0, count, 1000):
            self._client.unlink(*(self._chunk_key(version, number) for number in range(first, min(first + 1000, count))))

    def look(self) -> Version:
        """See `RemoteSource.look`."""
        try:
            found = self._client.hgetall(self.key)
            if not found:
                raise StoreMissing(self.url, f"there is no key {self.key!r}; Redis.put stores one")
            tag, length, _, _ = _manifest(found)
        except Exception as error:
            raise self._meaning(error) from error
        return Version(length, tag)

    def get(self, version: Version, start: int, stop: int) -> Buffer:
        """See `RemoteSource.get`."""
        name, _, chunk = version.tag.partition(" ")
        size = int(chunk)
        wanted = []
        for number in range(start // size, -(-stop // size)):
            base = number * size
            wanted.append((number, max(start - base, 0), min(stop - base, size)))
        try:
            with self._client.pipeline(transaction=False) as reads:
                for number, low, high in wanted:
                    reads.getrange(self._chunk_key(name, number), low, high - 1)
                got = reads.execute()
        except Exception as error:
            raise self._meaning(error) from error
        for (number, low, high), part in zip(wanted, got, strict=True):
            if len(part) != high - low:
                raise self._lost(version, number)
        return b"".join(got)

    def _lost(self, version: Version, number: int) -> StoreError:
        now = self.look()
        if now != version:
            return self.changed(version, f"{now.tag} with {now.length} bytes")
        return StoreError(self.url, f"the value of chunk {number} is missing or short: did the server evict it?")

    def _chunk_key(self, version: str, number: int) -> str:
        return f"{{{self.key}}}:{version}:{number}"

    def _connected(self) -> Any:
        redis = needed("redis", "redis")
        settings: dict[str, Any] = {"socket_timeout": self.deadline / 4, "socket_connect_timeout": self.deadline / 4}
        settings |= {"retry": None, "retry_on_timeout": False, **self.options, "decode_responses": False}
        try:
            return redis.Redis.from_url(self.server, **settings)
        except ValueError as error:
            raise OptionError(f"{self.url!r}: {error}") from None

    def _meaning(self, error: Exception) -> StoreError:
        if isinstance(error, StoreError):
            return error
        import redis

        passing = (redis.ConnectionError, redis.TimeoutError, redis.exceptions.BusyLoadingError, OSError)
        denied = isinstance(error, redis.AuthenticationError)
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return StoreError(self.url, reason, transient=isinstance(error, passing) and not denied)

    def close(self) -> None:
        """See `Source.close`."""
        super().close()
        self._client.close()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._client = self._connected()

    _KEPT_HERE = frozenset({"_lock", "_client"})


def _bytes_of(data: Buffer) -> memoryview:
    """The bytes of a buffer: itself where they lie next to each other, a copy where not."""
    view = memoryview(data)
    try:
        return view.cast("B")
    except (TypeError, ValueError):  # it has gaps, no elements, or elements of a kind that views do not know
        return memoryview(view.tobytes())


def _look_at(found: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """What a key holds, which may be nothing; ValueError of another's hash, and of one that has more."""
    if found:
        _manifest(found)
        if len(found) != 3:
            raise ValueError(f"the key holds a hash of something else, with {sorted(found)}")
    return found


def _manifest(found: dict[bytes, bytes]) -> tuple[str, int, int, str]:
    """Tag, length, bytes in a chunk and version of what a key says; ValueError of another's hash."""
    try:
        length, size, version = int(found[b"length"]), int(found[b"chunk"]), found[b"version"].decode()
    except (KeyError, ValueError):
        raise ValueError(f"the key holds a hash of something else, with {sorted(found)}") from None
    if length < 0 or size < 1:
        raise ValueError(f"the key says {length} bytes in chunks of {size}")
    return f"{version} {size}", length, size, version


def _split(url: str) -> tuple[str, str]:
    """The server's URL as its library knows it, and the key."""
    parts = parts_of(url)
    database, slash, key = parts.path.lstrip("/").partition("/")
    if parts.scheme not in SCHEMES or not database.isdigit() or not slash or not key or parts.fragment:
        wanted = "redis://host:6379/0/KEY, with the number of a database and a key, '#' in it as %23"
        raise OptionError(f"{without_secrets(url)!r}: should look like {wanted}")
    scheme = "rediss" if parts.scheme in ("rediss", "valkeys") else "redis"
    return urlunsplit((scheme, parts.netloc, f"/{database}", parts.query, "")), unquote(key)
