"""Ctrl-C: the wait for a page ends, KeyboardInterrupt surfaces, and the page can be had afterwards."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

WAYS = {
    "subscript": "view[5]",
    "released, one page": "numpy.sort(view[:4096])",
    "released": "numpy.sort(view[: 1 << 18])",
    "system call": "write(null, view[:4096])",
    "read": "region.read(0, 4096)",
    "populate": "region.populate()",
}


@pytest.mark.parametrize(
    "way",
    [pytest.param(code, id=name) for name, code in WAYS.items()],
)
def test_ctrl_c_ends_the_wait_for_a_page(child, way):
    """KeyboardInterrupt within 100 ms, then the page can be had; under timers too."""
    program = f"""
        import errno, os, signal, threading, time
        import numpy
        import userfault as uf
        from support.lazy import check_endings
        region = uf.map(uf.testing.Chaos(uf.Zero(1 << 20), delay=1.5), unit="1MiB")
        view = region.numpy()
        null = os.pipe()[1]
        pid = os.getpid()

        def write(*arguments):
            try:
                os.write(*arguments)
            except OSError as error:
                assert error.errno == errno.EFAULT, error
            for _ in range(100):
                pass

        helper = os.fork()
        if helper == 0:
            time.sleep(0.5)
            os.kill(pid, signal.SIGINT)
            os._exit(0)
        try:
            began = time.monotonic()
            {way}
            for _ in range(100):
                pass
        except KeyboardInterrupt:
            took = time.monotonic() - began
            assert took < 0.5 + 0.25, took
        else:
            raise AssertionError(f"not interrupted after {{time.monotonic() - began}}")
        os.waitpid(helper, 0)
        time.sleep({1.5 if way.startswith("write") else 0.05})  # until then the page may show the pattern, or poison
        assert (view == 0).all()
        check_endings(region)
    """
    import textwrap

    assert child(textwrap.dedent(program), warnings=None).check().stderr == ""


def test_a_touch_after_an_interrupted_system_call_is_right_or_raises(child):
    """The poison that ended the call is never read as data."""

    def code():
        import os
        import signal
        import threading
        import time

        import userfault as uf

        region = uf.map(uf.testing.Chaos(uf.Zero(1 << 20), delay=1.5), unit="1MiB")
        view = region.numpy()
        pipe = os.pipe()[1]
        timer = threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            try:
                os.write(pipe, view[:4096])
            except OSError:
                time.sleep(1)
        except KeyboardInterrupt:
            pass
        raised = None
        try:
            value = view[5]
            for _ in range(100):
                pass
        except uf.PageError as error:
            raised = error
        assert raised or value == 0, value
        timer.join()

    assert child(code).check().stderr == ""


def test_ctrl_c_during_a_storm_is_one_keyboard_interrupt(child):
    """Each SIGINT is seen by the main thread, and no byte is wrong after it."""

    def code():
        import os
        import signal
        import threading
        import time

        from support.lazy import check_endings, known_bytes

        import userfault as uf

        data = known_bytes(2 << 20)
        region = uf.map(uf.testing.Chaos(uf.Bytes(data.tobytes()), delay="3ms"), unit="4KiB")
        view = region.numpy()
        stop = threading.Event()

        def touch():
            while not stop.is_set():
                for at in range(0, len(data), 4096):
                    assert view[at] == data[at]
                    if stop.is_set():
                        return
                region.evict()

        def interrupt():
            while not stop.wait(0.1):
                os.kill(os.getpid(), signal.SIGINT)

        threads = [threading.Thread(target=work) for work in (touch, interrupt)]
        for thread in threads:
            thread.start()
        seen, until = 0, time.monotonic() + 3
        while time.monotonic() < until:
            try:
                for at in range(0, len(data), 4096):
                    right = view[at] == data[at]
                    assert right
                region.evict()
            except KeyboardInterrupt:
                seen += 1
        try:
            stop.set()
            for thread in threads:
                thread.join()
            time.sleep(0.2)
        except KeyboardInterrupt:
            seen += 1
            for thread in threads:
                thread.join()
        assert 10 < seen < 35, seen
        assert (view == data).all()
        check_endings(region)

    assert child(code, timeout=30).check().stderr == ""
