"""Which file a name meant: a pager opens it by that name again, and bytes of two files must not meet in one region."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
    with io.BytesIO() as file, _script_by_value():
        _Pickler(file).dump(source)
        return file.getvalue()


#: What a script is called in a process that multiprocessing started by spawn or forkserver; cloudpickle knows `__main__` alone.
_SCRIPT = "__mp_main__"
# Reentrant: what is pickled may map something in turn.
_LOCK = threading.RLock()


def _forget() -> None:
    """A forked child may find the lock taken for good."""
    global _LOCK
    _LOCK = threading.RLock()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def _script_by_value() -> Iterator[None]:
    """No pager can import the script: what it defines goes there by value, as that of `__main__` does."""
    script = sys.modules.get(_SCRIPT)
    with _LOCK:
        if script is None or _SCRIPT in cloudpickle.list_registry_pickle_by_value():
            yield
            return
        cloudpickle.register_pickle_by_value(script)
        try:
            yield
        finally:
            cloudpickle.unregister_pickle_by_value(script)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def reducer_override(self, obj: Any) -> Any:
        if issubclass(type(obj), (File, Image)) and (known := seen(obj)) is not None:
            make, arguments, state, *rest = obj.__reduce_ex__(2)
            if isinstance(state, dict):  # it is, but for a subclass that says how it is pickled
                return (make, arguments, {**state, "_seen": known}, *rest)
        return super().reducer_override(obj)
