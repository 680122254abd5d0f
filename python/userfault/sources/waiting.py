"""Sources that are coroutines: one event loop for all of them, in a thread of the library's own."""

from __future__ import annotations

import os
import threading
from _thread import start_new_thread
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from userfault import _core

if TYPE_CHECKING:
    import asyncio

__all__ = ["MOST_IN_FLIGHT", "event_loop", "waited_for"]

#: Reads of one source that run at once; the others wait for their turn.
MOST_IN_FLIGHT = 64

_ReadInto: TypeAlias = Callable[[int, memoryview], Coroutine[Any, Any, int | None]]
_SLICE_SECONDS = 0.05
# Reentrant: a signal handler may open a source in the middle of it.
_STARTING = threading.RLock()
_LOOP: _Loop | None = None


def _forget() -> None:
    """A forked child has no thread that runs the loop, and may find the lock taken for good."""
    global _LOOP, _STARTING
    _LOOP, _STARTING = None, threading.RLock()


os.register_at_fork(after_in_child=_forget)


def event_loop() -> asyncio.AbstractEventLoop:
    """The library's event loop of this process, started if need be.

    Returns:
        A running loop; use `asyncio.run_coroutine_threadsafe` to have something run there.
    """
    return _running().loop


class _Loop:
    """The loop and its thread. After an exception from outside while it was started it ends, and the next one is another."""

    def __init__(self) -> None:
        import asyncio  # a tenth of a second that most never need

        self.loop = asyncio.new_event_loop()
        self.ident = 0
        self.is_over = False

    def start(self) -> None:
        """Not by `threading`, whose `start` waits for the thread, and where an exception from outside leaves locks taken."""
        try:
            start_new_thread(self._run, ())
        except BaseException:
            self.is_over = True
            self.loop.call_soon_threadsafe(self.loop.stop)  # if there is a thread
            raise

    def _run(self) -> None:
        """Go on whatever a source did to the loop that it shares with others: stop() it, or exit in a callback of its own."""
        self.ident = threading.get_ident()
        threading.current_thread().name = "userfault-loop"
        try:
            while not self.is_over and not self.loop.is_closed():
                with suppress(KeyboardInterrupt, SystemExit):
                    self.loop.run_forever()
        finally:
            self.is_over = True


def _running() -> _Loop:
    """Another one if its thread has ended, whatever ended it."""
    global _LOOP
    found = _LOOP
    if found is not None and not found.is_over:
        return found
    with _STARTING:
        if _LOOP is None or _LOOP.is_over:
            fresh = _Loop()
            fresh.start()
            _LOOP = fresh
        return _LOOP


class _Read:
    """A read that is begun, and may be cancelled, on the event loop, while the thread that touched waits.

    No `concurrent.futures.Future`: an exception from outside (Ctrl-C) in the middle of its methods leaves its lock taken, and the
    loop, for good, waiting for it.
    """

    def __init__(self, turn: asyncio.Semaphore, read_into: _ReadInto, offset: int, buffer: memoryview) -> None:
        self.turn = turn
        self.call = read_into, offset, buffer
        self.is_wanted = True
        self.task: asyncio.Task[None] | None = None
        self.answer: int | None = None
        self.error: BaseException | None = None
        self.done = _core.Turn()

    def begin(self) -> None:
        """On the loop."""
        import asyncio

        if self.is_wanted:
            self.task = asyncio.get_running_loop().create_task(self._run())
            self.task.add_done_callback(self._end)

    async def _run(self) -> None:
        import asyncio

        read_into, offset, buffer = self.call
        try:
            async with self.turn:
                self.answer = await read_into(offset, buffer)
        except asyncio.CancelledError:
            raise
        # As an answer. Raised here SystemExit would end the loop, and what comes after the caller has left would be logged.
        except BaseException as error:
            self.error = error

    def _end(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self.error = TimeoutError("the read was cancelled")
        self.done.ring()

    def cancel(self) -> None:
        """On the loop."""
        if self.task is not None:
            self.task.cancel()


def waited_for(read_into: _ReadInto) -> Callable[[int, memoryview], int | None]:
    """Make a function of a coroutine function: it runs on the event loop, and the caller waits without the GIL.

    Args:
        read_into: As `Source.read_into`, `async`.

    Returns:
        The same for a thread that can wait.
    """
    import asyncio

    turns: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None

    def wait(offset: int, buffer: memoryview) -> int | None:
        nonlocal turns
        running = _running()
        loop = running.loop
        if threading.get_ident() == running.ident:
            raise RuntimeError("an asynchronous source was touched on its own event loop, which would wait for itself")
        mine = turns
        if mine is None or mine[0] is not loop:
            mine = turns = (loop, asyncio.Semaphore(MOST_IN_FLIGHT))
        read = _Read(mine[1], read_into, offset, buffer)
        try:
            loop.call_soon_threadsafe(read.begin)
            # In slices: the TimeoutError of a touch that takes too long is raised between two of them.
            while not read.done.wait(_SLICE_SECONDS):
                if running.is_over:
                    raise RuntimeError("the event loop of asynchronous sources ended in the middle of the read")
        except BaseException:
            read.is_wanted = False  # Ctrl-C: nobody wants it any more
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(read.cancel)
            raise
        if read.error is not None:
            try:
                raise read.error
            finally:
                read.error = None  # it and its exception, whose traceback holds this frame, would keep each other alive
        return read.answer

    return wait
