"""The chunks in memory after exceptions from outside, and waiting for what another thread fetches."""

import threading
import time

import pytest

import userfault as uf
from userfault.sources import caching, chunks, native

from .test_caching import CHUNK, Counted, read


@pytest.fixture
def counted(data, monkeypatch):
    """A source, and a cache that begins empty."""
    monkeypatch.setattr(chunks, "_SHARED", None)
    return Counted(data[:50_500])


def test_interrupts_at_any_moment_leave_the_cache_as_it_should_be(child):
    """No chunk that is waited for in vain, nor one that is kept and not counted, or counted and not kept."""
    code = """
        import random, threading
        from support.interrupts import interrupted
        import userfault as uf
        from userfault.sources import chunks

        class Numbers(uf.Source):
            length = 4 << 20

            def read_into(self, offset, buffer):
                buffer[:] = b"1" * len(buffer)

        region = uf.map(uf.Cached(Numbers(), chunk="16KiB", memory="256KiB"), unit="4KiB", resident="256KiB")
        view, dice = memoryview(region), random.Random(3)
        is_over, touches = False, []

        def touch():
            other = random.Random(4)
            while not is_over:
                try:
                    with uf.checked(region):  # of a page of the interrupted thread: a false alarm
                        seen = view[other.randrange(len(view))]
                except uf.PageError:
                    continue
                touches.append(seen)

        thread = threading.Thread(target=touch)
        thread.start()
        assert interrupted(lambda: view[dice.randrange(len(view))], 6, uf.PageError) > 100
        is_over = True
        thread.join()
        assert set(touches) == {49}
        region.evict()
        assert bytes(view) == b"1" * len(view)
        shared = chunks.shared_chunks()
        assert not shared._flights
        assert shared.size == sum(map(len, shared._chunks.values())) == 256 << 10, shared.size
        """
    child(code, timeout=60).check()


def test_a_sum_that_is_wrong_is_mended(counted):
    """Whatever made it so: soon chunks are kept again, within the bound."""
    opened = native(uf.Cached(counted, chunk=CHUNK, memory=10_000))
    read(opened, 0, 50_000)
    for wrong in (10_000_000, -10_000_000):
        chunks.shared_chunks().size += wrong
        for _ in range(3):
            read(opened, 0, 50_000)
        assert chunks.shared_chunks().size == 10_000
        assert len(chunks.shared_chunks()._chunks) == 10


def test_a_chunk_whose_reader_could_not_even_give_up_is_fetched_by_another(counted, data, monkeypatch):
    """An exception from outside comes in the middle of giving up: nobody lands the flight, and nobody waits for it."""
    cached = uf.Cached(counted, chunk=CHUNK, memory=0)
    opened = native(cached)
    counted.gate, counted.error = threading.Event(), KeyboardInterrupt()
    begun = counted.entered

    def interrupt(*arguments):
        raise KeyboardInterrupt

    ends, answers = [], []

    def fail():
        try:
            read(opened, 0, 10)
        except BaseException as error:
            ends.append(type(error))

    with monkeypatch.context() as patched:
        patched.setattr(caching, "_give_up", interrupt)
        threads = [threading.Thread(target=fail), threading.Thread(target=lambda: answers.append(read(opened, 0, 10)))]
        threads[0].start()
        begun.acquire()
        threads[1].start()
        while cached.statistics().awaited < 1:
            time.sleep(0.001)
        counted.gate.set()
        [thread.join(20) for thread in threads]
    assert answers == [data[:10]]
    assert len(ends) == 1
    assert read(opened, 0, 10) == data[:10]


@pytest.mark.slow
def test_a_chunk_is_waited_for_as_long_as_its_read_lasts(child):
    """Longer than half a minute, where the region has the time."""
    code = """
        import threading, time
        import userfault as uf

        def fill(offset, buffer):
            time.sleep(35)
            buffer[:] = b"x" * len(buffer)

        region = uf.map(uf.Cached(uf.Function(fill, "1MiB")), unit="4KiB", timeout="100s")
        seen = []
        threads = [threading.Thread(target=lambda at=at: seen.append(memoryview(region)[at])) for at in (0, 8192)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert seen == [120, 120], seen
        """
    child(code, timeout=90).check()
