"""Sources that are coroutines: one event loop for all of them, in a thread of the library's own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

__all__ = ["MOST_IN_FLIGHT", "event_loop", "waited_for"]

#: Reads of one source that run at once; the others wait for their turn.
MOST_IN_FLIGHT = 64

_SLICE_SECONDS = 0.05
# Reentrant: a signal handler may open a source in the middle of it.
_STARTING = threading.RLock()
_LOOP: tuple[asyncio.AbstractEventLoop, threading.Thread] | None = None


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
    return _running()[0]


def _running() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    """The loop and its thread: others if that thread has ended, whatever ended it."""
    import asyncio  # a tenth of a second that most never need

    global _LOOP
    found = _LOOP
    if found is not None and found[1].is_alive():
        return found
    with _STARTING:
        if _LOOP is None or not _LOOP[1].is_alive():
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=_run, args=(loop,), name="userfault-loop", daemon=True)
            thread.start()
            _LOOP = (loop, thread)
        return _LOOP


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Go on whatever a source did to the loop that it shares with others: stop() it, or exit in a callback or task of its own."""
    while not loop.is_closed():
        try:
            loop.run_forever()
        except (KeyboardInterrupt, SystemExit):
            continue


def waited_for(
    read_into: Callable[[int, memoryview], Coroutine[Any, Any, int | None]],
) -> Callable[[int, memoryview], int | None]:
    """Make a function of a coroutine function: it runs on the event loop, and the caller waits without the GIL.

    Args:
        read_into: As `Source.read_into`, `async`.

    Returns:
        The same for a thread that can wait.
    """
    import asyncio
    from concurrent.futures import CancelledError

    turns: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None

    async def in_turn(turn: asyncio.Semaphore, offset: int, buffer: memoryview) -> tuple[int | None, BaseException | None]:
        async with turn:
            try:
                return await read_into(offset, buffer), None
            except asyncio.CancelledError:
                raise
            # As an answer. Raised here SystemExit would end the loop, and what comes after the caller has left would be logged.
            except BaseException as error:
                return None, error

    def wait(offset: int, buffer: memoryview) -> int | None:
        nonlocal turns
        loop, thread = _running()
        if threading.current_thread() is thread:
            raise RuntimeError("an asynchronous source was touched on its own event loop, which would wait for itself")
        mine = turns
        if mine is None or mine[0] is not loop:
            mine = turns = (loop, asyncio.Semaphore(MOST_IN_FLIGHT))
        future = asyncio.run_coroutine_threadsafe(in_turn(mine[1], offset, buffer), loop)
        pending = threading.Lock()
        pending.acquire()
        future.add_done_callback(lambda _: pending.release())
        try:
            # In slices: the TimeoutError of a touch that takes too long is raised between two of them.
            while not pending.acquire(timeout=_SLICE_SECONDS):
                if not thread.is_alive():
                    raise RuntimeError("the event loop of asynchronous sources ended in the middle of the read")
            answer, error = future.result()
        except CancelledError:
            raise TimeoutError("the read was cancelled") from None
        except BaseException:
            future.cancel()  # Ctrl-C: nobody wants it any more
            raise
        finally:
            del future  # it and its exception, whose traceback holds this frame, would keep each other alive
        if error is not None:
            try:
                raise error
            finally:
                del error  # likewise
        return answer

    return wait
