"""Chunks are fetched once, kept within their bounds, and never taken for others."""

import pickle
import threading

import pytest

import userfault as uf
from userfault.sources import chunks, native

CHUNK = 1000


class Counted(uf.Source):
    """Notes its reads; fails or waits when told to."""

    def __init__(self, data):
        self.data = data
        self.length = len(data)
        self.reads = []
        self.error = None
        self.gate = None
        self.entered = threading.Semaphore(0)

    def read_into(self, offset, buffer):
        self.reads.append((offset, len(buffer)))
        self.entered.release()
        if self.gate is not None:
            self.gate.wait(10)
        if self.error is not None:
            error = self.error
            self.error = None if isinstance(error, KeyboardInterrupt) else error  # pressed once
            raise error
        buffer[:] = self.data[offset : offset + len(buffer)]


class Named(Counted):
    """The same with an identity: shared, and kept on disk."""

    def __init__(self, data, identity="these bytes"):
        super().__init__(data)
        self.identity = identity


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch):
    """Each test begins with one."""
    monkeypatch.setattr(chunks, "_SHARED", None)


@pytest.fixture
def counted(data):
    return Counted(data[:50_500])


def read(opened, start, stop):
    room = bytearray(b"\xa5" * (stop - start))
    opened.read_into(start, room)
    return bytes(room)


def test_a_chunk_is_fetched_once(counted, data):
    """However often it is read."""
    cached = uf.Cached(counted, chunk=CHUNK)
    opened = native(cached)
    for start in (0, 10, 500, 0):
        assert read(opened, start, start + 400) == data[start : start + 400]
    assert counted.reads == [(0, CHUNK)]
    assert (cached.statistics().fetched, cached.statistics().found) == (1, 3)


def test_adjacent_missing_chunks_come_with_one_read(counted, data):
    """Around those that are there."""
    opened = native(uf.Cached(counted, chunk=CHUNK))
    read(opened, 3000, 3001)
    assert read(opened, 500, 7500) == data[500:7500]
    assert counted.reads == [(3000, 1000), (0, 3000), (4000, 4000)]


def test_one_read_has_a_bound():
    """8 MiB, or one chunk."""
    counted = Counted(bytes(20 << 20))
    opened = native(uf.Cached(counted, chunk="1MiB", memory=0))
    read(opened, 0, 20 << 20)
    assert counted.reads == [(0, 8 << 20), (8 << 20, 8 << 20), (16 << 20, 4 << 20)]


def test_many_threads_that_want_a_chunk_fetch_it_once(counted, data):
    """One does; the others wait for it."""
    counted.gate = threading.Event()
    cached = uf.Cached(counted, chunk=CHUNK)
    opened = native(cached)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(read(opened, 100, 200))) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_for(lambda: cached.statistics().awaited == 7)
    counted.gate.set()
    for thread in threads:
        thread.join(10)
    assert answers == [data[100:200]] * 8
    assert counted.reads == [(0, CHUNK)]


def test_threads_with_crossing_ranges_do_not_wait_for_each_other(counted, data):
    """Each fetches what it claimed before it waits."""
    opened = native(uf.Cached(counted, chunk=CHUNK, memory=0))
    wrong = []

    def reader(seed):
        for number in range(100):
            start = (seed * 7919 + number * 3571) % 40_000
            if read(opened, start, start + 9000) != data[start : start + 9000]:
                wrong.append(start)

    threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_whoever_waits_hears_why_it_fails(counted):
    """The same exception; and the next read tries again."""
    counted.gate, counted.error = threading.Event(), KeyError("no")
    cached = uf.Cached(counted, chunk=CHUNK)
    opened = native(cached)
    caught = []

    def reader():
        try:
            read(opened, 0, 10)
        except uf.PageError as error:
            caught.append(error.cause)

    threads = [threading.Thread(target=reader) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_for(lambda: cached.statistics().awaited == 2)
    counted.gate.set()
    for thread in threads:
        thread.join(10)
    assert caught == [counted.error] * 3
    assert len(counted.reads) == 1
    counted.error = None
    assert read(opened, 0, 10) == counted.data[:10]


def test_ctrl_c_in_one_thread_is_none_of_the_others(counted, data):
    """They fetch for themselves."""
    counted.gate, counted.error = threading.Event(), KeyboardInterrupt()
    cached = uf.Cached(counted, chunk=CHUNK)
    native(cached)
    caught, answers = [], []

    def interrupted():
        try:
            cached.read_into(0, memoryview(bytearray(10)))
        except BaseException as error:
            caught.append(type(error))

    def waiting():
        room = bytearray(10)
        cached.read_into(0, memoryview(room))
        answers.append(bytes(room))

    first = threading.Thread(target=interrupted)
    first.start()
    assert counted.entered.acquire(timeout=10)
    second = threading.Thread(target=waiting)
    second.start()
    wait_for(lambda: cached.statistics().awaited == 1)
    gate, counted.gate = counted.gate, None
    gate.set()
    first.join(10)
    second.join(10)
    assert len(caught) == 1
    if not answers:
        pytest.fail("the waiting thread has no answer")
    assert answers == [data[:10]]


def test_a_read_inside_of_its_own_fetch_does_not_wait_for_itself(counted, data):
    """A finalizer or a signal handler may touch memory of the same source in the middle of a fetch."""
    cached = uf.Cached(counted, chunk=CHUNK)
    plain = counted.read_into
    inner = bytearray(10)

    def read_into(offset, buffer):
        if not counted.reads:
            counted.reads.append("in the middle")
            cached.read_into(5, memoryview(inner))
        plain(offset, buffer)

    counted.read_into = read_into
    opened = native(cached)
    assert read(opened, 0, 10) == data[:10]
    assert bytes(inner) == data[5:15]


def test_an_exception_from_outside_leaves_no_claim_behind(counted):
    """Ctrl-C, or a touch's timeout, at any line: nobody waits for a chunk that no thread fetches."""
    import sys

    cached = uf.Cached(counted, chunk=CHUNK)
    native(cached)
    cached.length  # opened before

    def interrupted_at(step):
        left = step

        def trace(frame, event, _argument):
            nonlocal left
            if not frame.f_code.co_filename.endswith(("caching.py", "chunks.py")) or "test" in frame.f_code.co_filename:
                return None
            if event == "line" and frame.f_code.co_name in ("_chunks", "find_or_claim", "_fetched", "_read", "read_into"):
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            cached.read_into(0, memoryview(bytearray(3 * CHUNK)))
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False

    turns = 0
    while interrupted_at(turns + 1):
        turns += 1
        assert chunks.shared_chunks()._flights == {}
        cached.close()
        native(cached)
        cached.length  # opened again, with nothing kept
    assert turns > 30


def test_memory_is_bounded(counted):
    """The chunks that were not used for longest leave."""
    cached = uf.Cached(counted, chunk=CHUNK, memory=10 * CHUNK)
    opened = native(cached)
    for start in range(0, 50_000, CHUNK):
        read(opened, start, start + 1)
        assert chunks.shared_chunks().size <= 10 * CHUNK
    counted.reads.clear()
    read(opened, 45_000, 50_000)
    assert counted.reads == []
    read(opened, 30_000, 30_001)
    assert counted.reads == [(30_000, CHUNK)]


def test_memory_is_given_back_when_the_last_is_closed(counted):
    """A cache of nobody's holds nothing."""
    opened = native(uf.Cached(counted, chunk=CHUNK))
    read(opened, 0, 50_000)
    assert chunks.shared_chunks().size >= 50_000
    del opened
    assert chunks.shared_chunks().size == 0


def test_sources_with_one_identity_share(data):
    """Two regions of an object fetch its chunks once; those of another one are others."""
    first, second, other = Named(data), Named(data), Named(data[::-1], "others")
    kept = [native(uf.Cached(source, chunk=CHUNK)) for source in (first, second, other)]
    assert read(kept[0], 0, 5000) == read(kept[1], 0, 5000) == data[:5000]
    assert second.reads == []
    assert read(kept[2], 0, 5000) == data[::-1][:5000]


def test_addresses_that_differ_in_what_is_not_shown_do_not_share():
    """A query names another object; it may be a signature, too, and so is not shown."""
    from userfault.sources import RemoteSource, Version

    class Table(RemoteSource):
        def look(self):
            return Version(4096, "1")

        def get(self, version, start, stop):
            return self.fill * (stop - start)

    tables = []
    for key in ("a", "b"):
        table = Table(f"table://host/rows?key={key}")
        table.fill = key.encode()
        assert key + "=" not in table.identity.partition("?")[2]
        tables.append(native(uf.Cached(table)))
    assert [read(table, 0, 3) for table in tables] == [b"aaa", b"bbb"]


def test_sources_without_identity_do_not_share(data):
    """Who knows what they give."""
    first, second = Counted(data), Counted(data[::-1])
    kept = [native(uf.Cached(source, chunk=CHUNK)) for source in (first, second)]
    assert read(kept[0], 0, 5000) == data[:5000]
    assert read(kept[1], 0, 5000) == data[::-1][:5000]


def test_what_was_cached_of_a_closed_source_is_forgotten(counted, data):
    """It may have changed since."""
    cached, keeps_room = uf.Cached(counted, chunk=CHUNK), native(uf.Cached(Counted(bytes(10))))
    read(keeps_room, 0, 1)
    for turn in (data[:50_500], data[::-1][:50_500]):
        counted.data = turn
        assert read(native(cached), 0, 5000) == turn[:5000]


@pytest.mark.kernel
def test_a_forked_child_has_a_cache_of_its_own(child):
    """Open in the parent: the child keeps chunks, too. Being opened by a thread that the child does not have: no lock is taken
    for good."""
    code = """
        import os, threading, time
        import userfault as uf

        class Slow(uf.Source):
            reads, entered, pause = 0, threading.Event(), 0
            @property
            def length(self):
                Slow.entered.set()
                time.sleep(Slow.pause)
                return 1 << 20
            def read_into(self, offset, buffer):
                Slow.reads += 1
                buffer[:] = b"k" * len(buffer)

        def in_child(work):
            pid = os.fork()
            if pid == 0:
                try:
                    work()
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitpid(pid, 0)[1] == 0

        def read_all(cached):
            view = memoryview(uf.map(cached, unit="4KiB"))
            assert all(view[at] == ord("k") for at in range(0, 1 << 20, 65536))

        once = uf.Cached(Slow())
        read_all(once)
        def again():
            Slow.reads = 0
            read_all(once)
            assert Slow.reads == 1, Slow.reads
        in_child(again)

        Slow.pause, opening = 1, uf.Cached(Slow())
        Slow.entered.clear()
        thread = threading.Thread(target=lambda: opening.length)
        thread.start()
        Slow.entered.wait()
        in_child(lambda: read_all(opening))
        thread.join()
        """
    child(code, timeout=40).check()


def test_it_travels_with_its_options(tmp_path):
    """Pickled and back."""
    cached = uf.Cached(uf.Zero(10), chunk=CHUNK, memory="1MiB", directory=tmp_path, disk=5000)
    back = pickle.loads(pickle.dumps(cached))
    assert (back.chunk, back.memory, back.directory, back.disk) == (CHUNK, 1 << 20, str(tmp_path), 5000)


@pytest.mark.parametrize("options", [{"chunk": 0}, {"chunk": "2GiB"}, {"memory": -1}, {"disk": "much"}])
def test_sizes_that_make_no_sense_are_refused(options):
    """When it is made."""
    with pytest.raises(uf.OptionError):
        uf.Cached(uf.Zero(10), **options)


def test_only_sources_are_cached():
    """And a path is none."""
    with pytest.raises(uf.OptionError, match="Source"):
        uf.Cached("path")


def wait_for(condition):
    """Until another thread got there; the test's own deadline ends it."""
    turn = threading.Event()
    while not condition():
        turn.wait(0.001)


@pytest.mark.parametrize("directory", ["", b"bytes", 7])
def test_a_directory_that_is_none_is_refused(counted, directory):
    """The empty one would be the working directory."""
    with pytest.raises(uf.OptionError, match="directory="):
        uf.Cached(counted, directory=directory)
