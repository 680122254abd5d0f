"""The threads in which calls of stores run: those that hang take no turns of others."""

from __future__ import annotations

import threading

import pytest

from userfault._core import Turn
from userfault.sources import aside as module


@pytest.fixture
def few(monkeypatch):
    """Four threads at most, fresh ones."""
    monkeypatch.setattr(module, "MOST_ASIDE", 4)
    monkeypatch.setattr(module, "_THREADS", None)


@pytest.mark.usefixtures("few")
def test_calls_that_hang_after_a_backlog_leave_threads_for_others():
    """A backlog does not make the pool believe that it has more threads at rest than there are."""
    gate, never = threading.Event(), threading.Event()
    callers = [threading.Thread(target=lambda: module.aside(gate.wait, seconds=20)) for _ in range(16)]
    for caller in callers:
        caller.start()
    gate.set()
    for caller in callers:
        caller.join()
    for _ in range(6):
        with pytest.raises(TimeoutError):
            module.aside(never.wait, seconds=0.2)
    assert module.aside(lambda: 7, seconds=10) == 7
    never.set()


def test_who_came_to_rest_is_the_next_to_work(monkeypatch):
    """One call after the other needs one thread."""
    monkeypatch.setattr(module, "_THREADS", None)
    assert len({module.aside(threading.get_native_id, seconds=10) for _ in range(300)}) == 1


def test_a_turn_is_rung_once():
    """Before it is awaited or meanwhile; and the other one is rung by who waits."""
    turn, other = Turn(), Turn()
    assert not turn.wait(0)
    assert not turn.wait(0.01)
    turn.ring()
    turn.ring()
    assert turn.wait()
    assert not turn.wait(0)
    echo = threading.Thread(target=lambda: (other.wait(10), turn.ring()))
    echo.start()
    assert turn.wait(10, ring=other)
    echo.join()


def test_calls_that_are_interrupted_anywhere_lose_no_thread(child):
    """Ctrl-C, or the timeout of a touch, may come after any step."""

    def code():
        import random
        import signal
        import time

        from userfault.sources import aside as module

        class Interrupted(Exception):
            pass

        def interrupt(*_):
            raise Interrupted

        module.MOST_ASIDE = 4
        signal.signal(signal.SIGALRM, interrupt)
        chance, interrupted, until = random.Random(1), 0, time.monotonic() + 4
        while time.monotonic() < until:
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(5e-5, 4e-4))
                for number in range(1000):
                    assert module.aside(abs, -number, seconds=10) == number
            except Interrupted:
                interrupted += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        began = time.monotonic()
        for number in range(100):
            assert module.aside(abs, -number, seconds=10) == number
        assert time.monotonic() - began < 5
        assert interrupted > 200, interrupted

    child(code).check()


def test_ctrl_c_ends_a_wait_at_once(child):
    """And threads that wait, or work, when the interpreter ends keep nothing from ending."""

    def code():
        import os
        import signal
        import threading
        import time

        from userfault import _core
        from userfault.sources.aside import aside

        for wait in (lambda: aside(time.sleep, 30, seconds=20), lambda: _core.Turn().wait(20), _core.Turn().wait):
            began = time.monotonic()
            try:
                threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
                wait()
            except KeyboardInterrupt:
                assert time.monotonic() - began < 10
            else:
                raise AssertionError
        for wait in (lambda: aside(time.sleep, 0.3, seconds=20), lambda: _core.Turn().wait(0.2), _core.Turn().wait):
            threading.Thread(target=lambda wait=wait: [wait() for _ in range(1000)], daemon=True).start()
        time.sleep(0.05)

    for _ in range(3):
        child(code, warnings=None, timeout=40).check()


def test_who_touches_in_the_middle_of_a_call_is_served(child):
    """As a signal handler or a finalizer may. Threads that are refused, or whose starter is interrupted, are counted right."""

    def code():
        import threading

        from userfault.sources import aside as module

        start, also = module.start_new_thread, []

        def busy(*call):
            if not also:
                also.append(None)
                also.append(module.aside(abs, -7, seconds=5))
            start(*call)

        module.start_new_thread = busy
        assert module.aside(abs, -1, seconds=5) == 1
        assert also == [None, 7]
        threads = module._threads()
        assert threads._threads == 2

        gate, callers = threading.Event(), []

        def refused(*call):
            raise RuntimeError("can't start new thread")

        def interrupted(*call):
            start(*call)
            raise KeyboardInterrupt

        def hold():
            module.aside(gate.wait, seconds=20)

        for _ in range(2):
            callers.append(threading.Thread(target=hold))
            callers[-1].start()
        while len(threads._idle):
            pass
        for wrong, kind, count in (refused, RuntimeError, 2), (interrupted, KeyboardInterrupt, 3):
            module.start_new_thread = wrong
            try:
                module.aside(abs, -1, seconds=5)
            except kind:
                pass
            else:
                raise AssertionError
            while len(threads._idle) != count - 2:
                pass
            assert threads._threads == count, (wrong, threads._threads)
        gate.set()

    child(code, timeout=20).check()


def test_who_touches_while_a_thread_is_started_is_served(monkeypatch):
    """As a finalizer may: the interpreter's list of threads is locked then."""
    monkeypatch.setattr(module, "_THREADS", None)
    with threading._active_limbo_lock:
        assert module.aside(abs, -1, seconds=5) == 1
