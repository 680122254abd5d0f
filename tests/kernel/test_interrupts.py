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
    """KeyboardInterrupt long before the page, although it was promised within 100 ms: machines stop; then the page can be had."""
    program = f"""
        import errno, os, signal, threading, time
        import numpy
        import userfault as uf
        from support.lazy import check_endings
        region = uf.map(uf.testing.Chaos(uf.Zero(1 << 20), delay=6), unit="1MiB")
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

        began = time.monotonic()
        try:
            if os.fork() == 0:
                time.sleep(0.5)
                os.kill(pid, signal.SIGINT)
                os._exit(0)
            {way}
            for _ in range(100):
                pass
        except KeyboardInterrupt:
            took = time.monotonic() - began
            assert took < 5, took  # the page takes 6
        else:
            raise AssertionError(f"not interrupted after {{time.monotonic() - began}}")
        os.wait()
        limit = time.monotonic() + 15
        while True:  # for a while the page may show the pattern, or poison, and then it is told
            try:
                with uf.checked(region):
                    right = (view == 0).all()
                break
            except uf.PageError:
                assert time.monotonic() < limit, "the page did not come"
        assert right
        check_endings(region)
    """
    import textwrap

    assert child(textwrap.dedent(program), warnings=None, timeout=40).check().stderr == ""


def test_a_touch_after_an_interrupted_system_call_is_right_or_raises(child):
    """The poison that ended the call is never read as data."""

    def code():
        import os
        import signal
        import threading
        import time

        import userfault as uf

        region = uf.map(uf.testing.Chaos(uf.Zero(1 << 20), delay=5), unit="1MiB")
        view = region.numpy()
        pipe = os.pipe()[1]
        timer = threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
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
        stop, sent = threading.Event(), []

        def touch():
            while not stop.is_set():
                for at in range(0, len(data), 4096):
                    assert view[at] == data[at]
                    if stop.is_set():
                        return
                region.evict()

        def interrupt():
            while not stop.wait(0.1):
                sent.append(1)
                os.kill(os.getpid(), signal.SIGINT)

        threads = [threading.Thread(target=work) for work in (touch, interrupt)]
        for thread in threads:
            thread.start()
        seen, until, going = 0, time.monotonic() + 3, True
        while going:
            try:
                for at in range(0, len(data), 4096):
                    right = view[at] == data[at]
                    assert right
                region.evict()
                going = time.monotonic() < until or (seen <= 10 and time.monotonic() < until + 10)
            except KeyboardInterrupt:
                seen += 1
        ended = False
        while not ended:
            try:
                stop.set()
                for thread in threads:
                    thread.join()
                time.sleep(0.2)
                ended = True
            except KeyboardInterrupt:
                seen += 1
        assert 10 < seen <= len(sent), (seen, len(sent))
        assert (view == data).all()
        check_endings(region)

    assert child(code, timeout=45).check().stderr == ""
