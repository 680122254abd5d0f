"""Regions of files and of slow or broken sources, from end to end: the bytes, the errors, and what the kernel sees."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

deliveries = pytest.mark.parametrize("delivery", ["thread", "signal"])


@deliveries
def test_a_file_truncated_meanwhile_is_a_page_error_with_its_offset(child, delivery, tmp_path):
    """What is left can be read; what is gone raises at its place, again and again, and comes back with the file."""

    def code():
        import pathlib
        import sys

        from support.lazy import check_endings, known_bytes, raised

        import userfault as uf

        data = known_bytes(1 << 20)
        path = pathlib.Path("data")
        path.write_bytes(data.tobytes())
        region = uf.map(path, delivery=sys.argv[1], unit="64KiB")
        view = region.numpy()
        assert view[5] == data[5]
        with path.open("r+b") as file:
            file.truncate(500_000)
        assert (view[:499_712] == data[:499_712]).all()  # whole pages below the new end

        def touch(at):
            view[at]
            for _ in range(100):
                pass

        for at in (600_000, 600_000, 700_001, 1_000_000):
            error = raised(uf.PageError, lambda at=at: touch(at))
            assert at // 4096 * 4096 <= error.offset <= at, error
            assert "data" in error.source
            error = raised(uf.PageError, lambda at=at: region.read(at, 10))
            assert at >> 16 <= error.offset >> 16 <= at >> 16, error
        offset = raised(uf.PageError, region.populate).offset
        assert offset >= 500_000 >> 16 << 16, offset
        path.write_bytes(data.tobytes())
        assert (region.numpy() == data).all()
        check_endings(region)

    child(code, args=[delivery], cwd=tmp_path).check()


@deliveries
def test_growth_of_a_file_is_not_seen(child, delivery, tmp_path):
    """The length is that of the opening; the last page ends in zeros, not in what came later."""

    def code():
        import ctypes
        import pathlib
        import sys

        from support.lazy import known_bytes

        import userfault as uf

        data = known_bytes(10_000)
        path = pathlib.Path("data")
        path.write_bytes(data.tobytes())
        region = uf.map(path, delivery=sys.argv[1])
        with path.open("ab") as file:
            file.write(b"more" * 10_000)
        assert len(region) == 10_000
        assert region.read() == data.tobytes()
        assert ctypes.string_at(region.address + 10_000, 12_288 - 10_000) == bytes(12_288 - 10_000)

    child(code, args=[delivery], cwd=tmp_path).check()


def test_system_calls_see_the_same_bytes_as_eager_data(child, tmp_path):
    """write, sendfile from a copy, O_DIRECT, process_vm_readv, readinto of a writable region, and hashes."""

    def code():
        import ctypes
        import hashlib
        import io
        import mmap
        import os
        import pathlib
        import subprocess
        import sys
        import zlib

        from support.lazy import check_endings, known_bytes, libc

        import userfault as uf

        data = known_bytes((1 << 20) + 777).tobytes()
        path = pathlib.Path("data")
        path.write_bytes(data)

        def fresh(**options):
            return uf.map(path, unit="16KiB", **options)

        region = fresh()
        if not region.kernel_faults:
            print("skipped: faults of system calls are not served here")
            return
        out = os.open("out", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        done = 0
        while done < len(data):
            done += os.write(out, memoryview(region)[done:])
        assert os.pread(out, len(data), 0) == data
        os.truncate(out, 0)
        assert os.pwritev(out, [memoryview(fresh())[:100_000], memoryview(fresh())[100_000:]], 0) == len(data)
        assert path.read_bytes() == pathlib.Path("out").read_bytes() == data

        try:
            direct = os.open("direct", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
        except OSError as error:
            print("no O_DIRECT here:", error)
        else:
            assert os.write(direct, memoryview(fresh())[: 1 << 20]) == 1 << 20
            assert pathlib.Path("direct").read_bytes() == data[: 1 << 20]

        class Piece(ctypes.Structure):
            _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

        buffer = ctypes.create_string_buffer(len(data))
        one = fresh()
        local, remote = Piece(ctypes.addressof(buffer), len(data)), Piece(one.address, len(data))
        count = libc.process_vm_readv(os.getpid(), ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
        assert count == len(data)
        assert buffer.raw == data
        one = fresh()
        reader = [
            "import ctypes, sys, zlib",
            "pid, address, size = map(int, sys.argv[1:])",
            "class Piece(ctypes.Structure): _fields_ = (('base', ctypes.c_void_p), ('length', ctypes.c_size_t))",
            "buffer = ctypes.create_string_buffer(size)",
            "local, remote = Piece(ctypes.addressof(buffer), size), Piece(address, size)",
            "read = ctypes.CDLL(None).process_vm_readv",
            "assert read(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0) == size",
            "print(zlib.crc32(buffer.raw))",
        ]
        command = [sys.executable, "-c", "\n".join(reader), str(os.getpid()), str(one.address), str(len(data))]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        assert told.stdout.strip() == str(zlib.crc32(data)), told

        changed = fresh(mode="c")
        view = memoryview(changed)
        assert io.BytesIO(b"x" * 70_000).readinto(view[5000:75_000]) == 70_000
        with open("out", "rb", buffering=0) as file:
            assert file.readinto(view[300_000:400_000]) == 100_000
        expected = bytearray(data)
        expected[5000:75_000] = b"x" * 70_000
        expected[300_000:400_000] = data[:100_000]
        assert view == expected
        assert path.read_bytes() == data  # nothing of it reaches the file

        for hasher in ("sha256", "blake2b", "md5"):
            assert hashlib.new(hasher, fresh()).digest() == hashlib.new(hasher, data).digest()
        assert zlib.crc32(fresh()) == zlib.crc32(data)
        assert zlib.decompress(zlib.compress(fresh())) == data
        assert bytes(fresh()) == data
        assert memoryview(fresh()).tobytes()[::-1] == data[::-1]

        left, right = os.pipe()
        spliced = fresh()
        assert os.write(right, memoryview(spliced)[:60_000]) == 60_000
        assert os.read(left, 60_000) == data[:60_000]
        shared = fresh(shared=True, on_error="abort")
        shared.populate()
        a, b = os.pipe()
        assert os.sendfile(b, shared.fileno(), 1000, 50_000) == 50_000
        assert os.read(a, 50_000) == data[1000:51_000]
        with mmap.mmap(shared.fileno(), len(data), mmap.MAP_SHARED, mmap.PROT_READ) as other:
            assert other[:] == data
        for one in (region, spliced, shared, changed):
            check_endings(one)

    result = child(code, cwd=tmp_path, timeout=40).check()
    if "skipped" in result.stdout:
        pytest.skip(result.stdout)


@deliveries
def test_numpy_gives_what_it_gives_for_eager_data(child, delivery, tmp_path):
    """Arithmetic, sorting, searching, fancy indexing, matmul and reductions, with the GIL and without."""

    def code():
        import pathlib
        import sys

        import numpy as np

        import userfault as uf

        eager = np.random.default_rng(3).random((600, 500))
        pathlib.Path("data").write_bytes(eager.tobytes())
        which = np.random.default_rng(4).integers(0, 600, 2000)
        works = [
            lambda a: a.sum(),
            lambda a: a.mean(axis=0),
            lambda a: np.sort(a, axis=None),
            lambda a: np.argsort(a[:, 3]),
            lambda a: a[which],
            lambda a: np.take(a, which, axis=0),
            lambda a: a @ a.T,
            lambda a: a.T.copy(),
            lambda a: np.where(a > 0.5, a, -a),
            lambda a: np.unique((a * 100).astype(int)),
            lambda a: np.cumsum(a),
            lambda a: a[::7, ::-3] + 1,
            lambda a: np.searchsorted(np.sort(a[0]), a[1]),
            lambda a: np.histogram(a, 50)[0],
            lambda a: np.linalg.svd(a[:50, :50])[1],
            lambda a: np.fft.rfft(a[5]),
            lambda a: np.array(a.tolist()),
            lambda a: np.frombuffer(a.tobytes()),
            lambda a: np.concatenate([a, a]),
            lambda a: np.array_equal(a, eager),
        ]
        for work in works:
            with uf.map("data", delivery=sys.argv[1], unit="8KiB") as region:
                lazy = region.numpy("f8", (600, 500))
                assert not lazy.flags.writeable
                assert np.array_equal(work(lazy), work(eager)), work
                del lazy

    child(code, args=[delivery], cwd=tmp_path, timeout=40).check()


def test_a_slow_source_does_not_keep_other_regions_waiting(child):
    """Forty threads wait for slow pages; a region beside them answers as ever."""

    def code():
        import os
        import threading
        import time

        from support.lazy import check_endings, known_bytes

        import userfault as uf

        data = known_bytes(4 << 20)
        slow = [uf.map(uf.testing.Chaos(uf.Bytes(data.tobytes()), delay=60), unit="64KiB") for _ in range(8)]
        fast = [uf.map(data.tobytes(), unit="4KiB") for _ in range(8)]  # on every reader

        def wait(region, at):
            region.read(at, 1)

        threads = [threading.Thread(target=wait, args=(slow[n % 8], n * 70_000), daemon=True) for n in range(40)]
        for region in slow:
            region.prefetch()
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        began = time.monotonic()
        for region in fast:
            assert (region.numpy()[::4096] == data[::4096]).all()
            check_endings(region)
        assert time.monotonic() - began < 15, time.monotonic() - began
        os._exit(0)

    child(code, timeout=50).check()


def test_prefetch_of_a_slow_source_does_not_delay_a_touch_of_it(child):
    """Demand before prefetch: a touched page takes one read, not the queue's length."""

    def code():
        import os
        import time

        import userfault as uf

        region = uf.map(uf.testing.Chaos(uf.Zero(64 << 20), delay=0.2), unit="64KiB")
        region.prefetch()
        time.sleep(0.5)
        for at in (60 << 20, 40 << 20, 50 << 20):
            began = time.monotonic()
            assert memoryview(region)[at] == 0
            assert time.monotonic() - began < 5, time.monotonic() - began  # the queue in front of it takes 20 s and more
        os._exit(0)

    child(code).check()


def test_a_timeout_is_a_page_error_in_time_and_the_next_touch_asks_again(child):
    """timeout="300ms" over a source of 4 s: PageError after 300 ms, no pattern afterwards, and the page in the end."""

    def code():
        import time

        from support.lazy import check_endings, known_bytes, raised

        import userfault as uf

        data = known_bytes(64 << 10)
        region = uf.map(uf.testing.Chaos(uf.Bytes(data.tobytes()), delay=4), unit="64KiB", timeout="300ms")
        view = region.numpy()

        def touch():
            value = view[5]
            for _ in range(100):
                pass
            return value

        began = time.monotonic()
        error = raised(uf.PageError, touch)
        took = time.monotonic() - began
        assert 0.25 < took < 3.5, took
        assert "deadline" in str(error), error
        failures, values = 1, []
        while not values and time.monotonic() < began + 15:
            try:
                values.append(touch())
            except uf.PageError:
                failures += 1
        assert values == [data[5]], values
        assert failures >= 2
        assert time.monotonic() - began < 12
        assert (view == data).all()
        check_endings(region)

    child(code, timeout=40).check()


@deliveries
def test_a_source_that_recovers_is_asked_again(child, delivery):
    """Chaos with three failures: PageErrors first, then the bytes."""

    def code():
        import sys

        from support.lazy import check_endings, known_bytes

        import userfault as uf

        data = known_bytes(200_000)
        source = uf.testing.Chaos(uf.Bytes(data.tobytes()), fail=[range(100_000, 100_001)], failures=3)
        region = uf.map(source, delivery=sys.argv[1], unit="64KiB")
        view, seen = region.numpy(), []
        for _ in range(10):
            try:
                value = view[100_000]
                for _ in range(100):
                    pass
                seen.append(int(value))
            except uf.PageError:
                seen.clear()  # bytes first and an error later: then the bytes below are wrong, or there are none
        assert seen
        assert set(seen) == {int(data[100_000])}
        assert (view == data).all()
        check_endings(region)

    child(code, args=[delivery]).check()


def test_layers_do_their_work_under_touches(child):
    """Retry outlives passing failures, Deadline ends slow reads, Checksum finds a changed byte; the rest is right."""

    def code():
        import time

        from support.lazy import check_endings, known_bytes, raised
        from support.xxh64 import xxh64

        import userfault as uf

        data = known_bytes(300_000)
        plain = uf.Bytes(data.tobytes())

        def touch(view, at):
            value = view[at]
            for _ in range(100):
                pass
            return value

        flaky = uf.testing.Chaos(plain, fail=[range(0, 300_000)], failures=2)
        region = uf.map(uf.Retry(flaky, attempts=3, pause="5ms"), unit="64KiB")
        assert (region.numpy() == data).all()
        check_endings(region)

        region = uf.map(uf.Deadline(uf.testing.Chaos(plain, delay=20), "200ms"), unit="64KiB")
        began = time.monotonic()
        error = raised(uf.PageError, lambda: touch(region.numpy(), 70_000))
        assert time.monotonic() - began < 10
        assert "deadline" in str(error)
        region = uf.map(uf.Deadline(plain, "5s"))
        assert (region.numpy() == data).all()

        sums = [xxh64(data[at : at + 4096].tobytes()) for at in range(0, len(data), 4096)]
        region = uf.map(uf.Checksum(plain, 4096, sums), unit="4KiB")
        assert (region.numpy() == data).all()
        sums[20] ^= 1
        region = uf.map(uf.Checksum(plain, "4KiB", sums), unit="4KiB")
        assert (region.numpy()[: 20 * 4096] == data[: 20 * 4096]).all()
        error = raised(uf.PageError, lambda: touch(region.numpy(), 20 * 4096 + 9))
        assert error.offset == 20 * 4096, error
        assert "checksum" in str(error), error
        assert (region.numpy()[21 * 4096 :] == data[21 * 4096 :]).all()
        check_endings(region)

        for layer in (uf.Deadline(plain, "5s"), uf.Retry(plain), uf.testing.Chaos(plain, delay=1)):
            raised(uf.OptionError, lambda layer=layer: uf.map(layer, delivery="signal"))

    child(code, timeout=30).check()
