"""A Python source from opening to closing: asynchronous ones, large reads, forks, the end of the interpreter."""

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


def test_close_is_called_once_after_the_last_region(child):
    """One object in two regions: closed when both are gone, and it may be opened again."""

    def code():
        from support.called import Known

        import userfault as uf

        closed = []

        class Closing(Known):
            def close(self):
                closed.append(1)

        source = Closing(65536)
        first, second = uf.map(source), uf.map(uf.Retry(source))
        assert memoryview(first)[0] == source.bytes[0] == memoryview(second)[0]
        first.close()
        assert closed == []
        second.close()
        assert closed == [1]
        with uf.map(source) as third:
            assert third.read(0, 10) == source.bytes[:10]
        del third
        assert closed == [1, 1]

    child(code).check()


def test_reads_of_many_units_are_large_and_several_at_once(child):
    """preferred_size: populate reads in pieces; hints are heard; a failing piece is told unit by unit."""

    def code():
        import threading
        import time

        from support.lazy import check_endings, known_bytes, raised

        import userfault as uf

        data = known_bytes((4 << 20) + 777).tobytes()

        class Large(uf.Source):
            length = len(data)
            unit = "64KiB"
            preferred_size = "1MiB"
            bad = range(0)

            def __init__(self):
                self.reads, self.hints, self.running, self.most = [], [], 0, 0
                self.lock = threading.Lock()

            def read_into(self, offset, buffer):
                with self.lock:
                    self.reads.append((offset, len(buffer)))
                    self.running += 1
                    self.most = max(self.most, self.running)
                time.sleep(0.02)
                with self.lock:
                    self.running -= 1
                if any(at in self.bad for at in range(offset, offset + len(buffer), 4096)):
                    raise LookupError(str(offset))
                buffer[:] = data[offset : offset + len(buffer)]

            def prefetch_hint(self, offset, length):
                self.hints.append((offset, length))

        source = Large()
        region = uf.map(source)
        region.populate()
        assert bytes(memoryview(region)) == data
        assert sorted(source.reads) == [(at << 20, 1 << 20) for at in range(4)] + [(4 << 20, 777)], source.reads
        assert source.hints == [(0, len(data))]
        assert source.most > 1
        source.bad = range(1 << 20, (1 << 20) + 4096)
        region.evict()
        error = raised(uf.PageError, region.populate)
        assert error.__cause__.args == (str(1 << 20),), error
        assert bytes(memoryview(region)[: 1 << 20]) == data[: 1 << 20]
        check_endings(region)

    child(code).check()


def test_a_sequential_reader_is_read_ahead_where_the_source_wants_it(child):
    """readahead = True: other threads read what a scan will want next."""

    def code():
        import time

        from support.called import Known
        from support.lazy import check_endings

        import userfault as uf

        class Ahead(Known):
            unit = "64KiB"
            readahead = True

            def read_into(self, offset, buffer):
                time.sleep(0.005)
                super().read_into(offset, buffer)

        source = Ahead(4 << 20)
        region = uf.map(source)
        array = region.numpy()
        for at in range(0, 4 << 20, 65536):
            assert array[at] == source.bytes[at]
        assert (array == source.data).all()
        assert region.statistics().prefetched_units > 10, region.statistics()
        check_endings(region)

    child(code).check()


@DELIVERIES
def test_a_forked_child_starts_afresh(child, delivery):
    """The child's regions are dead, as all are; new ones, and new readers, work there."""

    def code():
        import os
        import sys

        from support.called import mapped

        import userfault as uf

        source, region, view, _ = mapped(delivery=sys.argv[1])
        region.populate(slice(0, 65536))
        assert view[100_000] == source.bytes[100_000]
        pid = os.fork()
        if pid == 0:
            assert region.state == "foreign"
            other, again, fresh, _ = mapped(200_000, delivery=sys.argv[1])
            again.populate(slice(0, 65536))
            assert bytes(fresh) == other.bytes

            async def seven(offset, buffer):
                buffer[:] = b"\x07" * len(buffer)

            assert memoryview(uf.map(uf.Function(seven, "64KiB"), delivery=sys.argv[1]))[0] == 7
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert bytes(view) == source.bytes

    child(code, args=[delivery]).check()


def test_a_region_of_a_python_source_pickles_as_its_source(child):
    """spawn and pickling work as with any source."""

    def code():
        import pickle

        from support.called import Known

        import userfault as uf

        region = uf.map(Known(50_000), unit="8KiB")
        again = pickle.loads(pickle.dumps(region))
        assert again.unit == 8192
        assert again.read() == region.read()

    child(code).check()


@pytest.mark.parametrize("state", ["idle", "reading", "touching"])
def test_the_interpreter_ends_while_sources_are_at_work(child, state):
    """Exit status 0 and no word, whatever threads do at that moment."""

    def code():
        import sys
        import threading
        import time

        import userfault as uf

        entered = threading.Event()

        def read_into(offset, buffer):
            entered.set()
            if offset:
                time.sleep(30)
            buffer[:] = b"\x07" * len(buffer)

        region = uf.map(uf.Function(read_into, "1MiB", unit="64KiB"))
        view = memoryview(region)
        assert view[0] == 7
        region.populate(slice(0, 100))
        entered.clear()
        if sys.argv[1] == "reading":
            region.prefetch()
            entered.wait()
        if sys.argv[1] == "touching":
            threading.Thread(target=lambda: view[200_000], daemon=True).start()
            entered.wait()

    result = child(code, args=[state]).check()
    assert result.stderr == ""


@DELIVERIES
def test_a_thread_that_blocks_signals_is_served_or_told(child, delivery):
    """With the directed signal blocked nobody can call the source there: a PageError in time, never a hang."""

    def code():
        import signal
        import sys
        import time

        from support.called import mapped
        from support.lazy import raised

        import userfault as uf

        signals = set(signal.valid_signals()) - {signal.SIGBUS, signal.SIGSEGV, signal.SIGINT}
        source, _, view, array = mapped(delivery=sys.argv[1], timeout="1s")
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        began = time.monotonic()
        if sys.argv[1] == "signal":
            assert bytes(view[:10]) == source.bytes[:10]
        else:
            raised(uf.PageError, lambda: bytes(view[:10]))
        assert time.monotonic() - began < 5
        assert (array[400_000:800_000].copy() == source.data[400_000:800_000]).all() or sys.argv[1] == "thread"
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        time.sleep(0.1)
        assert bytes(view[200_000:200_010]) == source.bytes[200_000:200_010]

    child(code, args=[delivery]).check()
