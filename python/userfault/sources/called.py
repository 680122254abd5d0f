"""A Python source as the engine calls it: opened once for each region, closed with the last."""

from __future__ import annotations

import contextlib
import inspect
import operator
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from userfault.errors import OptionError
from userfault.sources.readers import ensure_readers
from userfault.units import parse_bytes

if TYPE_CHECKING:
    from userfault.sources.base import Source

__all__ = ["Opened", "close_all", "facts", "is_async", "name_of"]

ReadInto = Callable[[int, memoryview], Any]


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

    read_into: ReadInto
    prefetch_hint: Callable[[int, int], None] | None
    close: Callable[[], None]
    length: int
    name: str
    unit: int
    piece: int
    readahead: bool

    @classmethod
    def of(cls, source: Source, *, is_async: bool, hints: bool) -> Opened:
        """Open `source`.

        Args:
            source: One whose class defines `read_into`.
            is_async: Whether that is a coroutine function.
            hints: Whether its `prefetch_hint` does anything.

        Returns:
            The description.

        Raises:
            OptionError: `length` is missing or no number of bytes; a wish is none.
        """
        read_into: ReadInto = source.read_into
        if is_async:
            from userfault.sources.waiting import waited_for  # brings asyncio, 20 ms that others need not wait for

            read_into = waited_for(read_into)
        made = cls(
            read_into=read_into,
            prefetch_hint=source.prefetch_hint if hints else None,
            close=lambda: _closed(source),
            length=_length(source),
            name=name_of(source),
            unit=_wish(source, "unit"),
            piece=_wish(source, "preferred_size"),
            readahead=bool(source.readahead),
        )
        ensure_readers()
        with _LOCK:
            _OPEN.setdefault(id(source), []).append(source)
        return made


def is_async(function: Callable[..., Any]) -> bool:
    """Tell whether a call of `function` makes a coroutine.

    Args:
        function: A function, a method, or an object with `__call__`.

    Returns:
        True if it, or its `__call__`, is defined by `async def`.
    """
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


# Reentrant: a region may die, and close its source, in a garbage collection that starts anywhere.
_LOCK = threading.RLock()
#: By identity, for sources compare as they like: one entry for each time that it is open.
_OPEN: dict[int, list[Source]] = {}


def _forget() -> None:
    """A forked child has no region of its parent's, and may find the lock taken for good by a thread that it does not have."""
    global _LOCK
    _LOCK = threading.RLock()
    _OPEN.clear()


os.register_at_fork(after_in_child=_forget)


def _closed(source: Source) -> None:
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


def facts(source: Source) -> tuple[int, str, int]:
    """What is known of a source without opening it, for a region that another process fills.

    Args:
        source: One whose class defines `read_into`.

    Returns:
        Its length in bytes, its name, and the unit that it likes (0: no wish).

    Raises:
        OptionError: `length` is missing or no number of bytes; a wish is none.
    """
    return _length(source), name_of(source), _wish(source, "unit")


def name_of(source: Source) -> str:
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


def _length(source: Source) -> int:
    kind = type(source).__name__
    try:
        given = source.length if hasattr(source, "length") else len(source)  # type: ignore[arg-type]
        length = parse_bytes(given, f"{kind}.length") if isinstance(given, str) else operator.index(given)
    except TypeError:
        raise OptionError(f"{kind} must have a length: an attribute `length` in bytes, or __len__") from None
    if not 0 <= length < 1 << 63:
        raise OptionError(f"{kind}: a length of {length} bytes cannot be mapped")
    return length


def _wish(source: Source, name: str) -> int:
    wish = getattr(source, name)
    return 0 if wish is None else parse_bytes(wish, f"{type(source).__name__}.{name}")
