"""Sources: where pages come from.

A source is a small picklable description. `userfault.map` opens it; nothing is read before a page is touched.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from userfault.sources.base import Source, native
from userfault.sources.function import Function
from userfault.sources.local import Bytes, Checksum, Deadline, File, Image, Retry, Zero
from userfault.sources.naming import remote_of, source_of

if TYPE_CHECKING:
    from userfault.sources.caching import Cached as Cached
    from userfault.sources.caching import CacheStatistics as CacheStatistics
    from userfault.sources.computed import Computed as Computed
    from userfault.sources.fsspec import Fsspec as Fsspec
    from userfault.sources.objects import Blob as Blob
    from userfault.sources.redis import Redis as Redis
    from userfault.sources.remote import RemoteSource as RemoteSource
    from userfault.sources.remote import Version as Version
    from userfault.sources.served import Served as Served

__all__ = [
    "Blob",
    "Bytes",
    "CacheStatistics",
    "Cached",
    "Checksum",
    "Computed",
    "Deadline",
    "File",
    "Fsspec",
    "Function",
    "Image",
    "Redis",
    "RemoteSource",
    "Retry",
    "Served",
    "Source",
    "Version",
    "Zero",
    "native",
    "remote_of",
    "source_of",
]

#: Far from here, so loaded when they are named.
_LAZY = {
    "Blob": "objects",
    "CacheStatistics": "caching",
    "Cached": "caching",
    "Computed": "computed",
    "Fsspec": "fsspec",
    "Redis": "redis",
    "RemoteSource": "remote",
    "Served": "served",
    "Version": "remote",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'userfault.sources' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"userfault.sources.{_LAZY[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
