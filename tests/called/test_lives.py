"""A Python source from opening to closing: forks, resets of signals, threads that are cancelled."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel


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


def test_a_sub_interpreter_cannot_import_the_package(child):
    """It says what to do, and the exceptions of the main interpreter stay what they are, also when the other one is gone."""

    def code():
        from support.lazy import raised

        import userfault as uf

        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters

        def read_into(offset, buffer):
            raise LookupError("nothing there")

        def touch():
            assert isinstance(raised(uf.PageError, lambda: bytes(view[:4])).__cause__, LookupError)

        view = memoryview(uf.map(uf.Function(read_into, 4096)))
        other = interpreters.create()
        script = """if True:
            try:
                import userfault
            except ImportError as error:
                assert "main interpreter" in str(error) or "subinterpreters" in str(error), error  # ours, or Python's own
            else:
                raise AssertionError("it was imported")
            """
        problem = interpreters.run_string(other, script)  # 3.11 and 3.12 raise
        assert problem is None, problem
        touch()
        interpreters.destroy(other)
        touch()

    child(code, warnings=None).check()


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


def test_the_timeout_counts_from_the_fault_where_a_thread_blocks_signals_later(child):
    """A thread that has served itself before is not taken for one that is on its way: others look for it a whole timeout."""

    def code():
        import signal
        import time

        from support.called import mapped
        from support.lazy import raised

        import userfault as uf

        source, _, view, _ = mapped(delivery="thread", timeout="2s")
        assert bytes(view[:10]) == source.bytes[:10]
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.valid_signals()) - {signal.SIGBUS})
        took = []
        while len(took) < 3 and (not took or min(took) >= 2.9):  # one that was held up by others is no measure
            began, at = time.monotonic(), 200_000 * (len(took) + 1)
            raised(uf.PageError, lambda at=at: bytes(view[at : at + 10]))
            took.append(time.monotonic() - began)
        assert min(took) > 1.9, took
        assert min(took) < 2.9, took

    child(code, timeout=40).check()


@pytest.mark.parametrize("action", ["SIG_DFL", "SIG_IGN"])
def test_touches_go_on_after_all_signals_were_reset(child, action):
    """A daemon resets every signal that there is: the next touch takes one back instead of ending the process."""

    def code():
        import signal
        import sys

        from support.called import mapped

        source, region, view, _ = mapped()
        assert view[0] == source.bytes[0]
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, 32, 33}:
            signal.signal(number, getattr(signal, sys.argv[1]))
        assert bytes(view) == source.bytes
        region.evict()
        assert bytes(view[:50_000]) == source.bytes[:50_000]

    child(code, args=[action]).check()


def test_readers_are_to_be_had_after_a_thread_could_not_be_started(child):
    """No thread for a moment: map() says so, and what is opened later has its readers."""

    def code():
        import threading

        from support.called import Known
        from support.lazy import raised

        import userfault as uf

        start, failures = threading.Thread.start, [1, 1, 1]

        def refuse(thread):
            if failures and thread.name.startswith("userfault-source"):
                failures.pop()
                raise RuntimeError("can't start new thread")
            start(thread)

        threading.Thread.start = refuse
        while failures:
            raised(RuntimeError, lambda: uf.map(Known()))
        source = Known()
        assert uf.map(source, timeout="2s").read() == source.bytes

    child(code).check()


def test_a_child_that_returns_from_the_source_is_told_whose_memory_it_touched(child, delivery):
    """A fork inside `read_into`: the parent has its page; the touch goes on in the child too, where that memory is not there."""

    def code():
        import os
        import signal
        import sys

        from support.called import Known
        from support.lazy import killed_by

        import userfault as uf

        class Forking(Known):
            def read_into(self, offset, buffer):
                self.child = os.fork()
                super().read_into(offset, buffer)

        source = Forking()
        assert memoryview(uf.map(source, delivery=sys.argv[1]))[0] == source.bytes[0]
        assert killed_by(os.waitpid(source.child, 0)[1]) == signal.SIGSEGV

    result = child(code, args=[delivery]).check()
    assert result.stderr.count("this forked process touched") == 1, result.stderr
    assert "closerange" not in result.stderr


@pytest.mark.parametrize("kind", ["file", "function"])
def test_a_thread_is_not_cancelled_in_the_middle_of_a_touch(child, delivery, kind, tmp_path):
    """A load is no place where `pthread_cancel` ends a thread, though the source's system calls are."""

    def code():
        import ctypes
        import sys
        import time

        import userfault as uf

        delivery, kind, place = sys.argv[1:]
        libc = ctypes.CDLL(None)
        libc.pthread_create.argtypes = [ctypes.POINTER(ctypes.c_ulong), ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        libc.pthread_cancel.argtypes = [ctypes.c_ulong]
        libc.pthread_join.argtypes = [ctypes.c_ulong, ctypes.POINTER(ctypes.c_ssize_t)]
        page = b"\x07" * 4000 + bytes(96)
        with open(place, "wb") as file:
            file.write(page * 20)

        def read_into(offset, buffer):
            time.sleep(0.02)  # in there the thread would be ended
            buffer[:] = page * (len(buffer) // len(page))

        source = uf.File(place) if kind == "file" else uf.Function(read_into, 20 * len(page), unit="4KiB")
        region = uf.map(source, delivery=delivery)
        start = region.numpy().ctypes.data
        for offset in range(0, len(region), len(page)):
            thread, length = ctypes.c_ulong(), ctypes.c_ssize_t()
            assert libc.pthread_create(thread, None, ctypes.cast(libc.strlen, ctypes.c_void_p), start + offset) == 0
            time.sleep(0.005)
            libc.pthread_cancel(thread)
            assert libc.pthread_join(thread, length) == 0
            assert length.value == 4000

    child(code, args=[delivery, kind, str(tmp_path / "pages")]).check()
