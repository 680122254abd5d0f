"""Calls that wait for a network, made by threads of our own while the caller waits for the answer, up to a deadline.

Why not in the thread that touched? It may be inside the very library that is to be called: an upload of lazy memory by
obstore touches it with obstore's runtime below on its stack, and that refuses to be entered twice. Locks of the
interrupted code that a store's client takes too would be waited for in vain. A hop to another thread costs about 20 us.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["MOST_ASIDE", "aside", "in_slices"]

#: Calls that run at once; the others wait for their turn.
MOST_ASIDE = 64
_MOST_STUCK = 448
_SLICE = 0.05

T = TypeVar("T")


def in_slices(wait: Callable[[float], bool], seconds: float) -> bool:
    """Wait in small pieces: the exception that `map(timeout=...)` sends into a read arrives between two of them only.

    Args:
        wait: Waits for so many seconds at most; True: it is there.
        seconds: In all.

    Returns:
        Whether it came.
    """
    until = time.monotonic() + seconds
    while True:
        left = until - time.monotonic()
        if wait(max(0.0, min(left, _SLICE))):
            return True
        if left <= _SLICE:
            return False


class _Job:
    """A call and what becomes of it."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function = function
        self.arguments = arguments
        self.value: Any = None
        self.error: BaseException | None = None
        self.is_wanted = True
        self.is_running = False
        self.done = threading.Lock()
        self.done.acquire()

    def run(self) -> None:
        """Run it."""
        try:
            self.value = self.function(*self.arguments)
        except BaseException as error:
            self.error = error
        finally:
            self.done.release()


class _Threads:
    """Threads that are started as they are needed, and stay."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        # Reentrant, since a garbage collection in here may run a finalizer that touches lazy memory.
        self._lock = threading.RLock()
        self._idle = 0
        self._threads = 0
        #: Threads in calls that nobody waits for any more: a server that hangs must not take the turns of all others.
        self._stuck = 0

    def give(self, job: _Job) -> None:
        """Have one of them run it."""
        with self._lock:
            # Below zero: so many jobs wait for a thread to come back.
            if self._idle <= 0 and self._threads - min(self._stuck, _MOST_STUCK) < MOST_ASIDE:
                self._threads += 1
                threading.Thread(target=self._serve, name="userfault-store", daemon=True).start()
            else:
                self._idle -= 1
        self._jobs.put(job)

    def abandon(self, job: _Job) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            job.is_wanted = False
            self._stuck += job.is_running

    def _serve(self) -> None:
        while True:
            job = self._jobs.get()
            with self._lock:
                job.is_running = job.is_wanted
            if job.is_running:
                job.run()
            with self._lock:
                self._stuck -= job.is_running and not job.is_wanted
                job.is_running = False
                self._idle += 1
            del job


_THREADS: _Threads | None = None


def _threads() -> _Threads:
    global _THREADS
    threads = _THREADS
    if threads is None or threads.process != os.getpid():  # a forked child has none of its parent's
        threads = _THREADS = _Threads()
    return threads


def aside(function: Callable[..., T], *arguments: Any, seconds: float) -> T:
    """Call `function(*arguments)` in a thread of ours.

    Args:
        function: What to call. If the time is up it runs on, and its answer is dropped.
        *arguments: For it.
        seconds: How long to wait for it.

    Returns:
        What it returned.

    Raises:
        TimeoutError: It was not done by then.
        BaseException: What it raised.

    Blocks: until then; Ctrl-C works. GIL: released.
    """
    job, threads = _Job(function, arguments), _threads()
    threads.give(job)
    is_done = False
    try:
        # The first slice by itself: most answers come in it, and each microsecond shows beside the store's own client.
        is_done = job.done.acquire(timeout=min(seconds, _SLICE)) or in_slices(
            lambda slice_seconds: job.done.acquire(timeout=slice_seconds), seconds - _SLICE
        )
    finally:
        if not is_done:
            threads.abandon(job)
    if not is_done:
        raise TimeoutError(f"no answer within {seconds:g} s")
    if job.error is not None:
        try:
            raise job.error
        finally:
            job.error = None  # no circle of the exception, this frame and the job
    value: T = job.value
    return value
