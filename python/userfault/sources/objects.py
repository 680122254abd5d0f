"""Objects of S3, Google Cloud Storage, Azure and web servers, through obstore."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from userfault.errors import OptionError, StoreError, StoreMissing
from userfault.sources.remote import RemoteSource, Version, needed, without_secrets

if TYPE_CHECKING:
    from obstore.store import ObjectStore
    from typing_extensions import Buffer

__all__ = ["Blob"]

#: Schemes that obstore knows; those of web servers need no account.
SCHEMES = frozenset({"s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "http", "https"})
_WEB = ("http", "https")
_SECRET = ("secret", "token", "access_key", "account_key", "sas", "password", "credential", "service_account", "client_id")


class Blob(RemoteSource):
    """One object of an object store: S3, Google Cloud Storage, Azure, a web server that serves ranges, or a local directory.

    Credentials come as obstore finds them: from the environment, the machine, or the options.

    Args:
        where: A URL such as "s3://bucket/key", "gs://…", "az://container/key", "https://host/path"; or a store of obstore.
        path: The object's path in the store, if that was given.
        deadline: As `RemoteSource`; likewise for the other three.
        attempts: Reads in all; obstore repeats each of them itself where the server is at fault.
        unit: Bytes filled for one touch.
        unversioned: Whether to read it without an ETag and a date.
        **options: For `obstore.store.from_url`, such as `endpoint`, `region`, `skip_signature`, `client_options`.

    Raises:
        OptionError: obstore is not installed; the URL names no object.

    Example:
        >>> weights = Blob("s3://bucket/weights.img", region="eu-central-1")
    """

    def __init__(
        self,
        where: str | ObjectStore,
        path: str | None = None,
        *,
        deadline: float | str = "20s",
        attempts: int = 4,
        unit: int | str | None = None,
        unversioned: bool = False,
        **options: Any,
    ) -> None:
        url = where if isinstance(where, str) else f"{where!r}/{path}"
        super().__init__(url, deadline=deadline, attempts=attempts, unit=unit, unversioned=unversioned)
        needed("obstore", "objects")
        if isinstance(where, str):
            if path is not None:
                raise OptionError("Blob: a path goes with a store; a URL has it in it")
            self.store, self.path = _opened(where, self.deadline, options)
        elif path is None or options:
            raise OptionError("Blob: a store needs the path of an object in it, and has its options already")
        else:
            self.store, self.path = where, path

    def look(self) -> Version:
        """See `RemoteSource.look`."""
        import obstore

        try:
            meta = obstore.head(self.store, self.path)
        except Exception as error:
            raise self._meaning(error) from None
        return Version(meta["size"], _tag(meta))

    def get(self, version: Version, start: int, stop: int) -> Buffer:
        """See `RemoteSource.get`."""
        import obstore

        options: Any = {"range": (start, stop)}
        if version.tag.startswith('"'):  # of weak tags a server may say that nothing ever matches them
            options["if_match"] = version.tag
        try:
            result = obstore.get(self.store, self.path, options=options)
            meta = result.meta
            tag = _tag(meta)
            if tag != version.tag or meta["size"] != version.length:
                raise self.changed(version, f"{tag or 'one without a version'} with {meta['size']} bytes")
            if result.range != (start, stop):
                came = f"bytes {result.range[0]} to {result.range[1]}"
                raise StoreError(self.url, f"bytes {start} to {stop} were asked for, {came} came", transient=True)
            return result.bytes()
        except Exception as error:
            raise self._meaning(error, version) from None

    def place(self) -> str:
        """See `RemoteSource.place`: another endpoint is another store; other credentials are not."""
        config = getattr(self.store, "config", None) or {}
        public = {name: value for name, value in config.items() if not any(secret in name for secret in _SECRET)}
        return f"{self.store!r} {sorted(public.items())} {sorted(_endpoints().items())} {self.path}"

    @property
    def identity(self) -> str | None:
        """See `RemoteSource.identity`. A store in memory has no name that others know."""
        return None if type(self.store).__name__ == "MemoryStore" else super().identity

    def _meaning(self, error: Exception, version: Version | None = None) -> StoreError:
        from obstore import exceptions

        if isinstance(error, StoreError):
            return error
        reason = str(error).partition("\n\nDebug source")[0] or type(error).__name__
        if isinstance(error, FileNotFoundError):
            return StoreMissing(self.url, reason)
        if isinstance(error, exceptions.PreconditionError | exceptions.NotModifiedError):
            return StoreError(self.url, reason) if version is None else self.changed(version, f"another one: {reason}")
        passing = (exceptions.GenericError, exceptions.JoinError, OSError)
        return StoreError(self.url, reason, transient=isinstance(error, passing))


def _tag(meta: Any) -> str:
    """The ETag; without one the date, where the server told one."""
    if meta["e_tag"]:
        return str(meta["e_tag"])
    return "" if meta["last_modified"].timestamp() == 0 else f"of {meta['last_modified'].isoformat()}"


def _endpoints() -> dict[str, str]:
    """Servers that the environment names."""
    return {name: value for name, value in os.environ.items() if "ENDPOINT" in name}


#: What obstore reads from the environment, but only where no client options are given, as they are here.
_CLIENT = ("allow_http", "allow_invalid_certificates", "connect_timeout", "timeout", "proxy_url", "proxy_ca_certificate")


def _from_environment() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for cloud in ("AWS", "AZURE", "GOOGLE"):
        for name in _CLIENT:
            value = os.environ.get(f"{cloud}_{name.upper()}")
            if value is not None:
                found[name] = value.lower() in ("1", "true", "yes", "on") if name.startswith("allow") else value
    return found


def _opened(url: str, deadline: float, options: dict[str, Any]) -> tuple[ObjectStore, str]:
    """The store, and the path in it."""
    from datetime import timedelta

    from obstore.store import HTTPStore, from_url

    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise OptionError(
            f"{without_secrets(url)!r}: the scheme must be one of {', '.join(sorted(SCHEMES))}; Fsspec knows others"
        )
    path = unquote(parts.path).lstrip("/")
    if not parts.netloc or not path:
        raise OptionError(f"{without_secrets(url)!r} names no object: it should look like s3://bucket/key or https://host/path")
    if parts.query or parts.fragment:
        raise OptionError(f"{without_secrets(url)!r}: object stores know no '?' and '#' in a URL; Fsspec sends them")
    client: dict[str, Any] = {"timeout": timedelta(seconds=deadline), "read_timeout": timedelta(seconds=deadline / 4)}
    client |= _from_environment()
    # Repeated by RemoteSource too, but obstore knows which answers of a server pass, and when its credentials are stale.
    retry = {"max_retries": 3, "retry_timeout": timedelta(seconds=deadline), "backoff": {"init_backoff": timedelta(seconds=0.05)}}
    if any(str(place).startswith("http://") for place in (url, options.get("endpoint"), *_endpoints().values())):
        client["allow_http"] = True
    options = {"retry_config": retry, **options, "client_options": {**client, **options.get("client_options", {})}}
    base = f"{parts.scheme}://{parts.netloc}"
    try:
        store = HTTPStore.from_url(base, **options) if parts.scheme in _WEB else from_url(base, **options)
    except Exception as error:
        raise OptionError(f"{without_secrets(url)!r}: {str(error).partition(chr(10))[0]}") from None
    return store, path
