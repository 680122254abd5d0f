"""Who may touch lazy memory, and how: system calls, other processes, ordinary users, and where it is refused."""

from __future__ import annotations

import pytest
from support.regions import run_quietly as run

pytestmark = pytest.mark.kernel


def test_shared_region_is_a_file_that_others_may_map(child):
    """shared=True: pages are filled into a memory file by CONTINUE; another mapping of it sees them."""
    run(
        child,
        """
import mmap
with uf.map(path, shared=True, on_error="abort", unit="4KiB", mode="c") as region:
    array = region.numpy()
    assert array[:5000].tobytes() == data[:5000]
    other = mmap.mmap(region.fileno(), 0)
    assert other[:5000] == data[:5000]
    other[40960:45056] = b"w" * 4096
    assert array[40960:45056].tobytes() == b"w" * 4096, "what another mapping wrote is mapped, not overwritten"
    while region.statistics().in_flight:
        time.sleep(0.001)  # the toucher goes on before its fault is counted
    assert region.statistics().continued_bytes >= 4096
    array[3] = 77
    assert other[3] == 77
    assert array.tobytes()[4:40960] == data[4:40960]
    del array
with uf.map(path) as region:
    try:
        region.fileno(); print("a file")
    except uf.OptionError:
        pass
""",
    )


@pytest.mark.parametrize("delivery", ["thread", "signal"])
def test_pages_that_left_a_shared_region_but_not_its_file_come_back(child, delivery):
    """Unmapped as the kernel does it when memory is short: the next touch maps them again, with what was written."""
    run(
        child,
        f"""
import mmap
from support.lazy import check_endings, libc
with uf.map(path, shared=True, on_error="abort", unit="64KiB", mode="c", delivery={delivery!r}) as region:
    mapped = -(-len(data) // mmap.PAGESIZE) * mmap.PAGESIZE
    region.populate()
    array = region.numpy()
    array[5] = 77
    libc.madvise(region.address, mapped, mmap.MADV_DONTNEED)
    assert array[5] == 77 and array[6:].tobytes() == data[6:]
    before = check_endings(region).continued_bytes
    libc.madvise(region.address, mapped, mmap.MADV_DONTNEED)
    region.populate()
    assert region.statistics().continued_bytes - before == mapped, "populate maps them too"
    del array
""",
    )


def test_system_calls_on_absent_pages_just_work_with_thread_delivery(child):
    """readinto, write, sendfile-like calls and hashing see the bytes, wherever the kernel reads or writes them."""
    run(
        child,
        """
import hashlib, io, socket, zlib
region = uf.map(path, unit="4KiB", mode="c")
if region.kernel_faults:
    r, w = os.pipe()
    assert os.write(w, memoryview(region)[:10000]) == 10000 and os.read(r, 10000) == data[:10000]
    out = os.path.join(folder, "out")
    with open(out, "wb") as file:
        assert os.write(file.fileno(), memoryview(region)[20000:]) == len(data) - 20000
    assert open(out, "rb").read() == data[20000:]
    a, b = socket.socketpair()
    a.sendall(memoryview(region)[:4096]); assert b.recv(4096) == data[:4096]
    with open(path, "rb", buffering=0) as file:
        fresh = uf.map(uf.Zero(65536), mode="c")
        assert file.readinto(fresh) == 65536 and bytes(fresh) == data[:65536]
assert hashlib.sha256(region).digest() == hashlib.sha256(data).digest()
assert zlib.crc32(region) == zlib.crc32(data)
assert io.BytesIO(region).read() == data
""",
    )


def test_system_calls_with_signal_delivery_get_efault_until_populated(child):
    """Signal delivery serves CPU accesses only; repr says so, and populate() is the way."""
    run(
        child,
        """
region = uf.map(path, unit="4KiB", delivery="signal")
assert not region.kernel_faults and "EFAULT" in repr(region)
r, w = os.pipe()
try:
    os.write(w, memoryview(region)[:100]); print("written")
except OSError as error:
    assert error.errno == 14
region.populate(slice(0, 100))
assert os.write(w, memoryview(region)[:100]) == 100
""",
    )


def test_torch_tensor_over_a_region_has_its_values(child):
    """torch.from_numpy sees lazy memory as memory, where torch is installed."""
    pytest.importorskip("torch", reason="torch is not installed")
    run(child, "import torch\nt = torch.from_numpy(uf.map(data, mode='c').numpy())\nassert int(t.sum()) == sum(data)\n")


def test_region_as_nobody_works_but_for_system_calls(as_nobody):
    """With the default sysctl an ordinary user's system calls on absent pages get EFAULT; everything else works."""
    result = as_nobody(
        """
import os, userfault as uf
data = os.urandom(100_000)
for delivery in ("thread", "signal"):
    region = uf.map(data, delivery=delivery, unit="4KiB")
    r, w = os.pipe()
    view = memoryview(region)
    if not region.kernel_faults:
        assert "EFAULT" in repr(region)
        try:
            os.write(w, view[:10]); print("written")
        except OSError as error:
            assert error.errno == 14
    assert region.read(5000, 100) == data[5000:5100]
    region.populate(slice(0, 10))
    assert os.write(w, view[:10]) == 10
    assert bytes(region) == data
    region.evict()
    assert region.numpy().tobytes() == data
    from userfault.testing import Chaos
    bad = uf.map(Chaos(uf.Bytes(data), fail=[range(10)]), delivery=delivery, unit="4KiB").numpy()
    try:
        int(bad[0]); print("silent")
    except uf.PageError:
        pass
"""
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


#: Refuses userfaultfd as a container's filter does: a seccomp program that answers EPERM to syscall 323, and no device.
REFUSE = """
import ctypes, struct
def refuse():
    libc = ctypes.CDLL(None, use_errno=True)
    number = {"x86_64": 323, "aarch64": 282}[__import__("platform").machine()]
    openat = {"x86_64": 257, "aarch64": 56}[__import__("platform").machine()]
    code = b"".join(struct.pack("HBBI", *line) for line in (
        (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)))
    buffer = ctypes.create_string_buffer(code)
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, program) == 0, ctypes.get_errno()
refuse()
"""


def test_map_where_userfaultfd_is_refused_says_what_to_do(as_nobody):
    """PermissionError with doctor's command; fallback="eager" loads everything and says so in repr."""
    result = as_nobody(
        REFUSE
        + """
import os, pickle, userfault as uf
data = os.urandom(300_000)
try:
    uf.map(data); print("mapped")
except PermissionError as error:
    assert isinstance(error, uf.RefusedError)
    assert "userfault doctor" in str(error), error
region = uf.map(data, fallback="eager", mode="c")
assert "eager" in repr(region) and region.kernel_faults
assert bytes(region) == data and region.read(5, 10) == data[5:15]
region.prefetch(); region.populate(); region.evict(); region.statistics()
array = region.numpy(); array[0] = 1; assert region.read(0, 1) == b"\\1"
del array
assert bytes(pickle.loads(pickle.dumps(region))) == data
region.close()
"""
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_load_of_npy_files_gives_what_numpy_gives(child):
    """dtype, order and shape come from the header of any version, for .npy and .npy.zst; pickled objects are never loaded."""
    run(
        child,
        """
import warnings
from userfault.image import pack
arrays = [np.arange(100_000, dtype="f8").reshape(100, 1000), np.asfortranarray(rng.standard_normal((37, 41))), np.array(5.0),
          np.zeros((0, 3), "i4"), rng.integers(0, 9, (3, 4, 5)).astype(">i2"), np.zeros(9, [("a", "i4"), ("b", "f8", 3)]),
          np.ones(9, [("größe", "i4"), ("名前\\\\\\'", "f8", 3), ("🙂", [("é", "u1")])])]
for array in arrays:
    npy, packed = os.path.join(folder, "a.npy"), os.path.join(folder, "a.npy.zst")
    with warnings.catch_warnings(action="ignore"):  # NumPy warns of names that need version 3.0
        np.save(npy, array)
    pack(npy, packed)
    for file in (npy, packed):
        lazy = uf.load(file, unit="4KiB")
        assert lazy.dtype == array.dtype and lazy.shape == array.shape and lazy.flags.f_contiguous == array.flags.f_contiguous
        assert np.array_equal(lazy, array)
    os.remove(packed)
np.save(npy, np.array([object()]), allow_pickle=True)
for file, word in ((npy, "pickle"), (path, "not a .npy")):
    try:
        uf.load(file); print("loaded", file)
    except uf.OptionError as error:
        assert word in str(error), error
with open(npy, "wb") as file:
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10 ** 6,)})
try:
    uf.load(npy); print("loaded a stump")
except uf.OptionError as error:
    assert "promises" in str(error)
""",
    )


def test_shared_write_survives_the_filling_of_its_neighbours(child):
    """A unit that was filled in part is completed around what was written meanwhile."""
    run(
        child,
        """
from userfault.testing import Chaos
bad = Chaos(uf.Bytes(b"1" * 65536), fail=[range(8192, 12288)], failures=1)
region = uf.map(bad, shared=True, on_error="abort", mode="c", unit="64KiB")
a = region.numpy()
assert a[0] == 49
a[0] = 99
assert a[5000] == 49 and a[9000] == 49
assert a[0] == 99
""",
    )


def test_bytes_that_were_there_are_not_counted_as_copied(child):
    """Of a shared region whose file has pages already: each byte is copied or continued, and none is both."""
    child(
        """
import os, time, userfault as uf
data = os.urandom(1 << 20)
with uf.map(data, shared=True, on_error="abort", unit="64KiB", mode="c") as region:
    os.pwrite(region.fileno(), b"w" * 65536, 32768)
    region.populate()
    found = region.statistics()
    assert region.read(0, 1 << 20) == data[:32768] + b"w" * 65536 + data[98304:]
    assert (found.copied_bytes, found.continued_bytes) == ((1 << 20) - 65536, 65536), found
with uf.map(data, unit="64KiB") as region:
    region.numpy()[5]
    region.populate()
    while region.statistics().in_flight:
        time.sleep(0.001)
    assert region.statistics().copied_bytes == 1 << 20, region.statistics()
""",
        timeout=20,
    ).check()


@pytest.mark.parametrize("delivery", ["thread", "signal"])
def test_unit_of_one_page_that_came_with_the_second_read_is_present(child, delivery):
    """Its first read failed and the page alone was read: that is all of the unit."""
    child(
        f"""
import os, time, userfault as uf
data = os.urandom(8 * 4096)
with uf.map(uf.testing.Chaos(uf.Bytes(data), fail=[range(4096, 8192)], failures=1), delivery={delivery!r}, unit="4KiB") as region:
    view = region.numpy()
    for page in range(3):
        assert view[page * 4096] == data[page * 4096]
    while region.statistics().in_flight:
        time.sleep(0.001)
    assert region.statistics().present_units == 3, region.statistics()
    del view
""",
        timeout=20,
    ).check()
