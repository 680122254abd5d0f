"""Calls that wait for a network, made by threads of our own while the caller waits for the answer, up to a deadline.

Why not in the thread that touched? It may be inside the very library that is to be called: an upload of lazy memory by
obstore touches it with obstore's runtime below on its stack, and that refuses to be entered twice. Locks of the
interrupted code that a store's client takes too would be waited for in vain. A hop to another thread and back costs 5 us,
up to 40 where a CPU has to be woken: `Turn` gives the GIL up before it wakes the other one, who would otherwise find it taken,
and sleep again.
"""

from __future__ import annotations

import math
import os
import threading
import time
from _thread import start_new_thread
from collections.abc import Callable
from typing import Any, TypeVar

from userfault import _core

__all__ = ["MOST_ASIDE", "aside", "in_slices"]

#: Calls that run at once; the others wait for their turn.
MOST_ASIDE = 64
_MOST_STUCK = 448
_SLICE = 0.05

T = TypeVar("T")


def in_slices(wait: Callable[[float], bool], seconds: float = math.inf) -> bool:
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
        #: Of a thread that was started for it: whether it is there, and among those that are counted.
        self.is_begun = False
        self.is_counted = True
        self.done = _core.Turn()
        #: Who sleeps and has to be rung for it; None: somebody takes it who is awake.
        self.bell: _core.Turn | None = None

    def run(self) -> None:
        """Run it."""
        try:
            self.value = self.function(*self.arguments)
        except BaseException as error:
            self.error = error


class _Worker:
    """A thread of ours, and the job that it was given."""

    def __init__(self, job: _Job) -> None:
        self.job: _Job | None = job
        self.bell = _core.Turn()
        self.alone = (self,)


class _Threads:
    """Threads that are started as they are needed, and stay. Who came to rest last is the first to get work: its CPU is warm."""

    def __init__(self) -> None:
        self.process = os.getpid()
        # Nothing is called or made while it is held: else a signal handler, or a finalizer, that touches lazy memory could run
        # there, and wait for threads that need the lock.
        self._lock = threading.RLock()
        self._idle: list[_Worker] = []
        self._waiting: list[_Job] = []
        self._threads = 0
        #: Threads in calls that nobody waits for any more: a server that hangs must not take the turns of all others.
        self._stuck = 0

    def give(self, job: _Job) -> None:
        """Have one of them run it, once `job.bell` is rung."""
        alone, is_more = (job,), False
        try:
            with self._lock:
                if self._idle:
                    # No exception from outside comes in between: a worker is at rest, or has a job and a bell.
                    worker = self._idle[-1]
                    worker.job = job
                    job.bell = worker.bell
                    del self._idle[-1]
                elif self._threads - (self._stuck if self._stuck < _MOST_STUCK else _MOST_STUCK) < MOST_ASIDE:
                    self._threads += 1
                    is_more = True
                else:
                    self._waiting += alone
            if is_more:
                # Not by `threading`, whose lock the caller may hold: one who touches while he starts a thread of his own.
                start_new_thread(self._serve, (_Worker(job),))
        except BaseException:
            with self._lock:
                if is_more and not job.is_begun:  # perhaps there is no thread; if there is, it counts itself
                    self._threads -= 1
                    job.is_counted = False
            raise

    def abandon(self, job: _Job) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            job.is_wanted = False
            self._stuck += job.is_running
        if job.bell is not None:
            job.bell.ring()  # perhaps again; who has nothing to do goes on sleeping

    def _serve(self, worker: _Worker) -> None:
        first = worker.job
        if first is not None:
            with self._lock:
                first.is_begun = True
                self._threads += not first.is_counted
        del first
        while True:
            job = worker.job
            if job is None:
                worker.bell.wait()
                continue
            with self._lock:
                job.is_running = job.is_wanted
            if job.is_running:
                job.run()
            with self._lock:
                self._stuck -= job.is_running and not job.is_wanted
                job.is_running = False
                if self._waiting:
                    worker.job = self._waiting[0]
                    del self._waiting[0]
                else:
                    worker.job = None
                    self._idle += worker.alone
                done, busy = job.done, worker.job
            del job
            if busy is None:
                worker.bell.wait(ring=done)
            else:
                done.ring()
            del done, busy


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
    is_done = False
    try:
        threads.give(job)
        # The first slice by itself: most answers come in it, and each microsecond shows beside the store's own client.
        is_done = job.done.wait(min(seconds, _SLICE), job.bell) or in_slices(job.done.wait, seconds - _SLICE)
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
