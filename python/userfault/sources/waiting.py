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
    import asyncio  # a tenth of a second that most never need

    global _LOOP
    with _STARTING:
        if _LOOP is None:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="userfault-loop", daemon=True)
            thread.start()
            _LOOP = (loop, thread)
        return _LOOP[0]


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

    loop = event_loop()
    turns = asyncio.Semaphore(MOST_IN_FLIGHT)

    async def in_turn(offset: int, buffer: memoryview) -> int | BaseException | None:
        async with turns:
            try:
                return await read_into(offset, buffer)
            except (KeyboardInterrupt, SystemExit) as stop:
                return stop  # raised here it would end the loop, and with it all sources

    def wait(offset: int, buffer: memoryview) -> int | None:
        if _LOOP is not None and threading.current_thread() is _LOOP[1]:
            raise RuntimeError("an asynchronous source was touched on its own event loop, which would wait for itself")
        future = asyncio.run_coroutine_threadsafe(in_turn(offset, buffer), loop)
        pending = threading.Lock()
        pending.acquire()
        future.add_done_callback(lambda _: pending.release())
        try:
            # In slices: the TimeoutError of a touch that takes too long is raised between two of them.
            while not pending.acquire(timeout=_SLICE_SECONDS):
                pass
            answer = future.result()
        except CancelledError:
            raise TimeoutError("the read was cancelled") from None
        except BaseException:
            future.cancel()  # Ctrl-C: nobody wants it any more
            raise
        finally:
            del future  # it and its exception, whose traceback holds this frame, would keep each other alive
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return wait
