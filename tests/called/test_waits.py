"""Touches of Python sources that take long, hang, or are interrupted: each ends."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel


def test_a_source_that_takes_too_long_is_interrupted(child, delivery):
    """After the timeout TimeoutError is raised in it, and the touch is a PageError; what comes after is not hit."""

    def code():
        import sys
        import time

        from support.lazy import check_endings, raised

        import userfault as uf

        seen = []

        def read_into(offset, buffer):
            if offset >= 4096:
                try:
                    while True:
                        time.sleep(0.01)
                except TimeoutError:
                    seen.append(offset)
                    raise
            buffer[:] = b"\x07" * len(buffer)

        region = uf.map(uf.Function(read_into, "1MiB", unit="4KiB"), delivery=sys.argv[1], timeout="300ms")
        view = memoryview(region)
        for _ in range(2):
            began = time.monotonic()
            error = raised(uf.PageError, lambda: bytes(view[5000:5010]))
            assert "deadline" in str(error), error
            assert 0.25 < time.monotonic() - began < 10
        assert seen == [4096, 4096]
        assert bytes(view[:10]) == b"\x07" * 10
        for _ in range(100_000):
            pass
        check_endings(region)

    child(code, args=[delivery]).check()


def test_a_source_that_hangs_in_a_thread_of_the_library_keeps_no_fault(child):
    """The hard limit of system calls, populate and native threads: the fault ends, later touches ask again."""

    def code():
        import errno
        import os
        import threading
        import time

        from support.lazy import check_endings, raised

        import userfault as uf

        hang = threading.Event()

        def read_into(offset, buffer):
            if offset >= 4096 and not hang.is_set():
                hang.wait()  # in C, where no exception reaches it
            buffer[:] = b"\x07" * len(buffer)

        region = uf.map(uf.Function(read_into, "1MiB", unit="4KiB"), timeout="300ms")
        view = memoryview(region)
        pipe = os.pipe()[1]
        began = time.monotonic()
        assert raised(OSError, lambda: os.write(pipe, view[4096:4100])).errno == errno.EFAULT
        error = raised(uf.PageError, lambda: region.populate(slice(8192, 8200)))
        assert "deadline" in str(error), error
        assert time.monotonic() - began < 15
        hang.set()
        assert bytes(view[8192:8200]) == b"\x07" * 8
        limit = time.monotonic() + 15  # the poison of the system call expires
        while True:
            try:
                assert os.write(pipe, view[4096:4100]) == 4
                break
            except OSError:
                assert time.monotonic() < limit
                time.sleep(0.05)
        check_endings(region)

    child(code).check()


@pytest.mark.parametrize("where", ["source", "waiter"])
def test_ctrl_c_ends_a_touch_as_itself(child, delivery, where):
    """KeyboardInterrupt in the source goes on at the touch; one who waits for another's read is freed. Then all is well."""

    def code():
        import os
        import signal
        import sys
        import threading
        import time

        import userfault as uf

        slow, entered, over = [True], threading.Event(), threading.Event()

        def read_into(offset, buffer):
            entered.set()
            if slow[0]:
                over.wait(8)
            buffer[:] = b"\x07" * len(buffer)

        delivery, where = sys.argv[1:]
        view = memoryview(uf.map(uf.Function(read_into, "1MiB"), delivery=delivery))
        other = threading.Thread(target=lambda: view[0])
        if where == "waiter":
            other.start()

        def interrupt():
            entered.wait()
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)

        began = time.monotonic()
        try:
            if where == "waiter":
                entered.wait()
            threading.Thread(target=interrupt).start()
            bytes(view[:10])
            for _ in range(1000):
                pass
        except KeyboardInterrupt:
            assert time.monotonic() - began < 6, time.monotonic() - began
        else:
            raise AssertionError("not interrupted")
        over.set()
        if where == "waiter":
            other.join()
        slow[0] = False
        time.sleep(0.05)
        assert bytes(view[:10]) == b"\x07" * 10
        for _ in range(1000):
            pass

    child(code, args=[delivery, where], timeout=40).check()


def test_ctrl_c_in_code_that_gave_up_the_lock_is_itself_too(child):
    """Somebody else raises for such code: a KeyboardInterrupt, not a PageError that a program may take for one of a store."""

    def code():
        import os
        import signal
        import threading
        import time
        import zlib

        import userfault as uf

        def read_into(offset, buffer):
            time.sleep(0.01)
            buffer[:] = b"\x07" * len(buffer)

        view = memoryview(uf.map(uf.Function(read_into, "1MiB", unit="4KiB"), delivery="signal"))
        try:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            zlib.crc32(view)
            for _ in range(1000):
                pass
        except KeyboardInterrupt:
            return
        raise AssertionError("not interrupted")

    child(code).check()


@pytest.mark.parametrize("end", ["SIGINT", "SIGTERM"])
def test_a_signal_while_a_region_closes_is_not_lost(child, delivery, end):
    """What its handler raises comes when `close` is over, and the source's `close` is called all the same."""

    def code():
        import os
        import signal
        import sys
        import threading
        import time

        import userfault as uf

        delivery, end = sys.argv[1:]
        entered, signalled, closed = threading.Event(), threading.Event(), []

        class Slow(uf.Source):
            length = "1MiB"

            def read_into(self, offset, buffer):
                entered.set()
                signalled.wait(10)
                buffer[:] = b"\x07" * len(buffer)

            def close(self):
                closed.append(True)

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
        region = uf.map(Slow(), delivery=delivery)
        region.prefetch(slice(0, 1))
        entered.wait()

        def kill():
            time.sleep(0.3)
            os.kill(os.getpid(), getattr(signal, end))
            time.sleep(0.2)
            signalled.set()

        came = None
        try:
            threading.Thread(target=kill).start()
            region.close()  # waits for the read
            limit = time.monotonic() + 10
            while time.monotonic() < limit:
                pass
        except (KeyboardInterrupt, SystemExit) as error:
            came = error
        assert type(came) is {"SIGINT": KeyboardInterrupt, "SIGTERM": SystemExit}[end]
        assert closed == [True]

    assert child(code, args=[delivery, end], timeout=40).check().stderr == ""


def test_a_storm_of_failing_pages_ends_soon(child, delivery):
    """A sum over 10,000 pages whose source takes a second to fail: once for the touch, not once for each page."""

    def code():
        import sys
        import time

        from support.lazy import check_endings, raised

        import userfault as uf

        def read_into(offset, buffer):
            time.sleep(1)
            raise OSError(5, "input/output error")

        region = uf.map(uf.Function(read_into, 10_000 * 4096, unit="4KiB"), delivery=sys.argv[1])
        array = region.numpy()
        began = time.monotonic()
        error = raised(uf.PageError, array.sum)
        assert error.errno == 5
        assert time.monotonic() - began < 25, time.monotonic() - began
        check_endings(region)

    child(code, args=[delivery], timeout=40).check()


def test_retry_keeps_to_the_timeout(child, delivery):
    """Attempts and pauses that would take longer end early, with the last error as the cause; Ctrl-C ends a pause."""

    def code():
        import os
        import signal
        import sys
        import threading
        import time

        from support.lazy import check_endings, raised

        import userfault as uf

        def read_into(offset, buffer):
            raise ConnectionError("again")

        source = uf.Retry(uf.Function(read_into, "1MiB", unit="4KiB"), attempts=30, pause="100ms")
        region = uf.map(source, delivery=sys.argv[1], timeout="1s")
        view = memoryview(region)
        for way in (lambda: bytes(view[:10]), lambda: region.populate(slice(4096, 4106))):
            began = time.monotonic()
            assert isinstance(raised(uf.PageError, way).__cause__, ConnectionError)
            assert 0.5 < time.monotonic() - began < 12
        check_endings(region)
        stopped = memoryview(uf.map(uf.Retry(uf.Function(read_into, 4096), pause="20s"), delivery=sys.argv[1]))

        def touch():
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            bytes(stopped[:10])

        began = time.monotonic()
        raised(KeyboardInterrupt, touch)
        assert time.monotonic() - began < 12

    child(code, args=[delivery], timeout=40).check()


def test_a_read_does_not_wait_for_slow_ones(child):
    """However many readers are busy for long, another one is started, also for what comes later; none are while one has time."""

    def code():
        import threading
        import time

        from support.lazy import in_threads

        import userfault as uf

        slow, go_on = threading.Semaphore(0), threading.Event()

        def read_into(offset, buffer):
            if offset < 8 * 4096:
                slow.release()
                go_on.wait()
            buffer[:] = b"\x07" * len(buffer)

        def readers():
            return sum(thread.name.startswith("userfault-source") for thread in threading.enumerate())

        region = uf.map(uf.Function(read_into, "1MiB", unit="4KiB"))
        for unit in range(50, 100):
            region.read(unit * 4096, 10)
        assert readers() == 2
        waiting = [threading.Thread(target=region.read, args=(unit * 4096, 10)) for unit in range(8)]
        for thread in waiting:
            thread.start()
            assert slow.acquire(timeout=10)
        began = time.monotonic()
        assert region.read(40 * 4096, 3) == b"\x07" * 3
        assert time.monotonic() - began < 2
        assert readers() <= 10
        go_on.set()
        in_threads(*[thread.join for thread in waiting])

    child(code).check()


def test_a_sub_interpreter_ends_by_the_timeout(child, delivery):
    """It holds the lock where nobody can tell: its touch waits once for the timeout, and is an error afterwards."""

    def code():
        import sys
        import time

        from support.lazy import check_endings, raised

        import userfault as uf

        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters

        def read_into(offset, buffer):
            buffer[:] = b"\x07" * len(buffer)

        region = uf.map(uf.Function(read_into, "1MiB", unit="4KiB"), delivery=sys.argv[1], timeout="1s")
        other = interpreters.create()
        began = time.monotonic()

        def touch():
            interpreters.run_string(other, f"import ctypes; ctypes.string_at({region.address}, 3)")
            while time.monotonic() < began + 5:
                pass  # it surfaces in the interpreter that the thread belongs to, which may look for it a little later

        raised(uf.PageError, touch)
        assert time.monotonic() - began < 5
        interpreters.destroy(other)
        assert bytes(memoryview(region)[4096:4100]) == b"\x07" * 4
        check_endings(region)

    child(code, args=[delivery], warnings=None).check()
