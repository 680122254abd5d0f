"""How often a read was made again is counted, whoever makes it again and wherever it runs."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel


#: What is native and waits is for threads.
WAYS = [
    (delivery, kind)
    for delivery in ("thread", "signal", "process")
    for kind in ("python", "native", "cached", "store", "stores")
    if (delivery, kind) != ("signal", "native")
]


@pytest.mark.parametrize(("delivery", "kind"), WAYS)
def test_repeated_reads_are_counted(child, delivery, kind):
    """In the region's statistics: two of them each; those of a read inside another one too."""

    def code():
        import sys

        import userfault as uf
        from userfault.sources import RemoteSource, Version
        from userfault.testing import ChaosSource

        class Flaky(uf.Source):
            length = 65536
            left = 2

            def read_into(self, offset, buffer):
                if self.left:
                    self.left -= 1
                    raise ConnectionError("for now")
                buffer[:] = b"1" * len(buffer)

        class Store(RemoteSource):
            left = 2

            def look(self):
                return Version(65536, "one")

            def get(self, version, start, stop):
                if self.left:
                    self.left -= 1
                    raise ConnectionError("for now")
                return b"1" * (stop - start)

        source = {
            "python": lambda: uf.Retry(Flaky(), pause="1ms"),
            "native": lambda: uf.Retry(ChaosSource(uf.Bytes(b"1" * 65536), fail=[slice(None)], failures=2), pause="1ms"),
            "cached": lambda: uf.Cached(uf.Retry(Flaky(), pause="1ms")),
            "store": lambda: Store("x"),
            "stores": lambda: uf.Cached(Store("x"), chunk="8KiB"),
        }[sys.argv[2]]()
        region = uf.map(source, delivery=sys.argv[1], unit="4KiB")
        assert memoryview(region)[0] == 49
        region.populate()
        counted = region.statistics()
        assert (counted.source_retries, counted.source_errors) == (2, 0), counted
        other = uf.map(Store("y"), delivery=sys.argv[1], unit="4KiB")
        other.populate()  # by a thread of the library's
        assert other.statistics().source_retries == 2, other.statistics()
        assert region.statistics().source_retries == 2

    child(code, args=[delivery, kind]).check()


def test_reads_that_fail_for_good_count_as_errors_too(child):
    """Each repetition, and the failure."""

    def code():
        from support.lazy import raised

        import userfault as uf

        def fail(offset, buffer):
            raise ConnectionError("for good")

        region = uf.map(uf.Retry(uf.Function(fail, 65536), attempts=3, pause="1ms"), unit="64KiB")
        raised(uf.PageError, lambda: region.read(0, 10))
        counted = region.statistics()
        assert counted.source_errors > 0
        assert counted.source_retries == 2 * counted.source_errors, counted

    child(code).check()
