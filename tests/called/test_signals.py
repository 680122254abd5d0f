"""Touches of Python sources between signals: their handlers run in the middle of touches and of sources, and touch as well."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel


def test_touches_under_a_thousand_signals_a_second_are_right(child, delivery):
    """SIGALRM at 1 kHz with a Python handler, in the middle of touches and of the source."""

    def code():
        import signal
        import sys
        import time

        from support.called import PAGE, mapped
        from support.lazy import check_endings

        seen = []
        signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        source, region, view, _ = mapped(delivery=sys.argv[1])
        limit = time.monotonic() + 3
        try:
            while time.monotonic() < limit:
                region.evict()
                for at in range(17, len(source.bytes), PAGE):
                    assert view[at] == source.bytes[at]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)  # or the next one ends the process without a traceback
        assert len(seen) > 100, len(seen)
        assert region.statistics().poisoned == 0
        check_endings(region)

    child(code, args=[delivery], timeout=40).check()


def test_signal_handlers_that_touch_inside_a_source_get_their_bytes(child, delivery):
    """A message of the outer touch that is read late, while the thread waits for the inner one, is not taken for one of a source
    that touches its own page."""

    def code():
        import signal
        import sys
        import time

        from support.called import PAGE
        from support.lazy import check_endings

        import userfault as uf

        def read_into(offset, buffer):
            for _ in range(30):  # handlers run between two instructions
                pass
            buffer[:] = bytes_of(offset // PAGE) * (len(buffer) // 8)

        def bytes_of(page):
            return b"%08d" % page

        outer, inner = (uf.map(uf.Function(read_into, 1 << 40, unit="4KiB"), delivery=sys.argv[1]) for _ in range(2))
        view, inner_view = memoryview(outer), memoryview(inner)
        wrong, touched, is_busy = [], 0, False

        def handler(*_):
            nonlocal touched, is_busy
            if is_busy:
                return
            is_busy, place = True, touched * PAGE
            try:
                if inner_view[place : place + 8] != bytes_of(touched):
                    wrong.append(touched)
                touched += 1
            except Exception as error:
                wrong.append(error)
            finally:
                is_busy = False

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        page, limit = 0, time.monotonic() + 5
        try:
            while time.monotonic() < limit:
                if view[page * PAGE : page * PAGE + 8] != bytes_of(page):
                    wrong.append(page)
                page += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert not wrong, (len(wrong), wrong[:3])
        assert touched > 100, touched
        check_endings(outer)
        check_endings(inner)

    child(code, args=[delivery], timeout=40).check()


def test_system_calls_under_a_thousand_signals_a_second_get_right_bytes(child):
    """A system call spins over a signal that it cannot handle, and asks again and again: its pages come all the same."""

    def code():
        import os
        import signal
        import time

        from support.lazy import check_endings

        import userfault as uf

        def slow(offset, buffer):
            time.sleep(0.01)
            buffer[:] = b"\x07" * len(buffer)

        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        region = uf.map(uf.Function(slow, "512KiB", unit="16KiB"))
        file = os.memfd_create("written")
        assert os.write(file, memoryview(region)) == 1 << 19
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert os.pread(file, 1 << 19, 0) == b"\x07" * (1 << 19)
        check_endings(region)

    child(code, timeout=40).check()


def test_handlers_that_touch_while_an_exception_is_made_are_not_given_it(child, delivery):
    """A failing touch's PageError is made by Python code, in the middle of which a handler touches memory that is well."""

    def code():
        import signal
        import sys
        import time

        from support.called import PAGE

        import userfault as uf

        def fail(offset, buffer):
            raise LookupError(offset)

        failing = memoryview(uf.map(uf.Function(fail, 1 << 30, unit="4KiB"), delivery=sys.argv[1]))
        well = uf.map(uf.Bytes(b"\x07" * (256 * PAGE)), delivery=sys.argv[1], unit="4KiB")
        view, wrong, touched = memoryview(well), [], 0

        def handler(*_):
            nonlocal touched
            place = touched % 256
            if place == 0:
                well.evict()
            touched += 1
            try:
                seen = bytes(view[place * PAGE : (place + 1) * PAGE])
                for _ in range(5):
                    pass  # where an exception of the touch would be raised
                if seen != b"\x07" * PAGE:
                    wrong.append(place)
            except uf.PageError as error:
                wrong.append(error)

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        page, limit = 0, time.monotonic() + 4
        while time.monotonic() < limit:
            try:
                bytes(failing[page * PAGE : page * PAGE + 8])
                for _ in range(5):
                    pass
            except uf.PageError as error:
                if error.offset != page * PAGE:  # a message of an earlier touch, told late
                    wrong.append((page, error))
                page += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert not wrong, (len(wrong), wrong[:3])
        assert min(touched, page) > 100, (touched, page)

    child(code, args=[delivery], timeout=40).check()


def test_a_trace_function_does_not_take_the_details_of_an_error(child, delivery):
    """The interpreter makes the exception for the trace function first, and another time for the `except`."""

    def code():
        import sys

        from support.called import PAGE

        import userfault as uf

        def fail(offset, buffer):
            raise LookupError(offset)

        failing = memoryview(uf.map(uf.Function(fail, "1MiB", unit="4KiB"), delivery=sys.argv[1]))

        def trace(*_):
            return trace

        def touch():
            try:
                bytes(failing[3 * PAGE : 3 * PAGE + 8])
                for _ in range(5):
                    pass
            except uf.PageError as error:
                return error

        sys.settrace(trace)
        error = touch()
        sys.settrace(None)
        assert type(error.__cause__) is LookupError, repr(error)
        assert error.offset == 3 * PAGE

    child(code, args=[delivery]).check()
