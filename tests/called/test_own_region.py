"""A source that uses the region that it fills: what can be had is served, what would wait for itself is refused at once."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel


def test_another_unit_of_its_own_is_served(child, delivery):
    """By a touch in the middle of the touch; `read` gives what is there."""

    def code():
        import sys

        from support.lazy import check_endings

        import userfault as uf

        def read_into(offset, buffer):
            buffer[:] = b"\x07" * len(buffer)
            if offset:
                before = bytes(view[offset - 4096 : offset])
                assert region.read(offset - 4096, 4096) == before
                buffer[:] = bytes(byte + 1 for byte in before)

        region = uf.map(uf.Function(read_into, "1MiB", unit="4KiB"), delivery=sys.argv[1])
        view = memoryview(region)
        assert bytes(view[5 * 4096 + 10 :][:3]) == b"\x0c" * 3
        check_endings(region)

    child(code, args=[delivery]).check()


@pytest.mark.parametrize("reader", ["toucher", "library"])
@pytest.mark.parametrize("call", ["read", "populate"])
def test_read_and_populate_of_what_is_absent_are_refused_at_once(child, delivery, reader, call):
    """PageError in the source, which may go on; of the unit that it fills and of any other."""

    def code():
        import sys
        import time

        from support.lazy import check_endings

        import userfault as uf

        delivery, reader, call = sys.argv[1:]
        said = []

        def read_into(offset, buffer):
            for start in (offset, 512 * 1024):
                try:
                    region.read(start, 10) if call == "read" else region.populate(slice(start, start + 10))
                except uf.PageError as error:
                    said.append((error.offset, str(error)))
            buffer[:] = b"\x07" * len(buffer)

        region = uf.map(uf.Function(read_into, "1MiB", unit="4KiB"), delivery=delivery, timeout="10s")
        began = time.monotonic()
        assert (region.read(8200, 3) if reader == "library" else bytes(memoryview(region)[8200:8203])) == b"\x07" * 3
        assert time.monotonic() - began < 8
        assert [offset for offset, _ in said] == [8192, 512 * 1024], said
        assert all("own read_into" in text and "touch another unit" in text for _, text in said), said
        check_endings(region)

    child(code, args=[delivery, reader, call]).check()


@pytest.mark.parametrize("reader", ["toucher", "library"])
def test_close_is_refused_at_once(child, delivery, reader):
    """RuntimeError in the source; the region goes on, and can be closed afterwards."""

    def code():
        import sys
        import time

        from support.lazy import check_endings, raised

        import userfault as uf

        delivery, reader = sys.argv[1:]

        def read_into(offset, buffer):
            error = raised(RuntimeError, region.close)
            assert "own read_into" in str(error), error
            buffer[:] = b"\x07" * len(buffer)

        region = uf.map(uf.Function(read_into, "1MiB", unit="4KiB"), delivery=delivery, timeout="10s")
        array = region.numpy() if reader == "toucher" else None
        began = time.monotonic()
        assert (region.read(0, 3) if array is None else array[:3].tobytes()) == b"\x07" * 3
        assert time.monotonic() - began < 8
        check_endings(region)
        del array
        region.close()
        assert region.state == "closed"

    child(code, args=[delivery, reader]).check()
