"""A lock for bookkeeping in the middle of which other code of the same thread may run.

That is finalizers that a garbage collection calls, signal handlers, the `__eq__` of keys. Such code must not wait for its own
thread. What a finalizer has to say goes on a list, and whoever has the lock, or takes it next, sees to it; what else cannot be
done in the middle is done when the turn is over.

Exceptions from outside (Ctrl-C) may come after any call. So the lock is taken by `with` alone, which nothing comes between, and
a flag that such an exception leaves wrong costs a wait at most.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

__all__ = ["Turns"]

T = TypeVar("T")
R = TypeVar("R")


class Turns(Generic[T]):
    """`turns.run(function)` is a turn; `turns.later(item)` has `settle(item)` called in one, soon.

    Args:
        settle: Called with the lock held.
    """

    def __init__(self, settle: Callable[[T], None]) -> None:
        self._settle = settle
        self._lock = threading.RLock()
        self._is_on = False
        self._items: deque[T] = deque()
        self._calls: deque[Callable[[], Any]] = deque()

    @property
    def is_inside(self) -> bool:
        """Whether this thread is in the middle of a turn, and the caller something that came in between."""
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]

    def run(self, function: Callable[..., R], *arguments: Any) -> R:
        """Call `function` with the lock held, and then see to what came in meanwhile. Not inside of a turn.

        Args:
            function: What to call.
            *arguments: For it.

        Returns:
            What it returned.

        Blocks: on turns of other threads.
        """
        try:
            with self._lock:
                self._is_on = True
                try:
                    return function(*arguments)
                finally:
                    self._is_on = False
        finally:
            self._catch_up()

    def later(self, item: T) -> None:
        """Hand something in; may be called by a finalizer.

        Args:
            item: What `settle` gets.
        """
        self._items.append(item)
        if not self._is_on:  # else the turn sees to it when it is over: it looks at the list after it has put the flag down
            self._catch_up()

    def afterwards(self, call: Callable[[], Any]) -> None:
        """Inside of a turn: have something done when it is over, by this thread, which then may take turns of its own.

        Args:
            call: What to do; it must not raise.
        """
        self._calls.append(call)

    def _catch_up(self) -> None:
        while (self._items or self._calls) and not self.is_inside:
            with self._lock:
                while self._items:
                    self._settle(self._items.popleft())
            if self._calls:
                self._calls.popleft()()
