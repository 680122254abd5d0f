"""Descriptors closed behind the library's back: right bytes or a line that says why, never zeros."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

CLOSERS = {
    "closerange": "os.closerange(3, 65536)",
    "one by one": "[close(number) for number in range(3, 300)]",
    "close_range": "libc.syscall(436, 3, 2**32 - 1, 0)",
}

BEGIN = """
import os, pathlib, tempfile
import numpy
from support.lazy import check_endings, known_bytes, libc
import userfault as uf
from userfault import image

def close(number):
    try:
        os.close(number)
    except OSError:
        pass

data = known_bytes(3 << 20)
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "plain").write_bytes(data.tobytes())
image.pack(data.tobytes(), folder / "packed.zst", frame="64KiB")
sources = [uf.Bytes(data.tobytes()), uf.File(folder / "plain"), uf.Image(folder / "packed.zst")]
"""


@pytest.mark.parametrize("closer", CLOSERS.values(), ids=CLOSERS)
def test_thread_delivery_works_after_all_descriptors_were_closed(child, closer):
    """Touch, system calls, populate, prefetch, evict, close and new regions: the engine has descriptors of its own."""
    code = f"""{BEGIN}
regions = [uf.map(source, unit=unit) for source in sources for unit in ("4KiB", "64KiB", "256KiB")]
views = [region.numpy() for region in regions]
assert all(view[9] == data[9] for view in views)
{closer}
decoys = [os.open(folder / "decoy", os.O_RDWR | os.O_CREAT) for _ in range(40)]  # the numbers mean other files now
[os.write(decoy, bytes(3 << 20)) for decoy in decoys[:1]]
for region, view in zip(regions, views):
    assert view[1 << 20] == data[1 << 20]
    region.prefetch(slice(0, 1 << 20))
    region.populate(slice(1 << 20, 2 << 20))
    assert (view == data).all()
    region.evict()
    assert region.read(70_000, 5000) == data[70_000:75_000].tobytes()
    assert (view == data).all()
    check_endings(region)
for source in sources:
    with uf.map(source) as region:
        assert (region.numpy() == data).all()
views.clear()
del view, region
for one in regions:
    one.close()
"""
    result = child(code, timeout=40).check()
    assert result.stderr == ""


@pytest.mark.parametrize("kind", range(3), ids=["bytes", "file", "image"])
@pytest.mark.parametrize("decoy", [False, True], ids=["unused", "reused"])
@pytest.mark.parametrize("closer", CLOSERS.values(), ids=CLOSERS)
def test_signal_delivery_after_all_descriptors_were_closed_works_or_says_why(child, closer, decoy, kind):
    """The touching thread's descriptors are gone: right bytes, an exception, or an end with a line; never other bytes."""
    code = f"""{BEGIN}
region = uf.map(sources[{kind}], delivery="signal", unit="64KiB")
view = region.numpy()
assert view[9] == data[9]
wrong = numpy.flatnonzero(data[70_000:] != 0)
{closer}
if {decoy}:
    [os.write(os.open(folder / f"decoy{{n}}", os.O_RDWR | os.O_CREAT), b"\\1" * (3 << 20)) for n in range(40)]
for at in range(0, len(data), 5000):
    try:
        right = view[at] == data[at]
        for _ in range(3):
            pass
    except uf.PageError as error:
        print("raised", error)
        break
    if not right:
        print("WRONG", at, view[at], flush=True)
        os._exit(50)
else:
    print("right")
"""
    result = child(code, timeout=20)
    assert "WRONG" not in result.stdout, result
    if result.returncode != 0:
        assert result.signal is not None, result
        lines = result.stderr.splitlines()
        assert lines, result
        assert lines[0].startswith("userfault: "), result
        assert "descriptor" in lines[0], result
    else:
        assert "right" in result.stdout or "raised" in result.stdout, result


def test_a_failing_page_after_all_descriptors_were_closed_never_reads_as_zeros(child):
    """Thread delivery needs the application's descriptor to show an error: without it, the process says so and ends."""
    code = f"""{BEGIN}
region = uf.map(uf.testing.Chaos(sources[0], fail=[range(1 << 20, 2 << 20)]))
view = region.numpy()
assert view[9] == data[9]
os.closerange(3, 65536)
try:
    value = view[1 << 20]
    for _ in range(100):
        pass
except uf.PageError:
    print("raised")
else:
    print("value", value)
"""
    result = child(code, timeout=20)
    if result.returncode == 0:
        assert result.stdout == "raised\n", result
    else:
        assert result.signal is not None, result
        assert "descriptor" in result.stderr, result


def test_the_engine_keeps_no_pipe_of_the_application_open(child):
    """A reader of our pipe sees its end when we close it: engine threads hold no copy of what was inherited."""

    def code():
        import os
        import subprocess
        import sys

        program = "import os, userfault as uf; region = uf.map(b'lazy'); os.close(1); os.close(0); input = os.read(3, 1)"
        gate, open_gate = os.pipe()
        os.set_inheritable(gate, True)
        process = subprocess.Popen(
            [sys.executable, "-c", program.replace("os.read(3", f"os.read({gate}")], stdout=subprocess.PIPE, pass_fds=[gate]
        )
        assert process.stdout.read() == b""  # returns only when nobody holds the writing end
        os.write(open_gate, b"x")
        assert process.wait(10) == 0
        process.stdout.close()

    child(code).check()


def test_new_descriptors_are_closed_on_exec(child):
    """A subprocess inherits none of ours, with close_fds=False too."""

    def code():
        import subprocess
        import sys

        import userfault as uf

        regions = [uf.map(b"lazy", **options) for options in ({}, {"delivery": "signal"}, {"shared": True, "on_error": "abort"})]
        look = "import os; print(sorted(os.listdir('/proc/self/fd')))"
        told = subprocess.run([sys.executable, "-c", look], close_fds=False, capture_output=True, text=True, check=True)
        assert told.stdout.strip() == "['0', '1', '2', '3']", told
        assert len(regions) == 3

    child(code).check()


def test_regions_that_go_late_or_are_shared_close_only_their_own_descriptors(child, tmp_path):
    """A file or memory file is closed in the application's table, whichever thread ends its region; readers stay."""

    def code():
        import pathlib
        import time

        from support.lazy import check_endings, known_bytes, open_descriptors

        import userfault as uf

        data = known_bytes(300_000)
        path = pathlib.Path("data")
        path.write_bytes(data.tobytes())
        lasting = [uf.map(path, delivery=delivery) for delivery in ("thread", "signal", "thread", "signal")]
        before = open_descriptors()
        for _ in range(2):
            for delivery in ("thread", "signal"):
                shared = uf.map(path, shared=True, on_error="abort", delivery=delivery)
                assert (shared.numpy() == data).all()
                shared.close()
                del shared
            slow = uf.map(uf.testing.Chaos(uf.File(path), delay=3), unit="1MiB")
            slow.prefetch()
            late = uf.map(uf.Deadline(uf.testing.Chaos(uf.File(path), delay=3), "50ms"), unit="1MiB")
            late.prefetch()
            time.sleep(0.02)
            del slow, late  # their reads go on
        time.sleep(1.5)
        for _ in range(20):
            with uf.map(path) as region:
                assert (region.numpy() == data).all()
            for region in lasting:
                region.evict()
                assert (region.numpy() == data).all()
                check_endings(region)
        limit = time.monotonic() + 8
        while open_descriptors() > before and time.monotonic() < limit:
            time.sleep(0.1)
            uf.map(b"x").close()
        assert open_descriptors() == before

    child(code, timeout=50, cwd=tmp_path).check()
