"""Law 3: a forked child never sees zeros, and nothing it does reaches its parent's memory."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

deliveries = pytest.mark.parametrize("delivery", ["thread", "signal"])


@deliveries
@pytest.mark.parametrize("present", [True, False], ids=["present", "absent"])
@pytest.mark.parametrize("how", ["os", "C"])
def test_touch_in_a_forked_child_dies_by_sigsegv_with_one_line(child, delivery, present, how):
    """Present or absent, by os.fork or by C: one line on stderr, then SIGSEGV; the parent goes on."""

    def code():
        import ctypes
        import os
        import signal
        import sys
        import warnings

        from support.lazy import check_endings, killed_by, known_bytes, libc

        import userfault as uf

        warnings.simplefilter("ignore", DeprecationWarning)
        delivery, present, how = sys.argv[1:]
        data = known_bytes(1 << 20)
        region = uf.map(uf.Bytes(data.tobytes()), delivery=delivery)
        view = region.numpy()
        if present == "True":
            assert (view == data).all()
        process = os.fork() if how == "os" else libc.fork()
        if process == 0:
            ctypes.string_at(region.address + 70_000, 1)
            os._exit(9)
        _, status = os.waitpid(process, 0)
        assert killed_by(status) == signal.SIGSEGV, status
        assert (view == data).all()
        check_endings(region)

    result = child(code, args=[delivery, str(present), how]).check()
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert "Bytes(1048576 bytes)" in lines[0]
    assert "offset 70000" in lines[0]
    assert "spawn" in lines[0]


def test_mappings_of_a_forked_child_never_land_on_a_region(child):
    """The child's new mappings, of any size and at any hint, stay off its parent's regions."""

    def code():
        import mmap
        import os
        import signal
        import warnings

        from support.lazy import known_bytes, libc, maps

        import userfault as uf

        warnings.simplefilter("ignore", DeprecationWarning)
        sizes = [4096, 65536, 1 << 20, (1 << 21) - 4096, 1 << 21, (1 << 21) + 4096, 5 << 20, 1 << 25]
        regions = [uf.map(uf.Bytes(known_bytes(size).tobytes())) for size in sizes]
        ranges = [(region.address, region.address + region.nbytes) for region in regions]

        process = os.fork()
        if process == 0:
            signal.alarm(15)
            made = [mmap.mmap(-1, size) for size in sizes * 20]
            for size in sizes * 20:
                for hint in [None, *[low for low, _ in ranges]]:
                    address = libc.mmap(hint, size, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
                    assert all(address + size <= low or high <= address for low, high in ranges), hex(address)
            for low, high in ranges:
                there = [(a, b, rights) for a, b, rights in maps() if a < high and low < b]
                assert {rights for _, _, rights in there} == {"---p"}, there
                assert min(a for a, _, _ in there) <= low
                assert max(b for _, b, _ in there) >= high
            made.clear()
            os._exit(0)
        assert os.waitpid(process, 0)[1] == 0

    child(code, timeout=30).check()


@deliveries
def test_finalizers_in_a_forked_child_do_nothing_to_the_parent(child, delivery):
    """close, del, prefetch, evict and a normal exit of the child leave the parent's pages and descriptors alone."""

    def code():
        import gc
        import os
        import pathlib
        import sys
        import tempfile
        import warnings

        from support.lazy import check_endings, known_bytes, raised

        import userfault as uf

        warnings.simplefilter("ignore", DeprecationWarning)
        data = known_bytes(1 << 20)
        path = pathlib.Path(tempfile.mkdtemp()) / "data"
        path.write_bytes(data.tobytes())
        regions = [uf.map(what, delivery=sys.argv[1]) for what in (uf.Bytes(data.tobytes()), path, path)]
        views = [region.numpy() for region in regions]
        assert all(view[5] == data[5] for view in views)
        for ending in ("close", "del", "calls", "exit"):
            process = os.fork()
            if process == 0:
                assert [region.state for region in regions] == ["foreign"] * 3
                if ending == "close":
                    for region in regions:
                        region.close()
                        assert region.state in ("closed", "foreign")
                elif ending == "del":
                    views.clear()
                    regions.clear()
                    gc.collect()
                elif ending == "calls":
                    for region in regions:
                        for call in (region.prefetch, region.populate, region.evict, region.statistics, region.read):
                            assert "fork" in str(raised(uf.UserfaultError, call))
                        assert "foreign" in str(raised(BufferError, lambda region=region: memoryview(region)))
                        assert "foreign" in repr(region)
                sys.exit(0)
            assert os.waitpid(process, 0)[1] == 0, ending
            for region, view in zip(regions, views, strict=True):
                region.evict()
                assert (view == data).all()
                check_endings(region)

    result = child(code, args=[delivery], timeout=30).check()
    assert result.stderr == ""


@deliveries
def test_a_forked_child_and_its_child_open_regions_of_their_own(child, delivery):
    """Generations: each opens regions, drops inherited ones, and its own go on working."""

    def code():
        import gc
        import os
        import pathlib
        import sys
        import tempfile
        import warnings

        from support.lazy import check_endings, known_bytes

        import userfault as uf

        warnings.simplefilter("ignore", DeprecationWarning)
        folder = pathlib.Path(tempfile.mkdtemp())

        def generation(number):
            paths = [folder / f"{number}-{index}" for index in range(4)]
            data = [known_bytes(300_001, seed=number * 10 + index) for index in range(4)]
            for path, bytes_ in zip(paths, data, strict=True):
                path.write_bytes(bytes_.tobytes())
            regions = [uf.map(path, delivery=sys.argv[1]) for path in paths]
            views = [region.numpy() for region in regions]
            assert all(view[9] == bytes_[9] for view, bytes_ in zip(views, data, strict=True))
            return regions, views, data

        def check(regions, views, data):
            for region, view, bytes_ in zip(regions, views, data, strict=True):
                region.evict()
                assert (view == bytes_).all()
                region.evict()
                region.populate()
                assert region.read() == bytes_.tobytes()
                check_endings(region)

        first = generation(1)
        process = os.fork()
        if process == 0:
            second = generation(2)
            del first  # while regions of this process are open: descriptors of the parent's engine must not be mixed up
            gc.collect()
            check(*second)
            process = os.fork()
            if process == 0:
                third = generation(3)
                del second
                gc.collect()
                check(*third)
                sys.exit(0)
            assert os.waitpid(process, 0)[1] == 0
            check(*second)
            sys.exit(0)
        assert os.waitpid(process, 0)[1] == 0
        check(*first)

    assert child(code, args=[delivery], timeout=30).check().stderr == ""


def test_a_forked_child_that_drops_closed_regions_of_its_parent_keeps_its_own(child, tmp_path):
    """Numbers of the parent's engine mean nothing to the child's."""

    def code():
        import gc
        import os
        import pathlib
        import sys
        import warnings

        from support.lazy import check_endings, known_bytes

        import userfault as uf

        warnings.simplefilter("ignore", DeprecationWarning)
        data = known_bytes(300_000)
        path = pathlib.Path("data")
        path.write_bytes(data.tobytes())
        closed = [uf.map(path) for _ in range(8)]
        for region in closed:
            region.close()
        process = os.fork()
        if process == 0:
            own = [uf.map(path, delivery=delivery) for delivery in ("thread", "signal") for _ in range(4)]
            closed.clear()
            gc.collect()
            for region in own:
                assert (region.numpy() == data).all()
                region.evict()
                region.populate()
                check_endings(region)
            own.append(uf.map(path))
            assert (own[-1].numpy() == data).all()
            sys.exit(0)
        assert os.waitpid(process, 0)[1] == 0

    assert child(code, cwd=tmp_path).check().stderr == ""


def test_a_grandchild_that_touches_its_grandparents_region_dies_with_one_line(child):
    """Tombstones are inherited, also through a child that has an engine of its own."""

    def code():
        import ctypes
        import os
        import signal
        import warnings

        from support.lazy import killed_by, known_bytes

        import userfault as uf

        warnings.simplefilter("ignore", DeprecationWarning)
        data = known_bytes(1 << 20)
        region = uf.map(uf.Bytes(data.tobytes()))
        for has_engine in (False, True):
            child = os.fork()
            if child == 0:
                own = uf.map(uf.Bytes(data.tobytes())) if has_engine else None
                assert own is None or own.numpy()[1] == data[1]
                grandchild = os.fork()
                if grandchild == 0:
                    ctypes.string_at(region.address, 1)
                    os._exit(9)
                _, status = os.waitpid(grandchild, 0)
                assert killed_by(status) == signal.SIGSEGV, status
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        assert (region.numpy() == data).all()

    lines = child(code, timeout=30).check().stderr.splitlines()
    assert len(lines) == 2, lines
    assert all("belongs to its parent" in line for line in lines)


def test_segmentation_faults_elsewhere_in_a_forked_child_are_not_ours(child):
    """A null pointer ends the child by SIGSEGV without a word of ours; faulthandler enabled before still reports it."""

    def code():
        import ctypes
        import os
        import signal
        import sys
        import warnings

        from support.lazy import killed_by

        import userfault as uf

        warnings.simplefilter("ignore", DeprecationWarning)
        region = uf.map(b"lazy" * 10_000)
        assert memoryview(region)[0] == ord("l")
        process = os.fork()
        if process == 0:
            ctypes.string_at(8, 1)
            os._exit(9)
        _, status = os.waitpid(process, 0)
        assert killed_by(status) == signal.SIGSEGV, status
        sys.exit(0)

    assert child(code).check().stderr == ""
    told = child(code, faulthandler=True).check().stderr
    assert "Segmentation fault" in told
    assert "userfault:" not in told


def test_fork_while_another_thread_opens_the_first_region_leaves_a_child_that_can(child):
    """No lock of the library is taken for good in the child, whatever another thread was doing."""

    def code():
        import os
        import signal
        import threading
        import time

        import userfault as uf

        for trial in range(60):
            middle = os.fork()
            if middle == 0:
                threading.Thread(target=lambda: uf.map(b"x" * 4096), daemon=True).start()
                time.sleep(trial * 30e-6)
                last = os.fork()
                if last == 0:
                    signal.signal(signal.SIGALRM, signal.SIG_DFL)
                    signal.alarm(5)
                    os._exit(0 if uf.map(b"y" * 4096).read(0, 1) == b"y" else 9)
                os._exit(os.waitstatus_to_exitcode(os.waitpid(last, 0)[1]) & 0xFF)
            status = os.waitstatus_to_exitcode(os.waitpid(middle, 0)[1])
            assert status == 0, (trial, status)

    child(code).check()


def test_fork_while_another_thread_closes_leaves_a_region_that_answers(child):
    """repr, methods and the end of a parent's region wait for no lock in the child."""

    def code():
        import os
        import signal
        import threading
        import time

        import userfault as uf

        region = uf.map(uf.testing.Chaos(uf.Zero(1 << 19), delay="10s"), unit="64KiB")
        region.prefetch()
        time.sleep(0.2)
        closer = threading.Thread(target=region.close)
        closer.start()
        time.sleep(0.2)
        pid = os.fork()
        if pid == 0:
            signal.alarm(15)
            assert "foreign" in repr(region) or "closed" in repr(region)  # closed where the fork came late
            region.close()
            del region
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        closer.join()

    child(code, timeout=40).check()


#: A sandbox: unshare(2) is EPERM, so that engine threads have the application's descriptor table.
NO_UNSHARE = """
import ctypes, platform, struct
number = {"x86_64": 272, "aarch64": 97}[platform.machine()]
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
table = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rules), ctypes.addressof(table)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, header) == 0
assert libc.unshare(0x400) == -1
"""


@pytest.mark.parametrize("sandbox", ["", NO_UNSHARE], ids=["free", "sandbox"])
def test_forked_child_keeps_no_userfaultfd_of_the_library(child, sandbox):
    """Of regions and of flagged memory; where unshare is forbidden those of the fault threads are in its table too."""
    child(
        sandbox
        + """
import os, userfault as uf
from userfault import mman
def ours():
    links = [(number, os.path.realpath(f"/proc/self/fd/{number}")) for number in os.listdir("/proc/self/fd")]
    return [number for number, link in links if "userfaultfd" in link]
regions = [uf.map(os.urandom(1 << 20), delivery=how) for how in ("thread", "signal") * 2]
assert all(region.numpy()[77] >= 0 for region in regions)
memory = mman.anonymous(4096)
mman.madvise(memory, mman.MADV_USERFAULT)
it = mman.userfaultfd(user_mode_only=True)
assert ours()
process = os.fork()
if process == 0:
    os._exit(len(ours()))
_, status = os.waitpid(process, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
data = os.urandom(1 << 20)
assert bytes(uf.map(data)) == data, "the parent goes on"
os._exit(0)
""",
        timeout=30,
    ).check()
