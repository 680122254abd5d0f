"""The lock of all caches, in the middle of whose work other code of the same thread may run; the ends of pinned blocks share it.

That is finalizers that a garbage collection calls, signal handlers, the `__eq__` of keys. Such code must not wait: not for its
own thread, nor for another one that waits for it in the middle of another cache. So there is one lock for all, and what such code
has to say goes on a list that whoever has the lock, or takes it next, works off.

Exceptions from outside (Ctrl-C) may come after any call. So the lock is taken by `with` alone, which nothing comes between, and
a flag that such an exception leaves wrong costs a wait at most.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["calls", "catch_up", "is_inside", "later", "once", "turn"]

R = TypeVar("R")

_LOCK = threading.RLock()
_IS_ON = False
calls: deque[Callable[[], Any]] = deque()
"""What is still to be done in a turn. Whom no exception from outside must keep from it appends by one call, then `catch_up`; for
a block or a lifetime `_core.Finally` does both."""


def _begin() -> None:
    """A forked child may find the lock taken for good."""
    global _LOCK, _IS_ON
    _LOCK, _IS_ON = threading.RLock(), False
    calls.clear()


os.register_at_fork(after_in_child=_begin)


def is_inside() -> bool:
    """Whether this thread is in the middle of a turn, and the caller something that came in between."""
    return bool(_LOCK._is_owned())  # type: ignore[attr-defined]


def turn(function: Callable[..., R], *arguments: Any) -> R:
    """Call `function` with the lock held, and do what came in meanwhile. Not inside of a turn.

    Args:
        function: What to call.
        *arguments: For it.

    Returns:
        What it returned.

    Blocks: on turns of other threads.
    """
    global _IS_ON
    try:
        with _LOCK:
            _IS_ON = True
            try:
                return function(*arguments)
            finally:
                _work_off()
                _IS_ON = False
    finally:
        catch_up()


def later(call: Callable[[], Any]) -> None:
    """Have something done in a turn, soon; may be called by a finalizer, and inside of a turn: then it is done at its end.

    Args:
        call: What to do. One that raises is called again, for the exception may come from outside; see `once`.
    """
    calls.append(call)
    if not _IS_ON:  # else the turn sees to it when it is over: it looks at the list after it has put the flag down
        catch_up()


def catch_up() -> None:
    """Do what is on the list, unless this is inside of a turn, which will."""
    while calls and not is_inside():
        with _LOCK:
            _work_off()


def once(call: Callable[[], Any]) -> Callable[[], Any]:
    """Make something of `call` that calls it the first time only: for what must not be done again after an exception.

    Args:
        call: What to do.
    """
    rest = [call]
    return lambda: rest.pop()() if rest else None


def _work_off() -> None:
    """In order; what comes in meanwhile comes behind. What an exception ends is called again, next time."""
    while calls:
        calls[0]()
        calls.popleft()
