"""Sources: where pages come from.

A source is a small picklable description. `userfault.map` opens it; nothing is read before a page is touched.
"""

from __future__ import annotations

from userfault.sources.base import Source, native
from userfault.sources.function import Function
from userfault.sources.local import Bytes, Checksum, Deadline, File, Image, Retry, Zero
from userfault.sources.naming import source_of

__all__ = [
    "Bytes",
    "Checksum",
    "Deadline",
    "File",
    "Function",
    "Image",
    "Retry",
    "Source",
    "Zero",
    "native",
    "source_of",
]
