"""A Python source that fails is an exception at the touch, with its own exception and traceback as the cause."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel


def test_what_the_source_raised_is_the_cause_with_its_traceback(child, delivery):
    """PageError at the touch, in any thread; the next touch asks again; the law of endings holds."""

    def code():
        import sys
        import traceback

        from support.lazy import check_endings, in_threads, raised

        import userfault as uf

        class Missing(LookupError):
            pass

        def read_into(offset, buffer):
            if offset >= 65536:
                raise Missing(f"nothing at {offset}")
            buffer[:] = b"\x07" * len(buffer)

        region = uf.map(uf.Function(read_into, "1MiB", unit="4KiB"), delivery=sys.argv[1])
        view = memoryview(region)

        def touch(start):  # a page each: whoever comes while the pattern stands in a page sees it (checked() tells)
            for _ in range(3):
                error = raised(uf.PageError, lambda: bytes(view[start : start + 4]))
                assert type(error.__cause__) is Missing, repr(error.__cause__)
                assert str(error.__cause__) == f"nothing at {start}"
                assert error.cause is error.__cause__
                assert error.offset == start
                frames = traceback.extract_tb(error.__cause__.__traceback__)
                assert frames[-1].name == "read_into", frames
                assert f"Missing: nothing at {start}" in str(error)
            assert bytes(view[:65536]) == b"\x07" * 65536

        touch(65536)
        in_threads(lambda: touch(81920), lambda: touch(98304))
        assert region.statistics().source_errors >= 3
        check_endings(region)

    child(code, args=[delivery]).check()


def test_an_exception_that_cannot_be_shown_is_the_cause_all_the_same(child, delivery):
    """Where its `__str__` or its `errno` raises: PageError with it as the cause, at a touch and before one."""

    def code():
        import pickle
        import sys

        from support.lazy import raised

        import userfault as uf

        class Silent(Exception):
            def __str__(self):
                raise RuntimeError("str raises")

        class Secret(Exception):
            @property
            def errno(self):
                raise RuntimeError("errno raises")

        class Both(OSError):
            errno = Secret.errno

            def __str__(self):
                raise RuntimeError("str raises")

        for kind, said in ((Silent, "Silent: (it cannot be shown)"), (Secret, "Secret: x"), (Both, "(it cannot be shown)")):

            def read_into(offset, buffer, kind=kind):
                raise kind("x")

            region = uf.map(uf.Function(read_into, "64KiB", unit="4KiB"), delivery=sys.argv[1])
            view = memoryview(region)

            def in_block(view=view):
                with uf.checked():
                    bytes(view[:4])

            for way in (lambda view=view: bytes(view[:4]), in_block, lambda region=region: region.read(0, 4), region.populate):
                error = raised(uf.PageError, way)
                assert type(error.__cause__) is kind, repr(error.__cause__)
                assert error.errno is None
                assert str(error).endswith(said), str(error)
            assert str(pickle.loads(pickle.dumps(error))) == str(error)

    child(code, args=[delivery]).check()


def test_populate_read_and_system_calls_say_what_the_source_raised(child):
    """The same where a thread of the library's reads: PageError before a byte is seen, EFAULT in a system call."""

    def code():
        import errno
        import os

        from support.lazy import raised

        import userfault as uf

        def read_into(offset, buffer):
            raise ValueError(f"no {offset}")

        region = uf.map(uf.Function(read_into, "1MiB", unit="4KiB"))
        for way in (region.populate, region.read, lambda: region.read(4096, 10)):
            error = raised(uf.PageError, way)
            assert isinstance(error.__cause__, ValueError), error
        assert raised(OSError, lambda: os.write(os.pipe()[1], memoryview(region)[:100])).errno == errno.EFAULT

    child(code).check()


def test_an_answer_that_is_none_is_a_page_error(child, delivery):
    """Too few bytes, too many, or something else than a number; a buffer left alone is 0xFF, never zeros or another page."""

    def code():
        import sys

        from support.lazy import raised

        import userfault as uf

        def touch(answer):
            region = uf.map(uf.Function(lambda offset, buffer: answer, "64KiB", unit="4KiB"), delivery=sys.argv[1])
            return memoryview(region)

        error = raised(uf.PageError, lambda: bytes(touch(100)[:1]))
        assert error.offset == 100, error
        assert "ends before" in str(error)
        for wrong in (4097, -1, "all", b""):
            error = raised(uf.PageError, lambda wrong=wrong: bytes(touch(wrong)[:1]))
            assert isinstance(error.__cause__, TypeError), error
            assert repr(wrong) in str(error)
        for right in (None, 4096):
            assert bytes(touch(right)[:4096]) == b"\xff" * 4096
        last = uf.map(uf.Function(lambda offset, buffer: len(buffer), 5000, unit="4KiB"), delivery=sys.argv[1])
        assert bytes(memoryview(last)) == b"\xff" * 5000

    child(code, args=[delivery]).check()


def test_a_kept_buffer_is_nobody_elses(child, delivery):
    """A view that the source keeps is released, and memory under a view of a view is never used for another page."""

    def code():
        import sys

        import numpy as np
        from support.lazy import raised

        import userfault as uf

        kept, arrays = [], []

        def read_into(offset, buffer):
            buffer[:] = bytes([offset // 4096 + 1]) * len(buffer)
            kept.append(buffer)
            arrays.append(np.frombuffer(buffer, "u1"))

        view = memoryview(uf.map(uf.Function(read_into, "64KiB", unit="4KiB"), delivery=sys.argv[1]))
        for page in range(16):
            assert view[page * 4096] == page + 1
            for array in arrays:
                array.flags.writeable and array.fill(0xEE)
        assert bytes(view[::4096]) == bytes(range(1, 17))
        assert len({array.ctypes.data for array in arrays}) == 16
        released = []
        plain = uf.Function(lambda offset, buffer: released.append(buffer) or buffer.__setitem__(0, 7), "64KiB")
        assert memoryview(uf.map(plain, delivery=sys.argv[1]))[0] == 7
        raised(ValueError, lambda: released[0][0])

    child(code, args=[delivery]).check()


def test_touching_its_own_region_is_refused(child, delivery):
    """A source that touches what it has to fill gets an error instead of waiting for itself."""

    def code():
        import sys
        import time

        from support.lazy import check_endings, raised

        import userfault as uf

        def read_into(offset, buffer):
            bytes(view[offset : offset + 10])
            buffer[:] = b"\x07" * len(buffer)

        region = uf.map(uf.Function(read_into, "1MiB", unit="4KiB"), delivery=sys.argv[1])
        view = memoryview(region)
        began = time.monotonic()
        error = raised(uf.PageError, lambda: bytes(view[5000:5010]))
        assert "has to fill itself" in str(error) or "has to fill itself" in str(error.__cause__), error
        error = raised(uf.PageError, lambda: region.populate(slice(200_000, 200_010)))  # by a thread of the library's
        assert "has to fill itself" in str(error), error
        assert time.monotonic() - began < 5
        check_endings(region)

    child(code, args=[delivery]).check()


def test_transient_failures_are_read_again_without_the_lock(child, delivery):
    """Retry around a Python source: others run during its pauses; what is not transient is not repeated."""

    def code():
        import sys
        import threading
        import time

        from support.lazy import raised

        import userfault as uf

        calls, turns = [], []

        def read_into(offset, buffer):
            calls.append(offset)
            if offset == 0 and len(calls) < 3:
                raise ConnectionResetError("again")
            if offset:
                raise ValueError("never")
            buffer[:] = b"\x07" * len(buffer)

        source = uf.Retry(uf.Function(read_into, "64KiB", unit="4KiB"), attempts=3, pause="1s")
        view = memoryview(uf.map(source, delivery=sys.argv[1]))
        done = threading.Event()
        work = threading.Thread(target=lambda: [turns.append(time.sleep(0.005)) for _ in iter(done.is_set, True)])
        work.start()
        assert view[0] == 7
        assert len(turns) > 10, len(turns)
        done.set()
        work.join()
        assert len(calls) == 3
        raised(uf.PageError, lambda: bytes(view[4096:4100]))
        assert len(calls) == 4

    child(code, args=[delivery]).check()


def test_layers_of_the_engine_work_around_a_python_source(child):
    """Checksum finds a wrong byte; Chaos fails on purpose; Deadline, which reads in a thread of the engine, is refused."""

    def code():
        from support.called import Known
        from support.lazy import raised
        from support.xxh64 import xxh64

        import userfault as uf
        from userfault.testing import Chaos

        source = Known(65536)
        sums = [xxh64(source.bytes[at : at + 8192]) for at in range(0, 65536, 8192)]
        sums[3] ^= 1
        view = memoryview(uf.map(uf.Checksum(source, 8192, sums), unit="8KiB"))
        assert bytes(view[:24576]) == source.bytes[:24576]
        raised(uf.PageError, lambda: bytes(view[24576:24580]))
        view = memoryview(uf.map(Chaos(source, fail=[range(100, 200)]), unit="4KiB"))
        raised(uf.PageError, lambda: bytes(view[:10]))
        assert view[4096] == source.bytes[4096]
        assert "timeout" in str(raised(uf.OptionError, lambda: uf.map(uf.Deadline(source, "1s"))))

    child(code).check()


def test_a_class_that_is_no_source_yet_says_what_is_missing(child):
    """No read_into, no length, a length that is none: OptionError, before anything is mapped."""

    def code():
        from support.lazy import raised

        import userfault as uf

        class Nothing(uf.Source):
            length = 10

        class Endless(uf.Source):
            def read_into(self, offset, buffer):
                pass

        class Sized(Endless):
            def __len__(self):
                return 4096

        class Wrong(Endless):
            length = "many"

        class Negative(Endless):
            length = -1

        class Odd(Sized):
            unit = "3KiB"

        assert "read_into" in str(raised(uf.OptionError, lambda: uf.map(Nothing())))
        assert "length" in str(raised(uf.OptionError, lambda: uf.map(Endless())))
        assert len(uf.map(Sized())) == 4096
        for wrong in (Wrong, Negative, Odd):
            raised(uf.OptionError, lambda wrong=wrong: uf.map(wrong()))
        raised(uf.OptionError, lambda: uf.Function("no function", 10))
        raised(uf.OptionError, lambda: uf.Function(print, "lots"))

    child(code).check()


def test_exceptions_of_the_interrupted_code_stay(child, delivery):
    """A touch while an exception is handled leaves it as it was, and what the source handles inside is its own."""

    def code():
        import sys

        import userfault as uf

        def read_into(offset, buffer):
            try:
                raise KeyError("inside")
            except KeyError:
                buffer[:] = b"\x07" * len(buffer)

        view = memoryview(uf.map(uf.Function(read_into, "1MiB", unit="4KiB"), delivery=sys.argv[1]))
        try:
            raise ValueError("outside")
        except ValueError as error:
            first, is_kept = view[0], sys.exc_info()[1] is error
        assert (first, is_kept) == (7, True)
        assert sys.exc_info() == (None, None, None)
        assert [view[at] for at in range(0, 1 << 20, 4096)] == [7] * 256

    child(code, args=[delivery]).check()
