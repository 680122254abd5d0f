"""Work done by several threads, handed back in order, with a bounded number of things under way."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from userfault.errors import OptionError

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")
R = TypeVar("R")


def cpu_count() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def check_threads(threads: int | None) -> int:
    """The number of threads that was asked for, or one per CPU.

    Raises:
        OptionError: less than one.
    """
    if threads is None:
        return cpu_count()
    if threads < 1:
        raise OptionError(f"threads must be 1 or more, not {threads}")
    return threads


def map_ordered(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Yield ``work(item)`` for each item, in order.

    At most two items per thread are under way: whoever is slow to take results makes the reading of items wait,
    so memory does not grow with the number of items.
    On an error, or when the iterator is closed, what has not begun is dropped and what runs is waited for.

    Args:
        work: called in the threads; it should release the GIL.
        items: read in the calling thread.
        threads: how many, 1 or more.
    """
    from concurrent.futures import ThreadPoolExecutor

    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="userfault-image")
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
