"""Python sources read before anybody touches: prefetch and populate in large reads, scans ahead of the scan."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel


def test_reads_of_many_units_are_large_and_several_at_once(child):
    """preferred_size: populate reads in pieces; hints are heard; a failing piece is told unit by unit."""

    def code():
        import threading

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
                self.lock, self.two = threading.Lock(), threading.Event()

            def read_into(self, offset, buffer):
                with self.lock:
                    self.reads.append((offset, len(buffer)))
                    self.running += 1
                    self.most = max(self.most, self.running)
                    if self.running > 1:
                        self.two.set()
                self.two.wait(10)  # the first for the second
                self.two.set()
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
                time.sleep(0.05)
                super().read_into(offset, buffer)

        source = Ahead(4 << 20)
        region = uf.map(source)
        array = region.numpy()
        for at in range(0, 4 << 20, 65536):
            assert array[at] == source.bytes[at]
        assert (array == source.data).all()
        assert region.statistics().prefetched_units > 10, region.statistics()
        check_endings(region)

    child(code, timeout=60).check()


def test_a_slow_source_is_read_ahead_by_several_threads_in_the_pieces_it_likes(child):
    """Reads that wait do so together: a scan takes a fraction of the time of its reads."""

    def code():
        import threading
        import time
        from collections import Counter

        from support.lazy import check_endings

        import userfault as uf

        sizes, lock, inside, most = Counter(), threading.Lock(), 0, 0

        class Slow(uf.Source):
            length, unit, preferred_size, readahead = 128 << 16, "64KiB", "256KiB", True

            def read_into(self, offset, buffer):
                nonlocal inside, most
                with lock:
                    inside += 1
                    most = max(most, inside)
                    sizes[len(buffer)] += 1
                time.sleep(0.05)
                buffer[:] = (
                    bytes([1 + (offset >> 16) % 200]) * 65536
                    if len(buffer) == 65536
                    else b"".join(bytes([1 + unit % 200]) * 65536 for unit in range(offset >> 16, (offset + len(buffer)) >> 16))
                )
                with lock:
                    inside -= 1

        region = uf.map(Slow())
        view = memoryview(region)
        assert [view[unit << 16] for unit in range(128)] == [1 + unit % 200 for unit in range(128)]
        assert most > 1, most
        assert max(sizes) == 256 << 10, sizes
        assert sum(sizes.values()) < 100, sizes
        found = region.statistics()
        assert found.prefetched_units > 64, found
        check_endings(region)

    child(code, timeout=60).check()


def test_a_source_that_fails_is_not_asked_ahead_again_and_again(child):
    """Each bad unit is read when it is touched; reading ahead gives up after a few."""

    def code():
        from support.lazy import raised

        import userfault as uf

        asked = []

        class Bad(uf.Source):
            length, unit, readahead = 100 << 12, "4KiB", True

            def read_into(self, offset, buffer):
                asked.append(offset)
                raise OSError(5, "on purpose")

        region = uf.map(Bad())
        view = memoryview(region)

        def touch(page):
            with uf.checked(region):
                return view[page << 12]

        for page in range(100):
            raised(uf.PageError, lambda page=page: touch(page))
        assert 100 <= len(asked) < 125, len(asked)

    child(code, timeout=40).check()
