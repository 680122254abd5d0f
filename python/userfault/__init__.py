"""userfault: decide what a page of memory holds at the moment somebody touches it.

>>> import userfault as uf
>>> region = uf.map(b"lazy memory " * 1000)
>>> region.numpy("u1")[:4].tobytes()
b'lazy'

`map` opens a source as memory, `load` an array file; `kernel` is userfaultfd(2) itself, `image` the format at rest.
"""

from __future__ import annotations

import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any

from userfault import _core
from userfault.checking import checked
from userfault.errors import (
    ImageError,
    OptionError,
    PageError,
    PagePurged,
    RefusedError,
    RegionClosedError,
    RemoteError,
    StoreChanged,
    StoreError,
    StoreMissing,
    UnsupportedError,
    UserFault,
    UserfaultError,
)
from userfault.mapping import load, map
from userfault.region import Options, Region, Statistics
from userfault.sources import Bytes, Checksum, Deadline, File, Function, Image, Retry, Source, Zero

if TYPE_CHECKING:
    from userfault import image as image
    from userfault import kernel as kernel
    from userfault import mman as mman
    from userfault import pager as pager
    from userfault import testing as testing
    from userfault import volatile as volatile
    from userfault.kernel import Capabilities as Capabilities
    from userfault.kernel import capabilities as capabilities
    from userfault.sources import Blob as Blob
    from userfault.sources import Cached as Cached
    from userfault.sources import Computed as Computed
    from userfault.sources import Fsspec as Fsspec
    from userfault.sources import Redis as Redis
    from userfault.sources import Served as Served
    from userfault.volatile import VolatileBuffer as VolatileBuffer
    from userfault.volatile import VolatileCache as VolatileCache
    from userfault.volatile import volatile_cache as volatile_cache

__all__ = [
    "Blob",
    "Bytes",
    "Cached",
    "Capabilities",
    "Checksum",
    "Computed",
    "Deadline",
    "File",
    "Fsspec",
    "Function",
    "Image",
    "ImageError",
    "OptionError",
    "Options",
    "PageError",
    "PagePurged",
    "Redis",
    "RefusedError",
    "Region",
    "RegionClosedError",
    "RemoteError",
    "Retry",
    "Served",
    "Source",
    "Statistics",
    "StoreChanged",
    "StoreError",
    "StoreMissing",
    "UnsupportedError",
    "UserFault",
    "UserfaultError",
    "VolatileBuffer",
    "VolatileCache",
    "Zero",
    "capabilities",
    "checked",
    "image",
    "kernel",
    "load",
    "map",
    "mman",
    "pager",
    "testing",
    "volatile_cache",
]

__version__ = "0.1.0"

_core.set_exceptions(threading.main_thread().ident or 0)

_ROOMS = ("image", "kernel", "mman", "pager", "testing", "volatile")
_LAZY = {
    "Capabilities": "kernel",
    "capabilities": "kernel",
    **dict.fromkeys(("Blob", "Cached", "Computed", "Fsspec", "Redis", "Served"), "sources"),
    **dict.fromkeys(("VolatileBuffer", "VolatileCache", "volatile_cache"), "volatile"),
}


def __getattr__(name: str) -> Any:
    """Rooms that not everybody enters are loaded when they are named."""
    if name in _ROOMS:
        return import_module(f"userfault.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'userfault' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"userfault.{_LAZY[name]}"), name)
    return found


def __dir__() -> list[str]:
    """All public names, those included that are loaded when they are named."""
    return sorted({*globals(), *__all__})
