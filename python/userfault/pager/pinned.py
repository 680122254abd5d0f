"""Which file a name meant: a pager opens it by that name again, and bytes of two files must not meet in one region."""

from __future__ import annotations

import io
import os
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from userfault.sources import File, Image, Source
from userfault.sources.local import Seen

__all__ = ["dumps", "seen"]


def seen(source: File | Image) -> Seen | None:
    """What tells the file that the source names now from others, and from itself once it is changed.

    Args:
        source: One that is opened by a name, or an Image of another source.

    Returns:
        Device, inode, length and last change, as the engine compares them; None: there is no such file here.
    """
    if isinstance(source.path, Source):
        return None
    try:
        about = os.stat(source.path)
    except (OSError, ValueError):
        return None
    return (about.st_dev, about.st_ino, about.st_size, *divmod(about.st_ctime_ns, 10**9))


def dumps(source: Source) -> bytes:
    """A source for a pager, in which each file is known by more than its name.

    Args:
        source: Any that can be pickled by cloudpickle.

    Raises:
        Exception: It cannot be pickled, and why.
    """
    with io.BytesIO() as file:
        _Pickler(file).dump(source)
        return file.getvalue()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def reducer_override(self, obj: Any) -> Any:
        if issubclass(type(obj), (File, Image)) and (known := seen(obj)) is not None:
            make, arguments, state, *rest = obj.__reduce_ex__(2)
            if isinstance(state, dict):  # it is, but for a subclass that says how it is pickled
                return (make, arguments, {**state, "_seen": known}, *rest)
        return super().reducer_override(obj)
