"""What is raised in the middle of a source surfaces where it belongs, and nothing of it stays behind."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel


def test_an_inner_page_that_fails_is_never_data_of_the_outer_source(child, delivery):
    """The last statement of a source copies from a region that fails: a PageError every time, whoever reads."""

    def code():
        import sys
        import threading

        from support.lazy import check_endings, raised

        import userfault as uf

        def broken(offset, buffer):
            raise LookupError(f"nothing at {offset}")

        inner = memoryview(uf.map(uf.Function(broken, "1MiB", unit="4KiB"), delivery=sys.argv[1]))

        def copy(offset, buffer):
            buffer[:] = inner[offset : offset + len(buffer)]  # no call after it, where an exception would surface

        region = uf.map(uf.Function(copy, "1MiB", unit="4KiB"), delivery=sys.argv[1], timeout="5s")
        view = memoryview(region)
        for _ in range(3):
            error = raised(uf.PageError, lambda: bytes(view[:10]))
            assert isinstance(error.__cause__, uf.PageError), repr(error.__cause__)
            assert isinstance(error.__cause__.__cause__, LookupError)
        for page in range(1, 41):  # more than there are threads that read for others
            at = page * 4096
            error = raised(uf.PageError, lambda at=at: region.populate(slice(at, at + 1)))
            assert f"nothing at {at}" in str(error), error
        assert not any(thread.name == "userfault-source-2" for thread in threading.enumerate())
        check_endings(region)

    child(code, args=[delivery], timeout=40).check()


def test_what_a_resolver_raised_for_a_source_is_the_cause_of_that_fault_and_of_no_later_one(child, delivery):
    """Its `UserFault` has not surfaced when the source returns: it is made there, with its cause, which nobody finds later."""

    def code():
        import sys

        from support.lazy import raised

        import userfault as uf
        from userfault import mman

        def refuse(address):
            raise KeyError("mine")

        flagged = mman.anonymous(1 << 20)
        mman.madvise(flagged, mman.MADV_USERFAULT)
        mman.on_sigbus(flagged, refuse)

        def copy(offset, buffer):
            buffer[:] = flagged[offset : offset + len(buffer)]  # no call after it, where an exception would surface

        view = memoryview(uf.map(uf.Function(copy, "1MiB", unit="4KiB"), delivery=sys.argv[1], timeout="5s"))
        error = raised(uf.PageError, lambda: bytes(view[:10]))
        assert isinstance(error.__cause__, mman.UserFault), repr(error.__cause__)
        assert isinstance(error.__cause__.__cause__, KeyError), repr(error.__cause__.__cause__)

        mman.on_sigbus(flagged, lambda address: None)
        error = raised(mman.UserFault, lambda: bytes(flagged[:10]))
        assert error.__cause__ is None, repr(error.__cause__)

    child(code, args=[delivery]).check()


@pytest.mark.parametrize("handler", ["default", "ignored", "quiet"])
def test_what_asks_the_process_to_end_is_no_page_error(child, delivery, handler):
    """KeyboardInterrupt and SystemExit of a source are raised at the touch as they are, whatever SIGINT does, in any thread."""

    def code():
        import signal
        import sys

        from support.lazy import check_endings, in_threads, raised

        import userfault as uf

        delivery, handler = sys.argv[1:]
        actions = {"default": signal.default_int_handler, "ignored": signal.SIG_IGN, "quiet": lambda *_: None}
        signal.signal(signal.SIGINT, actions[handler])
        stops = [KeyboardInterrupt("stop"), SystemExit(3)]

        def read_into(offset, buffer):
            if offset < 8192:
                raise stops[offset // 4096]
            buffer[:] = b"\x07" * len(buffer)

        region = uf.map(uf.Function(read_into, "1MiB", unit="4KiB"), delivery=delivery)
        view = memoryview(region)

        def touch_checked():
            with uf.checked():
                bytes(view[4096:4106])

        def touch():
            for page, stop in enumerate(stops):
                at = page * 4096
                assert raised(type(stop), lambda at=at: bytes(view[at : at + 10])) is stop
                assert view[8192 + at] == 7
            assert raised(SystemExit, touch_checked) is stops[1]

        touch()
        in_threads(touch)
        check_endings(region)
        bytes(view[4096:4106])
        raise AssertionError("did not end the process")

    assert child(code, args=[delivery, handler]).returncode == 3


def test_an_error_keeps_nothing_alive(child, delivery):
    """Once its PageError is gone, so are the exception of the source and the frames that it passed."""

    def code():
        import gc
        import sys
        import time
        import weakref

        from support.lazy import raised

        import userfault as uf

        class Broken(uf.Source):
            length = 1 << 20

            def read_into(self, offset, buffer):
                raise LookupError("nothing")

        def touch(way):
            source = Broken()
            region = uf.map(source, delivery=sys.argv[1])
            raised(uf.PageError, (lambda: bytes(memoryview(region)[:1])) if way == "touch" else region.populate)
            return weakref.ref(source)

        gone = touch("touch")
        gc.collect()
        assert gone() is None
        gone, limit = touch("populate"), time.monotonic() + 10
        while gone() is not None:  # what a thread of the library raised stays for a moment: others may ask for it
            assert time.monotonic() < limit
            time.sleep(0.05)
            gc.collect()

    child(code, args=[delivery]).check()


def test_a_refill_that_reads_what_it_refills_is_refused(child, delivery):
    """pin() of a volatile buffer whose refill is a Python source over the buffer itself: an error, never the error pattern."""

    def code():
        import sys

        from support.lazy import raised

        import userfault as uf
        from userfault.testing import purge

        def again(offset, buffer):
            buffer[:] = view[offset : offset + len(buffer)]

        buffer = uf.VolatileBuffer("64KiB", refill=uf.Function(again, "64KiB"), delivery=sys.argv[1])
        view = memoryview(buffer)
        view[:] = b"\x07" * len(view)
        buffer.unpin()
        purge(buffer)
        assert "has to fill itself" in str(raised(uf.PageError, buffer.pin))
        assert "has to fill itself" in str(raised(uf.PageError, lambda: bytes(view[:10])))

    child(code, args=[delivery]).check()
