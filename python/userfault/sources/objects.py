"""Objects of S3, Google Cloud Storage, Azure and web servers, through obstore."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote

from userfault.errors import OptionError, StoreError, StoreMissing
from userfault.sources.remote import RemoteSource, Version, masked, needed, parts_of, without_secrets

if TYPE_CHECKING:
    from obstore.store import ObjectStore
    from typing_extensions import Buffer

__all__ = ["Blob"]

#: Schemes that obstore knows; those of web servers need no account.
SCHEMES = frozenset({"s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "http", "https"})
_WEB = ("http", "https")
#: What means something else in a web page's path without its escape, and control characters.
_ESCAPED = re.compile("%(2[1467-9A-CF]|3[ABD]|40|5[BD]|[01].|7F)", re.IGNORECASE)
_SECRET = ("secret", "token", "key", "sas", "password", "credential", "service_account", "client_id")
#: What obstore reads from the environment that says where objects are, and which no store's `config` shows.
_PLACES = (
    *("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_BUCKET", "AWS_BUCKET_NAME"),
    *("GOOGLE_BASE_URL", "GOOGLE_BUCKET", "GOOGLE_BUCKET_NAME"),
    *("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT", "AZURE_CONTAINER_NAME"),
    *("AZURE_STORAGE_USE_EMULATOR", "AZURITE_BLOB_STORAGE_URL"),
)
#: Requests that obstore makes for credentials when nobody gave it any, or where those given have to be exchanged.
_FOR_CREDENTIALS = ("/latest/api/token", "/latest/meta-data/", "Error performing token request")
#: What a web server says that takes no HEAD; obstore calls it a missing object.
_NO_HEAD = re.compile(r"status code: 405\b")
#: Of an error's text: servers answer with whole pages.
_LONGEST_REASON = 600


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
        **options: For `obstore.store.from_url`, such as `endpoint` (of Google `base_url`), `region`, `account_name`,
            `skip_signature`, `client_options`.

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
        url = where if isinstance(where, str) else f"{_name(where)}/{path}"
        super().__init__(url, deadline=deadline, attempts=attempts, unit=unit, unversioned=unversioned)
        needed("obstore", "objects")
        if isinstance(where, str):
            if path is not None:
                raise OptionError("Blob: a path goes with a store; a URL has it in it")
            self.store, self.path = _opened(where, self.deadline, options)
        elif not isinstance(where, _kinds()):
            raise OptionError(f"Blob: takes a URL or a store of obstore, and was given one of type {type(where).__name__}")
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
        config = _config(self.store)
        public = {name: value for name, value in config.items() if not any(secret in name for secret in _SECRET)}
        where = masked(f"{_name(self.store)} {sorted(public.items())} {sorted(_places(config).items())}")
        return f"{where} {self.path}"

    @property
    def identity(self) -> str | None:
        """See `RemoteSource.identity`. A store in memory has no name that others know."""
        return None if type(self.store).__name__ == "MemoryStore" else super().identity

    def _meaning(self, error: Exception, version: Version | None = None) -> StoreError:
        from obstore import exceptions

        if isinstance(error, StoreError):
            return error
        reason = _reason(error)
        if isinstance(error, FileNotFoundError):
            if _NO_HEAD.search(reason):
                return StoreError(self.url, f"the server refuses HEAD requests; Fsspec(url) does without them ({reason})")
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


def _reason(error: Exception) -> str:
    """What obstore says, in one line that is not too long: the server's own words are part of it."""
    said = str(error).partition("\n\nDebug source")[0].replace("\ufeff", "")
    line = masked(" ".join(said.split())).rstrip(": ") or type(error).__name__
    line = line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}…"
    if any(request in line for request in _FOR_CREDENTIALS):
        return f"no credentials were to be had; what anybody may read needs skip_signature=True ({line})"
    return line


def _kinds() -> tuple[type, ...]:
    """The stores of obstore."""
    from obstore import store

    return store.AzureStore, store.GCSStore, store.HTTPStore, store.LocalStore, store.MemoryStore, store.S3Store


def _config(store: ObjectStore) -> dict[str, Any]:
    """The options that a store was given; {} of those that have none."""
    return dict(getattr(store, "config", None) or {})


def _name(store: ObjectStore) -> str:
    """A store for people. Its repr panics, which is no Exception, where the bucket or account comes from the environment."""
    if not hasattr(store, "config"):
        return masked(repr(store))
    config = {**_config(store), "prefix": getattr(store, "prefix", None)}
    named = {key: str(config[key]) for key in ("account_name", "bucket", "container_name", "prefix") if config.get(key)}
    return f"{type(store).__name__}({', '.join(f'{key}={value!r}' for key, value in named.items())})"


def _places(config: dict[str, Any]) -> dict[str, str]:
    """Servers and accounts that are named elsewhere than in a store's options: by the environment, or a service account."""
    found = {name: os.environ[name] for name in _PLACES if name in os.environ}
    account = _service_account(config).get("gcs_base_url")
    return {**found, "gcs_base_url": str(account)} if account else found


def _service_account(config: dict[str, Any]) -> dict[str, Any]:
    """Google's file of a service account, {} without one or with a bad one: obstore says what is wrong with it."""
    text = config.get("service_account_key") or os.environ.get("GOOGLE_SERVICE_ACCOUNT_KEY")
    path = config.get("service_account") or os.environ.get("GOOGLE_SERVICE_ACCOUNT")
    path = path or os.environ.get("GOOGLE_SERVICE_ACCOUNT_PATH")
    try:
        if not text and path:
            with open(path) as file:
                text = file.read()
        found = json.loads(text or "{}")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_plain(url: str, options: dict[str, Any]) -> bool:
    """Whether somebody named a server by "http://", without encryption, which obstore refuses unless it is told to."""
    given = {name.lower().removeprefix("google_"): value for name, value in {**(options.get("config") or {}), **options}.items()}
    named = [url, *given.values(), *_places(given).values()]
    return any(isinstance(place, str) and place.startswith("http://") for place in named)


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


def has_more(parts: SplitResult) -> bool:
    """Whether a URL has a query or a fragment; on the web a user, too, or a path that would arrive at the server as another one.

    Args:
        parts: The URL.
    """
    return bool(parts.query or parts.fragment) or (parts.scheme in _WEB and ("@" in parts.netloc or not _is_kept(parts)))


def _is_kept(parts: SplitResult) -> bool:
    """Whether obstore asks for this very path: it takes those apart into names, and what has an escape is written anew."""
    try:
        names = unquote(parts.path, errors="strict").removeprefix("/").split("/")
    except UnicodeDecodeError:
        return False
    if any(name in ("", ".", "..") for name in names):
        return False
    return parts.scheme not in _WEB or not _ESCAPED.search(parts.path)


def _opened(url: str, deadline: float, options: dict[str, Any]) -> tuple[ObjectStore, str]:
    """The store, and the path in it."""
    from datetime import timedelta

    from obstore.store import HTTPStore, from_url

    parts = parts_of(url)
    if parts.scheme not in SCHEMES:
        raise OptionError(
            f"{without_secrets(url)!r}: the scheme must be one of {', '.join(sorted(SCHEMES))}; Fsspec knows others"
        )
    path = unquote(parts.path).lstrip("/")
    if not parts.netloc or not path or (parts.scheme not in _WEB and not _is_kept(parts)):
        wanted = "it should look like s3://bucket/key or https://host/path, with no '/' at the end"
        raise OptionError(f"{without_secrets(url)!r} names no object: {wanted}")
    if has_more(parts):
        raise OptionError(f"{without_secrets(url)!r}: obstore sends no '?' and '#', '%2F', '/' at the end, or user; Fsspec does")
    client: dict[str, Any] = {"timeout": timedelta(seconds=deadline), "read_timeout": timedelta(seconds=deadline / 4)}
    client |= _from_environment()
    # Repeated by RemoteSource too, but obstore knows which answers of a server pass, and when its credentials are stale.
    retry = {"max_retries": 3, "retry_timeout": timedelta(seconds=deadline), "backoff": {"init_backoff": timedelta(seconds=0.05)}}
    if _is_plain(url, options):
        client["allow_http"] = True
    options = {"retry_config": retry, **options, "client_options": {**client, **options.get("client_options", {})}}
    base = f"{parts.scheme}://{parts.netloc}"
    try:
        store = HTTPStore.from_url(base, **options) if parts.scheme in _WEB else from_url(base, **options)
    except Exception as error:
        raise OptionError(f"{without_secrets(url)!r}: {masked(str(error).partition(chr(10))[0])}") from None
    return store, path
