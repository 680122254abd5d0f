"""Asynchronous sources: one event loop in a thread of the library's, whoever touches."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel


def test_an_asynchronous_source_runs_on_the_librarys_loop(child, delivery):
    """Right bytes, its exception as the cause, one loop thread for all, reads of a populate at the same time."""

    def code():
        import asyncio
        import sys
        import threading
        import time

        from support.lazy import raised

        import userfault as uf

        names, running, most, waited = set(), 0, 0, False

        class Slow(uf.Source):
            length = 1 << 20
            unit = "64KiB"

            async def read_into(self, offset, buffer):
                nonlocal running, most, waited
                names.add(threading.current_thread().name)
                running, most = running + 1, max(most, running + 1)
                limit = time.monotonic() + 10
                while 0 < offset < 1 << 19 and most < 3 and not waited:  # the first two of populate for the third
                    await asyncio.sleep(0.01)
                    waited = time.monotonic() > limit
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
        assert time.monotonic() - began < 15
        assert cancelled.wait(5)

    child(code, args=[delivery]).check()


@pytest.mark.parametrize("end", ["stop", "callback", "task"])
def test_the_loop_outlives_a_source_that_ends_it(child, delivery, end):
    """It is shared: stop(), and an exit where nobody catches it, are nothing to the other sources."""

    def code():
        import asyncio
        import sys

        import userfault as uf

        async def leave():
            sys.exit(4)

        async def ends(offset, buffer):
            loop = asyncio.get_running_loop()
            if sys.argv[2] == "stop":
                loop.stop()
            elif sys.argv[2] == "callback":
                loop.call_soon(sys.exit)
            else:
                ends.task = loop.create_task(leave())
            await asyncio.sleep(0.01)
            buffer[:] = b"\x08" * len(buffer)

        async def seven(offset, buffer):
            await asyncio.sleep(0)
            buffer[:] = b"\x07" * len(buffer)

        def first(source):
            return memoryview(uf.map(uf.Function(source, "64KiB"), delivery=sys.argv[1], unit="4KiB", timeout="2s"))[0]

        assert [first(seven), first(ends), first(seven), first(seven)] == [7, 8, 7, 7]
        if sys.argv[2] == "task":
            assert ends.task.exception().code == 4

    child(code, args=[delivery, end]).check()


def test_a_loop_whose_thread_ended_is_replaced(child, delivery):
    """The read in the middle of which it ended is an error at once, and the next one has a new loop, also of an open region."""

    def code():
        import asyncio
        import sys
        import time

        from support.lazy import raised

        import userfault as uf

        async def ends(offset, buffer):
            if offset == 4096:
                loop = asyncio.get_running_loop()
                loop.run_forever = loop.close  # what its thread does next
                loop.stop()
            await asyncio.sleep(0.2)
            buffer[:] = b"\x07" * len(buffer)

        region = uf.map(uf.Function(ends, "64KiB", unit="4KiB"), delivery=sys.argv[1], timeout="10s")
        view = memoryview(region)
        assert view[0] == 7
        began = time.monotonic()
        error = raised(uf.PageError, lambda: bytes(view[4096:4100]))
        assert "loop" in str(error.__cause__), error
        assert time.monotonic() - began < 5
        assert view[8192] == 7

    child(code, args=[delivery]).check()


def test_what_comes_after_the_timeout_is_quiet(child, delivery):
    """The caller has left, and with it the buffer: an error of the coroutine is nobody's any more."""

    def code():
        import asyncio
        import gc
        import logging
        import sys
        import threading
        import time

        from support.lazy import raised

        import userfault as uf

        failed = threading.Event()

        async def late(offset, buffer):
            try:
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0.1)
                try:
                    buffer[:] = b"\x07" * len(buffer)
                except ValueError:
                    failed.set()
                    raise

        said = []
        logging.getLogger("asyncio").addHandler(logging.Handler())
        logging.getLogger("asyncio").handlers[0].emit = said.append
        region = uf.map(uf.Function(late, "64KiB", unit="4KiB"), delivery=sys.argv[1], timeout="300ms")
        raised(uf.PageError, lambda: bytes(memoryview(region)[:10]))
        assert failed.wait(5)
        for _ in range(10):
            time.sleep(0.02)
            gc.collect()
        assert not said, [str(one.exc_info or one.msg) for one in said]

    child(code, args=[delivery]).check()


def test_interrupts_at_any_moment_leave_the_loop_running(child):
    """No lock that it needs stays taken, no second loop is started and left, and no coroutine is forgotten."""

    def code():
        import random
        import threading
        import time

        from support.interrupts import interrupted

        import userfault as uf

        class Numbers(uf.Source):
            length = 4 << 20

            async def read_into(self, offset, buffer):
                buffer[:] = b"1" * len(buffer)

        region = uf.map(uf.Retry(Numbers()), unit="4KiB", resident="256KiB")
        view, dice = memoryview(region), random.Random(3)
        began = time.monotonic()
        assert interrupted(lambda: view[dice.randrange(len(view))], 4, uf.PageError) > 100
        assert time.monotonic() - began < 10  # a touch that waits in vain would take 30 s
        region.evict()
        assert bytes(view) == b"1" * len(view)
        assert sum(thread.name == "userfault-loop" for thread in threading.enumerate()) == 1

    child(code, timeout=60).check()
