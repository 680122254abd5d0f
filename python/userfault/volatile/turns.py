"""A lock for bookkeeping that finalizers take part in.

A finalizer may run anywhere, in the middle of a block that holds the lock too; so it must not wait for it. What it has to say
goes on a list, and whoever has the lock, or takes it next, sees to it. No entry waits on the list while the lock is free.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

__all__ = ["Turns"]

T = TypeVar("T")


class Turns(Generic[T]):
    """`with turns:` is a turn; `turns.later(item)` has `settle(item)` called in one, soon, without waiting.

    Args:
        settle: Called with the lock held.
    """

    def __init__(self, settle: Callable[[T], None]) -> None:
        self._settle = settle
        self._lock = threading.Lock()
        self._items: deque[T] = deque()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.release()
        self._catch_up()

    def later(self, item: T) -> None:
        """Hand something in; never waits, and may be called by a finalizer.

        Args:
            item: What `settle` gets.
        """
        self._items.append(item)
        self._catch_up()

    def _catch_up(self) -> None:
        while self._items and self._lock.acquire(blocking=False):
            try:
                while self._items:
                    self._settle(self._items.popleft())
            finally:
                self._lock.release()
