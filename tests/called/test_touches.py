"""Every kind of touch gets the right bytes from a Python source, with the interpreter's lock held and without."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel


PREPARE = """
import array, base64, binascii, ctypes, gc, hashlib, io, json, operator, os, pickle, re, struct, sys, zlib
import numpy as np
from support.called import mapped
from support.lazy import check_endings
source, region, v, a = mapped(delivery=sys.argv[1])
e, d = source.bytes, source.data
lo, hi = 5 * 4096 - 100, 40 * 4096 + 77
"""

#: Every row of the table of touches that deadlock with a handler thread in Python (docs/facts.md), and more.
TOUCHES = {
    "subscript": "assert v[lo] == e[lo]",
    "slice": "assert bytes(v[lo:hi]) == e[lo:hi]",
    "tobytes": "assert v[lo:hi].tobytes() == e[lo:hi]",
    "compare": "assert v[lo:hi] == e[lo:hi]",
    "iterate": "assert list(v[lo:lo + 9000]) == list(e[lo:lo + 9000])",
    "join": "assert b''.join([v[lo:hi], v[:lo]]) == e[lo:hi] + e[:lo]",
    "bytearray": "assert bytearray(v[lo:hi]) == e[lo:hi]",
    "from_bytes": "assert int.from_bytes(v[lo:lo + 5000], 'little') == int.from_bytes(e[lo:lo + 5000], 'little')",
    "struct": "assert struct.unpack_from('<1000Q', v, lo) == struct.unpack_from('<1000Q', e, lo)",
    "regular expression": "assert re.search(re.escape(e[hi - 50:hi]), v).start() == e.find(e[hi - 50:hi])",
    "pickle": "assert pickle.loads(pickle.dumps(v[lo:hi].tobytes())) == e[lo:hi]",
    "json": "assert json.loads(json.dumps(v[lo:hi].hex())) == e[lo:hi].hex()",
    "sorted": "assert sorted(v[lo:lo + 9000]) == sorted(e[lo:lo + 9000])",
    "dictionary key": "assert {v[lo:hi].tobytes(): 1}[e[lo:hi]] == 1",
    "array": "assert array.array('B', v[lo:hi]).tobytes() == e[lo:hi]",
    "small hash": "assert hashlib.sha256(v[lo:lo + 2000]).digest() == hashlib.sha256(e[lo:lo + 2000]).digest()",
    "large hash": "assert hashlib.sha256(v).digest() == hashlib.sha256(e).digest()",
    "crc": "assert zlib.crc32(v) == zlib.crc32(e)",
    "base64": "assert base64.b64encode(v[lo:hi]) == base64.b64encode(e[lo:hi])",
    "hexlify": "assert binascii.hexlify(v[lo:hi]) == binascii.hexlify(e[lo:hi])",
    "string_at": "assert ctypes.string_at(region.address + lo, hi - lo) == e[lo:hi]",
    "PyDLL": "assert ctypes.pythonapi.PyBytes_FromStringAndSize and ctypes.PyDLL(None).memcmp"
    "(ctypes.c_void_p(region.address + lo), e[lo:hi], hi - lo) == 0",
    "CDLL": "assert ctypes.CDLL(None).memcmp(ctypes.c_void_p(region.address + lo), e[lo:hi], hi - lo) == 0",
    "BytesIO": "b = io.BytesIO(); b.write(v[lo:hi]); assert b.getvalue() == e[lo:hi]",
    "numpy scalar": "assert a[lo] == d[lo]",
    "numpy sum": "assert a.sum() == d.sum()",
    "numpy copy": "assert (a[lo:hi].copy() == d[lo:hi]).all()",
    "numpy fancy": "at = np.arange(0, len(d), 5000); assert (a[at] == d[at]).all()",
    "numpy sort": "assert (np.sort(a[lo:hi]) == np.sort(d[lo:hi])).all()",
    "numpy unique": "assert (np.unique(a) == np.unique(d)).all()",
    "numpy matmul": "x = region.numpy('f4', (256, 256)); y = d[:262144].view('f4').reshape(256, 256);"
    "assert np.array_equal(x @ np.ones((256, 1), 'f4'), y @ np.ones((256, 1), 'f4'), equal_nan=True)",
    "numpy tofile": "import tempfile; f = tempfile.TemporaryFile()\n"
    "    a.tofile(f) if sys.argv[1] == 'thread' else f.write(region.read())\n"
    "    f.seek(0); assert f.read() == e",
    "garbage collection": "gc.collect(); assert v[lo] == e[lo]",
    "operator": "assert operator.itemgetter(lo)(v) == e[lo]",
}


@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
def test_a_touch_gets_the_bytes_of_the_source(child, delivery, touch):
    """Right bytes, the law of endings, and again after an evict."""
    code = f"{PREPARE}\nwith np.errstate(all='ignore'):\n    {touch}\n    region.evict()\n    {touch}\ncheck_endings(region)"
    child(code, args=[delivery]).check()


def test_a_touch_with_the_lock_runs_the_source_in_its_own_thread(child, delivery):
    """The reader of the source is whoever touched: the main thread, and any other."""

    def code():
        import sys
        import threading

        from support.called import mapped

        source, region, view, _ = mapped(delivery=sys.argv[1])
        assert view[0] == source.bytes[0]
        assert source.readers == {"MainThread": 1}

        def touch():
            assert view[9 * 4096] == source.bytes[9 * 4096]

        thread = threading.Thread(target=touch, name="toucher")
        thread.start()
        thread.join()
        assert source.readers == {"MainThread": 1, "toucher": 1}
        found = region.statistics()
        assert (found.faults, found.resolved, found.dispatched) == (2, 2, 0), found

    child(code, args=[delivery]).check()


def test_six_threads_get_right_bytes_while_units_leave(child, delivery):
    """Random pages of one region, others of the same pages, under a resident budget: every byte right, nobody hangs."""

    def code():
        import sys

        import numpy as np
        from support.called import PAGE, mapped
        from support.lazy import check_endings, in_threads

        source, region, view, _ = mapped(delivery=sys.argv[1], resident="256KiB")

        def touch(seed):
            for page in np.random.default_rng(seed).permutation(len(source.bytes) // PAGE).tolist() * 2:
                at = page * PAGE + seed
                assert view[at] == source.bytes[at]

        in_threads(*(lambda seed=seed: touch(seed) for seed in range(6)))
        check_endings(region)

    child(code, args=[delivery], timeout=60).check()


def test_system_calls_are_served_by_threads_of_the_library(child):
    """write, readinto, O_DIRECT, process_vm_readv and friends: the kernel waits, a source thread reads."""

    def code():
        import ctypes
        import os
        import tempfile

        from support.called import mapped
        from support.lazy import check_endings

        source, region, view, _ = mapped(mode="c")
        with tempfile.TemporaryFile() as file:
            assert os.write(file.fileno(), view[4096:90000]) == 90000 - 4096
            assert os.pread(file.fileno(), 100_000, 0) == source.bytes[4096:90000]
            assert os.writev(file.fileno(), [view[100_000:150_000], view[:4096]]) == 54096
            file.seek(0)
            assert file.raw.readinto(view[200_001:201_001]) == 1000  # read(2) writes into an absent page
        assert bytes(view[200_000:200_001]) == source.bytes[200_000:200_001]
        assert bytes(view[200_001:201_001]) == source.bytes[4096:5096]
        assert bytes(view[201_001:204_800]) == source.bytes[201_001:204_800]
        into = ctypes.create_string_buffer(50_000)

        class Part(ctypes.Structure):
            _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

        here, there = Part(ctypes.addressof(into), 50_000), Part(region.address + 300_000, 50_000)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.process_vm_readv(os.getpid(), ctypes.byref(here), 1, ctypes.byref(there), 1, 0) == 50_000
        assert into.raw == source.bytes[300_000:350_000]
        assert all(name.startswith("userfault-source") for name in source.readers if name != "MainThread")
        check_endings(region)

    child(code).check()


def test_a_system_call_with_signal_delivery_is_efault_until_populated(child):
    """SIGBUS is for CPU accesses; `populate` is the way for others."""

    def code():
        import errno
        import os

        from support.called import mapped
        from support.lazy import raised

        _, region, view, _ = mapped(delivery="signal")
        null = os.pipe()[1]
        assert raised(OSError, lambda: os.write(null, view[:4096])).errno == errno.EFAULT
        region.populate(slice(0, 4096))
        assert os.write(null, view[:4096]) == 4096
        assert region.kernel_faults is False

    child(code).check()


def test_a_thread_that_python_does_not_know_gets_its_bytes(child, delivery):
    """A thread of C touches: a source thread reads for it, or it takes the lock itself."""

    def code():
        import ctypes
        import sys

        import userfault as uf

        def text(offset, buffer):
            buffer[:] = b"x" * len(buffer)
            if offset + len(buffer) == 1 << 20:
                buffer[-1] = 0

        region = uf.map(uf.Function(text, 1 << 20, unit="4KiB"), delivery=sys.argv[1])
        libc = ctypes.CDLL(None)
        libc.pthread_create.argtypes = [ctypes.c_void_p] * 4
        libc.pthread_join.argtypes = [ctypes.c_ulong, ctypes.c_void_p]
        number, answer = ctypes.c_ulong(), ctypes.c_void_p()
        strlen = ctypes.cast(libc.strlen, ctypes.c_void_p)
        for _ in range(3):
            region.evict()
            start = region.address + (1 << 20) - 50_000
            assert libc.pthread_create(ctypes.byref(number), None, strlen, start) == 0
            assert libc.pthread_join(number, ctypes.byref(answer)) == 0
            assert answer.value == 49_999, answer

    child(code, args=[delivery]).check()


def test_others_run_python_during_a_slow_touch(child, delivery):
    """While the source waits, its thread's lock is free: another thread makes progress during one touch."""

    def code():
        import sys
        import threading
        import time

        import userfault as uf

        began, turns = threading.Event(), []

        def slow(offset, buffer):
            began.set()
            until = time.monotonic() + 10
            while len(turns) < 10 and time.monotonic() < until:
                time.sleep(0.01)
            buffer[:] = b"\x07" * len(buffer)

        view = memoryview(uf.map(uf.Function(slow, "1MiB"), delivery=sys.argv[1]))

        def work():
            began.wait()
            while len(turns) < 20:
                time.sleep(0.005)
                turns.append(time.monotonic())

        thread = threading.Thread(target=work)
        thread.start()
        assert view[0] == 7
        ended = time.monotonic()
        thread.join()
        assert sum(turn < ended for turn in turns) >= 10, (ended, turns)

    child(code, args=[delivery]).check()


def test_whoever_waits_for_the_same_unit_gives_up_the_lock(child, delivery):
    """Two threads touch one unit: the second waits without the lock that the first one's source needs."""

    def code():
        import sys
        import threading
        import time

        from support.lazy import in_threads

        import userfault as uf

        calls = []
        both = threading.Barrier(2, timeout=10)

        def slow(offset, buffer):
            calls.append(offset)
            for _ in range(30):
                time.sleep(0.005)
            buffer[:] = b"\x07" * len(buffer)

        view = memoryview(uf.map(uf.Function(slow, "1MiB", unit="64KiB"), delivery=sys.argv[1]))

        def touch():
            both.wait()
            assert view[100] == 7

        in_threads(touch, touch)
        assert calls == [0], calls

    child(code, args=[delivery]).check()


def test_a_source_may_collect_garbage_and_make_threads_and_processes(child, delivery):
    """The source does what Python code does, in the middle of another's touch."""

    def code():
        import gc
        import subprocess
        import sys
        import threading

        import userfault as uf

        def busy(offset, buffer):
            gc.collect()
            thread = threading.Thread(target=buffer.__setitem__, args=(slice(None), b"\x07" * len(buffer)))
            thread.start()
            thread.join()
            subprocess.run(["true"], check=True)

        view = memoryview(uf.map(uf.Function(busy, "64KiB", unit="16KiB"), delivery=sys.argv[1]))
        assert bytes(view) == b"\x07" * 65536

    child(code, args=[delivery]).check()


def test_a_source_over_another_lazy_region_is_served_too(child, delivery):
    """Sources within sources: the touch inside a touch runs the other source in the same thread."""

    def code():
        import sys

        from support.called import mapped

        import userfault as uf

        source, _, inner, _ = mapped(delivery=sys.argv[1])

        def reversed_bits(offset, buffer):
            for at in range(len(buffer)):
                buffer[at] = inner[offset + at] ^ 0xFF

        outer = memoryview(uf.map(uf.Function(reversed_bits, "1MiB", unit="8KiB"), delivery=sys.argv[1]))
        assert bytes(outer[20_000:40_000]) == bytes(byte ^ 0xFF for byte in source.bytes[20_000:40_000])

    child(code, args=[delivery]).check()


def test_touches_go_on_after_closerange(child):
    """A daemon closes all descriptors it can find: touches of Python sources are still served."""

    def code():
        import os

        from support.called import mapped

        source, region, view, _ = mapped()
        assert view[0] == source.bytes[0]
        os.closerange(3, 4096)
        assert bytes(view[:50_000]) == source.bytes[:50_000]
        region.evict()
        assert bytes(view[:50_000]) == source.bytes[:50_000]

    child(code).check()


def test_touchers_that_others_keep_from_the_processor_are_served(child):
    """More busy processes than CPUs: whoever is kept from going to sleep is not taken for somebody in a system call."""

    def code():
        import os
        import signal
        import time

        from support.called import PAGE, mapped
        from support.lazy import check_endings

        busy = []
        for _ in range(4 * (os.cpu_count() or 1)):
            process = os.fork()
            if process == 0:
                end = time.monotonic() + 30
                while time.monotonic() < end:
                    pass
                os._exit(0)
            busy.append(process)
        try:
            source, region, view, _ = mapped(timeout="5s")
            end = time.monotonic() + 4
            while time.monotonic() < end:
                region.evict()
                for at in range(9, len(source.bytes), PAGE):
                    assert view[at] == source.bytes[at]
                    if time.monotonic() > end:
                        break
            check_endings(region)
        finally:
            for process in busy:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)

    child(code, timeout=60).check()
