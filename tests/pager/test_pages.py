"""Pages that a pager fills are right for every kind of touch, those included that keep the interpreter's lock."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

PROLOGUE = """
import ctypes, hashlib, mmap, os, struct, sys, threading, zlib
import numpy as np
import userfault as uf
from pager.sources import Known, known
from support.lazy import check_endings, in_threads
LENGTH = 1 << 20
region = uf.map(Known(LENGTH), delivery="process")
view = memoryview(region)
want = known(0, LENGTH).tobytes()
"""

TOUCHES = {
    "subscript": "assert view[5] == want[5]",
    "slice": "assert bytes(view[100:200_000]) == want[100:200_000]",
    "cast": "assert view.cast('Q')[9999] == int.from_bytes(want[79992:80000], 'little')",
    "int.from_bytes": "assert int.from_bytes(view[8:16], 'little') == int.from_bytes(want[8:16], 'little')",
    "struct": "assert struct.unpack_from('<Q', view, 70_000)[0] == int.from_bytes(want[70_000:70_008], 'little')",
    "string_at": "assert ctypes.string_at(region.address + 5000, 9000) == want[5000:14_000]",
    "numpy sum": "assert region.numpy('u8').sum() == known(0, LENGTH).view('u8').sum()",
    "numpy sort": "assert (np.sort(region.numpy('u1')[:300_000]) == np.sort(known(0, LENGTH)[:300_000])).all()",
    "hash, lock kept": "assert hashlib.sha256(view[:2000]).digest() == hashlib.sha256(want[:2000]).digest()",
    "hash, lock given up": "assert hashlib.sha256(view).digest() == hashlib.sha256(want).digest()",
    "crc32": "assert zlib.crc32(view) == zlib.crc32(want)",
    "join": "assert b''.join([view[:70_000], view[70_000:]]) == want",
    "find": "assert bytes(view).find(want[90_000:90_100]) == 90_000",
    "read": "assert region.read(12_345, 400_000) == want[12_345:412_345]",
    "populate": "region.populate(); assert region.statistics().demand_units == 0; assert bytes(view) == want",
    "prefetch": "region.prefetch(); assert bytes(view) == want",
    "threads": "in_threads(*[lambda: (bytes(view) == want) or sys.exit(1)] * 6)",
}

CALLS = {
    "write": """
        read, write = os.pipe()
        thread = threading.Thread(target=lambda: [os.write(write, view[at : at + 4096]) for at in range(0, 65536, 4096)])
        thread.start()
        got = b""
        while len(got) < 65536:
            got += os.read(read, 65536)
        thread.join()
        assert got == want[:65536]
    """,
    "populate by the kernel": """
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.madvise(ctypes.c_void_p(region.address), ctypes.c_size_t(LENGTH), 22) == 0
        assert bytes(view) == want
    """,
}


@pytest.mark.parametrize("touch", [pytest.param(code, id=name) for name, code in TOUCHES.items()])
def test_a_touch_of_any_kind_gets_the_right_bytes(child, touch):
    """What deadlocks with a handler thread in Python works with a pager, and each fault has one ending."""
    child(f"{PROLOGUE}\n{touch}\ncheck_endings(region)", timeout=30).check()


@pytest.mark.parametrize("call", [pytest.param(code, id=name) for name, code in CALLS.items()])
def test_a_system_call_gets_the_right_bytes(child, kernel, call):
    """Where the kernel delivers faults of system calls at all."""
    import textwrap

    child(f"{PROLOGUE}\nif not region.kernel_faults: sys.exit(0)\n{textwrap.dedent(call)}\ncheck_endings(region)").check()


def test_native_sources_are_served_by_a_pager_too(child, tmp_path):
    """Bytes, a file, an image, zeros, and layers over them; sparse sizes as well."""
    code = """
        import sys
        import numpy as np
        import userfault as uf
        from support.lazy import check_endings
        from userfault import image
        data = np.arange(1 << 18, dtype="u4").tobytes()
        folder = sys.argv[1]
        open(f"{folder}/plain", "wb").write(data)
        image.pack(data, f"{folder}/packed.zst", frame="64KiB")
        for source in (
            uf.Bytes(data), uf.File(f"{folder}/plain"), uf.Image(f"{folder}/packed.zst"), uf.Retry(uf.File(f"{folder}/plain"))
        ):
            with uf.map(source, delivery="process", unit="16KiB") as region:
                assert bytes(region) == data, source
                check_endings(region)  # a unit is noted as present after its toucher was woken
                assert region.evict() == region.statistics().units
                assert bytes(region) == data, source
        with uf.map(uf.File(f"{folder}/plain", 5, 10_001), delivery="process") as region:
            assert bytes(region) == data[5:10_006]
        with uf.map(uf.Zero("1TiB"), delivery="process") as region:
            assert memoryview(region)[1 << 39] == 0
        with uf.map(uf.Bytes(b""), delivery="process") as region:
            assert bytes(region) == b""
    """
    child(code, args=[tmp_path]).check()


def test_pages_that_were_written_stay(child):
    """mode="c": what was written is not filled again, whatever its neighbours need, and evict refuses."""
    code = f"""{PROLOGUE}
with uf.map(Known(LENGTH, unit=4096), delivery="process", mode="c") as changing:
    array = changing.numpy()
    array[4096:8192] = 7
    array[100_000] = 9
    os.kill(changing.pager.pid, 9)
    changing.populate()
    assert (array[4096:8192] == 7).all() and array[100_000] == 9 and (array[8192:100_000] == known(0, LENGTH)[8192:100_000]).all()
    try:
        changing.evict()
    except uf.OptionError:
        pass
    else:
        raise AssertionError
"""
    child(code).check()


@pytest.mark.parametrize(
    ("options", "word"), [({"huge": True}, "huge"), ({"resident": "64MiB"}, "resident"), ({"shared": True}, "shared")]
)
def test_what_needs_the_owner_is_refused_with_the_reason(child, options, word):
    """Law 11: another process can copy pages in, and neither move nor drop them."""
    code = f"""
        import userfault as uf
        options = dict({options!r})
        if "shared" in options:
            options["on_error"] = "abort"
        try:
            uf.map(b"x" * 4096, delivery="process", **options)
        except uf.OptionError as error:
            assert {word!r} in str(error), error
        else:
            raise AssertionError
    """
    child(code).check()


def test_reads_of_a_populate_run_at_once_and_in_the_pieces_the_source_likes(child):
    """Each of sixteen waits until four are under way; with preferred_size there are two of them, which wait for each other."""
    code = """
        import threading
        import userfault as uf
        from pager.sources import Known
        class Together(Known):
            def __init__(self, length, parties, **options):
                super().__init__(length, **options)
                self.parties = parties
            def __setstate__(self, state):
                import threading
                self.__dict__.update(state)
                self.barrier = threading.Barrier(self.parties, timeout=15)
            def read_into(self, offset, buffer):
                self.barrier.wait()
                super().read_into(offset, buffer)
        with uf.map(Together(1 << 20, 4), delivery="process") as region:
            region.populate()
            assert region.statistics().prefetched_units == 16
        with uf.map(Together(1 << 20, 2, preferred_size="512KiB"), delivery="process") as region:
            region.populate()
            assert region.statistics().prefetched_units == 16
    """
    child(code, timeout=40).check()


def test_a_slow_read_keeps_nobody_else_waiting(child, tmp_path):
    """Twelve touches of a slow source are under way; those of a quick one are answered meanwhile."""
    code = """
        import ctypes, os, sys, threading, time
        import userfault as uf
        from pager.sources import Known, known
        begun, go = sys.argv[1] + "/begun", sys.argv[1] + "/go"
        class Together(Known):
            def __setstate__(self, state):
                import threading
                self.__dict__.update(state)
                self.barrier = threading.Barrier(12, action=lambda: open(begun, "w").close(), timeout=20)
            def read_into(self, offset, buffer):
                self.barrier.wait()
                while not os.path.exists(go):
                    time.sleep(0.01)
                super().read_into(offset, buffer)
        slow = uf.map(Together(1 << 20), delivery="process", timeout="60s")
        quick = uf.map(Known(1 << 20, unit=4096), delivery="process", timeout="60s")
        libc = ctypes.CDLL(None)
        libc.memcmp.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_size_t]
        def touch(at):
            want = known(at, 8).tobytes()
            assert libc.memcmp(slow.address + at, want, 8) == 0
        ended = []
        threads = [threading.Thread(target=lambda at=at: (touch(at << 16), ended.append(at)), daemon=True) for at in range(12)]
        for thread in threads:
            thread.start()
        limit = time.monotonic() + 20
        while not os.path.exists(begun):
            assert time.monotonic() < limit, "the twelve reads were never under way at once"
            time.sleep(0.01)
        for at in range(0, 1 << 20, 4096):
            assert memoryview(quick)[at] == known(at, 8)[0]
        assert ended == []
        open(go, "w").close()
        for thread in threads:
            thread.join(20)
        assert sorted(ended) == list(range(12)), ended
    """
    child(code, args=[tmp_path], timeout=50).check()


def test_an_owner_that_drops_or_unmaps_pages_itself_gets_the_bytes_of_what_is_left(child):
    """By calls of C that nobody is told of, beside touches: what was dropped comes again, what was unmapped is gone."""
    code = f"""{PROLOGUE}
libc = ctypes.CDLL(None, use_errno=True)
libc.madvise.argtypes, libc.munmap.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int], [ctypes.c_size_t] * 2
done = []
def drop():
    while not done:
        assert libc.madvise(region.address, LENGTH, mmap.MADV_DONTNEED) == 0
def look():
    try:
        for at in np.random.default_rng(1).integers(0, LENGTH - 5000, 3000).tolist():
            assert bytes(view[at : at + 5000]) == want[at : at + 5000], at
    finally:
        done.append(1)
in_threads(drop, look, seconds=40)
half = LENGTH // 2
region.prefetch()
assert libc.munmap(region.address, half) == 0
assert bytes(view[half:]) == want[half:]
assert libc.madvise(region.address + half, half, mmap.MADV_DONTNEED) == 0
assert region.read(half + 100, 90_000) == want[half + 100 : half + 90_100]
try:
    region.populate(slice(0, half))  # into nothing
except (uf.PageError, OSError) as error:
    print(error)
assert bytes(view[half:]) == want[half:]
check_endings(region)
view.release()
region.close()
again = uf.map(Known(LENGTH, seed=3), delivery="process")
assert again.read(5000, 90_000) == known(5000, 90_000, 3).tobytes()
"""
    child(code, timeout=50).check()
