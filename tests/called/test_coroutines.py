"""Asynchronous sources: one event loop in a thread of the library's, whoever touches."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel

DELIVERIES = pytest.mark.parametrize("delivery", ["thread", "signal"])


@DELIVERIES
def test_an_asynchronous_source_runs_on_the_librarys_loop(child, delivery):
    """Right bytes, its exception as the cause, one loop thread for all, reads of a populate at the same time."""

    def code():
        import asyncio
        import sys
        import threading

        from support.lazy import raised

        import userfault as uf

        names, running, most = set(), 0, 0

        class Slow(uf.Source):
            length = 1 << 20
            unit = "64KiB"

            async def read_into(self, offset, buffer):
                nonlocal running, most
                names.add(threading.current_thread().name)
                running, most = running + 1, max(most, running + 1)
                await asyncio.sleep(0.02)
                running -= 1
                if offset >= 1 << 19:
                    raise LookupError(f"nothing at {offset}")
                buffer[:] = b"\x07" * len(buffer)

        async def seven(offset, buffer):
            await asyncio.sleep(0)
            buffer[:] = b"\x07" * len(buffer)

        delivery = sys.argv[1]
        region = uf.map(Slow(), delivery=delivery)
        view = memoryview(region)
        assert view[5] == 7
        region.populate(slice(0, 1 << 19))
        assert most > 2, most
        error = raised(uf.PageError, lambda: bytes(view[600_000:600_010]))
        assert isinstance(error.__cause__, LookupError), error
        assert memoryview(uf.map(uf.Function(seven, "64KiB"), delivery=delivery))[9] == 7
        assert names == {"userfault-loop"}
        assert sum(thread.name == "userfault-loop" for thread in threading.enumerate()) == 1

    child(code, args=[delivery]).check()


def test_an_asynchronous_source_touched_on_its_own_loop_is_refused(child):
    """Code on the library's loop cannot wait for the loop: an error, no hang."""

    def code():
        import asyncio

        from support.lazy import raised

        import userfault as uf
        from userfault.sources.waiting import event_loop

        async def seven(offset, buffer):
            buffer[:] = b"\x07" * len(buffer)

        view = memoryview(uf.map(uf.Function(seven, "1MiB", unit="4KiB")))

        async def touch():
            return raised(uf.PageError, lambda: bytes(view[:10]))

        error = asyncio.run_coroutine_threadsafe(touch(), event_loop()).result(10)
        assert "event loop" in str(error.__cause__), error
        assert view[0] == 7

    child(code).check()


@DELIVERIES
def test_the_loop_outlives_a_source_that_exits(child, delivery):
    """sys.exit() in a coroutine ends who touched, not the loop; an object with an async __call__ is a source too."""

    def code():
        import sys

        from support.lazy import raised

        import userfault as uf

        class Seven:
            async def __call__(self, offset, buffer):
                if offset == 0:
                    sys.exit(5)
                buffer[:] = b"\x07" * len(buffer)

        region = uf.map(uf.Function(Seven(), "1MiB", unit="4KiB"), delivery=sys.argv[1], timeout="2s")
        view = memoryview(region)
        assert raised(SystemExit, lambda: bytes(view[:4])).code == 5
        assert isinstance(raised(uf.PageError, lambda: region.populate(slice(0, 4))).__cause__, SystemExit)
        assert bytes(view[4096:4100]) == b"\x07" * 4
        region.populate(slice(8192, 8200))

    child(code, args=[delivery]).check()


@DELIVERIES
def test_an_asynchronous_source_that_hangs_ends_by_the_timeout(child, delivery):
    """The wait for a coroutine is Python's: it ends by the region's timeout, and the coroutine is cancelled."""

    def code():
        import asyncio
        import sys
        import threading
        import time

        from support.lazy import raised

        import userfault as uf

        cancelled = threading.Event()

        async def hang(offset, buffer):
            try:
                await asyncio.sleep(3600)
            finally:
                cancelled.set()

        region = uf.map(uf.Function(hang, "64KiB", unit="4KiB"), delivery=sys.argv[1], timeout="300ms")
        began = time.monotonic()
        error = raised(uf.PageError, lambda: bytes(memoryview(region)[:10]))
        assert "deadline" in str(error), error
        assert time.monotonic() - began < 3
        assert cancelled.wait(5)

    child(code, args=[delivery]).check()
