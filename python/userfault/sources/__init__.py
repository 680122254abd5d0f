"""Sources: where pages come from.

A source is a small picklable description. `userfault.map` opens it; nothing is read before a page is touched.
"""

from __future__ import annotations

from userfault.sources.base import Source, native
from userfault.sources.caching import Cached, CacheStatistics
from userfault.sources.computed import Computed
from userfault.sources.fsspec import Fsspec
from userfault.sources.function import Function
from userfault.sources.local import Bytes, Checksum, Deadline, File, Image, Retry, Zero
from userfault.sources.naming import remote_of, source_of
from userfault.sources.objects import Blob
from userfault.sources.redis import Redis
from userfault.sources.remote import RemoteSource, Version

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
    "Source",
    "Version",
    "Zero",
    "native",
    "remote_of",
    "source_of",
]
