"""volatile_cache: remember what a function returned, as long as there is memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, ParamSpec, TypeVar, overload

from userfault.volatile.cache import VolatileCache

__all__ = ["volatile_cache"]

P = ParamSpec("P")
R = TypeVar("R")


@overload
def volatile_cache(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def volatile_cache(*, maxsize: int | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def volatile_cache(function: Callable[..., Any] | None = None, /, *, maxsize: int | None = None) -> Callable[..., Any]:
    r"""Decorate a function that returns bytes or an ndarray so that results are kept in volatile memory.

    As `functools.lru_cache`, but nobody has to guess how many results fit: the kernel takes results when it needs the memory,
    and the function is called again. Each caller gets a copy of its own, so results may be changed.

    Args:
        function: Called with arguments that are hashable; bytes-like results are returned as bytes.
        maxsize: The most results there may be; None: no limit.

    Returns:
        The function, with `cache` (its `VolatileCache`), `cache_info()` (its statistics), `cache_clear()` and `__wrapped__`.

    Raises:
        TypeError: By the decorated function: arguments that are not hashable, or a result of another kind.
        OptionError: maxsize below 1.

    Threads: may be called from any; two that miss at once both call the function.

    Example:
        >>> @volatile_cache
        ... def tile(x, y):
        ...     return bytes([x, y])
        >>> tile(1, 2)
        b'\x01\x02'
    """
    if function is None:
        return functools.partial(_decorate, VolatileCache(maxsize))
    return _decorate(VolatileCache(maxsize), function)


def _decorate(cache: VolatileCache[Hashable], function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def remembering(*args: Any, **kwargs: Any) -> Any:
        key = (args, frozenset(kwargs.items()))
        found = cache.get(key)
        if found is None:
            found = function(*args, **kwargs)
            cache[key] = found
            if not (isinstance(found, bytes) or hasattr(found, "dtype")):
                found = bytes(found)
        return found

    remembering.cache = cache  # type: ignore[attr-defined]
    remembering.cache_info = cache.statistics  # type: ignore[attr-defined]
    remembering.cache_clear = cache.clear  # type: ignore[attr-defined]
    return remembering
