"""A Python source as the engine calls it: opened once for each region, closed with the last.

Here a source is any object that has what is asked of it; `Source` is made of this.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from userfault.errors import OptionError
from userfault.units import parse_bytes

__all__ = ["Opened", "close_all", "facts", "hold_open", "is_async", "name_of", "wish_of"]


@dataclass(frozen=True)
class Opened:
    """What the engine is told; its fields are looked up by name.

    Attributes:
        read_into: `Source.read_into`, or what waits for it.
        prefetch_hint: `Source.prefetch_hint`, if that does anything.
        close: To be called once, when nothing reads any more.
        length: Bytes.
        name: For people.
        unit: Bytes; 0: no wish.
        piece: Bytes; 0: no wish.
        readahead: See `Source`.
    """

    read_into: Callable[[int, memoryview], Any]
    prefetch_hint: Callable[[int, int], None] | None
    close: Callable[[], None]
    length: int
    name: str
    unit: int
    piece: int
    readahead: bool


def is_async(function: Callable[..., Any]) -> bool:
    """Tell whether a call of `function` makes a coroutine.

    Args:
        function: A function, a method, or an object with `__call__`.

    Returns:
        True if it, or its `__call__`, is defined by `async def`.
    """
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


class Closable(Protocol):
    """What has to be closed."""

    def close(self) -> None:
        """Let go of everything."""


# Reentrant: a region may die, and close its source, in a garbage collection that starts anywhere.
_LOCK = threading.RLock()
#: By identity, for sources compare as they like: one entry for each time that it is open.
_OPEN: dict[int, list[Closable]] = {}


def _forget() -> None:
    """A forked child has no region of its parent's, and may find the lock taken for good by a thread that it does not have."""
    global _LOCK
    _LOCK = threading.RLock()
    _OPEN.clear()


os.register_at_fork(after_in_child=_forget)


def hold_open(source: Closable) -> Callable[[], None]:
    """Count a source as open once more.

    Args:
        source: Any; it is closed when nobody holds it open any more.

    Returns:
        To be called once, when it is no longer wanted.
    """
    with _LOCK:
        _OPEN.setdefault(id(source), []).append(source)
    return lambda: _let_go(source)


def _let_go(source: Closable) -> None:
    with _LOCK:
        opened = _OPEN.get(id(source))
        if opened is None:
            return  # by close_all, or opened by the process that this one was forked from
        opened.pop()
        if opened:
            return
        del _OPEN[id(source)]
    source.close()


def close_all() -> None:
    """Close every source that is open: the process is about to end, and nothing reads them any more."""
    with _LOCK:
        opened = [sources[0] for sources in _OPEN.values()]
        _OPEN.clear()
    for source in opened:
        with contextlib.suppress(Exception):
            source.close()


def facts(source: Any) -> tuple[int, str, int]:
    """What is known of a source without opening it.

    Args:
        source: One with a `length`, or `__len__`, and a `unit`.

    Returns:
        Its length in bytes, its name, and the unit that it likes (0: no wish).

    Raises:
        OptionError: `length` is missing or no number of bytes; a wish is none.
    """
    return _length(source), name_of(source), wish_of(source, "unit")


def name_of(source: object) -> str:
    """The repr of a source, as text that has a UTF-8 form (names of files may have none).

    Args:
        source: Any.

    Returns:
        The name; of a source whose `__repr__` fails, its class.
    """
    try:
        name = repr(source)
    except Exception:
        name = f"a {type(source).__name__}"
    return name.encode("utf-8", "backslashreplace").decode()


def wish_of(source: object, name: str) -> int:
    """What a source likes to have, if it says so.

    Args:
        source: Any that has the attribute.
        name: Of an attribute in bytes, as a number or a string such as "64KiB", or None.

    Returns:
        Bytes; 0: no wish.

    Raises:
        OptionError: It is no number of bytes.
    """
    wish = getattr(source, name)
    return 0 if wish is None else parse_bytes(wish, f"{type(source).__name__}.{name}")


def _length(source: Any) -> int:
    kind = type(source).__name__
    given = _given_length(source, kind)
    try:
        length = parse_bytes(given, f"{kind}.length") if isinstance(given, str) else operator.index(given)
    except TypeError:
        raise OptionError(f"{kind}.length: must be a number of bytes, and is of type {type(given).__name__}") from None
    if not 0 <= length < 1 << 63:
        raise OptionError(f"{kind}: a length of {length} bytes cannot be mapped")
    return length


def _given_length(source: Any, kind: str) -> Any:
    """What it says; an exception of the code that finds it out is the source's own."""
    if inspect.getattr_static(source, "length", None) is not None or hasattr(source, "length"):
        return source.length
    if hasattr(source, "__len__"):
        return len(source)
    raise OptionError(f"{kind} must have a length: an attribute `length` in bytes, or __len__")
