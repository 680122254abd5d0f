"""Region, map() and load(): what a user of them counts on."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel

BASE = """
import os, pickle, sys, tempfile, time
import numpy as np
import userfault as uf
rng = np.random.default_rng(7)
data = rng.integers(0, 256, 3 * 65536 + 123, dtype="u1").tobytes()
folder = tempfile.mkdtemp()
path = os.path.join(folder, "data.bin")
with open(path, "wb") as file:
    file.write(data)
"""


def run(child, code, **options):
    result = child(BASE + code, **options)
    assert (result.returncode, result.stdout) == (0, ""), f"{result.stdout}\n{result.stderr}"


def test_map_of_every_kind_of_source_equals_its_bytes(child):
    """Paths, buffers, arrays and Source objects all become the same memory."""
    run(
        child,
        """
array = np.frombuffer(data[:4096], "f4")
cases = [(data, data), (bytearray(data), data), (memoryview(data)[5:-5], data[5:-5]), (path, data), (array, array.tobytes()),
         (uf.File(path, 10, 100), data[10:110]), (uf.File(path, offset=65536), data[65536:]), (uf.Zero("64KiB"), bytes(65536)),
         (uf.Retry(uf.File(path)), data), (uf.Deadline(uf.File(path), "5s"), data), (b"", b""), (uf.Zero(0), b"")]
for source, expected in cases:
    with uf.map(source) as region:
        assert len(region) == len(expected)
        assert bytes(region) == expected, source
        assert region.read() == expected
        assert region.numpy().tobytes() == expected
""",
    )


@pytest.mark.parametrize("unit", ["4KiB", "16KiB", "256KiB", "2MiB"])
@pytest.mark.parametrize("delivery", ["thread", "signal"])
def test_units_of_any_size_give_the_same_bytes(child, unit, delivery):
    """The unit changes the cost and nothing else; a last unit that the source does not fill ends where it ends."""
    run(
        child,
        f"""
for source in (data, path):
    with uf.map(source, unit={unit!r}, delivery={delivery!r}) as region:
        assert bytes(memoryview(region)[-5:]) == data[-5:]
        assert bytes(region) == data
        assert region.evict() >= 1
        assert bytes(region) == data
""",
    )


@pytest.mark.parametrize("delivery", ["thread", "signal"])
def test_huge_units_arrive_as_huge_pages(child, delivery):
    """huge=True fills 2 MiB at a time by MOVE, in whole huge pages where the machine has them."""
    run(
        child,
        f"""
big = os.path.join(folder, "big")
with open(big, "wb") as file:
    file.write(data * 40)
expected = data * 40
with uf.map(big, huge=True, delivery={delivery!r}) as region:
    assert bytes(region) == expected
    for _ in range(3):
        assert region.evict() == 4
        assert bytes(region) == expected
    s = region.statistics()
    assert s.units == 4 and s.moved_bytes >= 3 * 2 << 20, s
    if "[never]" not in open("/sys/kernel/mm/transparent_hugepage/enabled").read():
        smaps = open("/proc/self/smaps").read()
        block = smaps[smaps.index(f"{{region.address:x}}-"):]
        assert int(block.split("AnonHugePages:")[1].split()[0]) >= 2048
""",
    )


def test_numpy_operations_equal_those_on_eager_data(child):
    """An array over lazy memory is an array: reductions, fancy indexing, sorting, products, copies."""
    run(
        child,
        """
eager = rng.standard_normal((512, 300))
file = os.path.join(folder, "m.bin"); eager.tofile(file)
for delivery in ("thread", "signal"):
    fresh = lambda: uf.map(file, unit="4KiB", delivery=delivery).numpy("f8", (512, 300))
    pick = rng.integers(0, 512, 50)
    for operation in (np.sum, np.mean, np.sort, np.unique, np.transpose, lambda x: x @ x.T, lambda x: x[pick], lambda x: x[:, ::7] + 1,
                      lambda x: np.linalg.norm(x, axis=1), lambda x: x[x > 1], np.cumsum, lambda x: np.concatenate([x, x])):
        assert np.array_equal(operation(fresh()), operation(eager))
""",
    )


def test_views_when_alive_keep_the_region_open(child):
    """close() with a view is BufferError; leaving `with` is not, and the region closes when the last view dies."""
    run(
        child,
        """
region = uf.map(data)
array = region.numpy()
try:
    region.close(); print("closed under a view")
except BufferError as error:
    assert "1 view" in str(error)
part = array[5:10]
del array
assert region.views == 1
del part
region.close(); region.close()
assert region.state == "closed" and "closed" in repr(region)
for call in (region.populate, region.prefetch, region.read, region.statistics, region.evict):
    try:
        call(); print("worked on a closed region", call)
    except uf.RegionClosedError:
        pass
try:
    memoryview(region); print("view of a closed region")
except BufferError:
    pass
with uf.map(data) as region:
    array = region.numpy()
assert region.state == "closing" and "closing" in repr(region)
assert array.tobytes() == data
del array
assert region.state == "closed"
orphan = uf.map(data).numpy("u1", offset=100)
assert orphan.tobytes() == data[100:]
""",
    )


def test_mode_r_is_read_only_and_mode_c_keeps_changes_to_itself(child):
    """Views of "r" cannot be written; "c" keeps what was written, never drops it, and the file does not change."""
    run(
        child,
        """
with uf.map(path) as region:
    array = region.numpy()
    assert not array.flags.writeable and memoryview(region).readonly
    try:
        array[0] = 1; print("written")
    except ValueError:
        pass
    del array
with uf.map(path, mode="c", unit="4KiB") as region:
    array = region.numpy()
    array[::4096] = 200
    try:
        region.evict(); print("dropped")
    except uf.OptionError as error:
        assert "never dropped" in str(error)
    region.populate()
    expected = np.frombuffer(data, "u1").copy(); expected[::4096] = 200
    assert np.array_equal(array, expected)
    del array
assert open(path, "rb").read() == data
""",
    )


def test_prefetch_populate_and_evict_take_views_slices_and_nothing(child):
    """`where` is a view into the region, a slice of bytes, or everything; a foreign view is refused."""
    run(
        child,
        """
with uf.map(path, unit="4KiB") as region:
    array = region.numpy()
    region.populate(array[5000:9000])
    assert region.statistics().present_units == 2
    region.populate(slice(0, 1))
    assert region.statistics().present_units == 3
    region.prefetch(memoryview(region)[40960:40961])
    while region.statistics().present_units < 4:
        time.sleep(0.01)
    region.populate()
    assert region.statistics().present_units == region.statistics().units
    assert region.evict(slice(4095, 3 * 4096 + 5)) == 2, "whole units inside only"
    assert region.statistics().faults == 0, "nothing of this was a fault"
    for bad in (np.zeros(5), slice(0, 10, 2)):
        try:
            region.populate(bad); print("accepted", bad)
        except uf.OptionError:
            pass
    assert array.tobytes() == data
    del array
""",
    )


def test_pickling_reopens_the_source_with_its_options(child):
    """A Region travels as its source and options; bytes travel with it."""
    run(
        child,
        """
region = uf.map(path, unit="4KiB", delivery="signal", timeout="5s")
again = pickle.loads(pickle.dumps(region))
assert again.options == region.options and again.unit == 4096 and bytes(again) == data
assert bytes(pickle.loads(pickle.dumps(uf.map(data)))) == data
""",
    )


def test_options_that_make_no_sense_are_refused_with_a_reason(child):
    """Bad input is a ValueError that says what and what to do."""
    run(
        child,
        """
from userfault.testing import Chaos
cases = [
    (dict(unit=5000), "power of two"), (dict(unit="1KiB"), "one page"), (dict(unit="1GiB"), "64 MiB"), (dict(delivery="carrier pigeon"), "delivery"),
    (dict(mode="r+"), "mode"), (dict(huge=True, unit="4KiB"), "2 MiB"), (dict(shared=True), "on_error"), (dict(timeout=0), "timeout"),
    (dict(fork="follow"), "fork"), (dict(fallback="lazy"), "fallback"), (dict(unit="banana"), "banana"),
]
for options, word in cases:
    try:
        uf.map(data, **options); print("accepted", options)
    except ValueError as error:
        assert word in str(error), (options, error)
for source, word in ((Chaos(uf.File(path), delay="1ms"), "signal handler"), (uf.Retry(uf.File(path)), "signal handler")):
    try:
        uf.map(source, delivery="signal"); print("accepted", source)
    except uf.OptionError as error:
        assert word in str(error), error
for source in (uf.File(path, offset=len(data) + 1), uf.File(path, 0, len(data) + 1), uf.Checksum(uf.File(path), 4096, [1])):
    try:
        uf.map(source); print("accepted", source)
    except uf.OptionError:
        pass
region = uf.map(data)
for source in (region, memoryview(region)[10:], region.numpy()):
    try:
        uf.map(source); print("fills from itself")
    except uf.OptionError as error:
        assert "itself" in str(error)
try:
    uf.map(folder + "/absent"); print("found")
except FileNotFoundError as error:
    assert "absent" in str(error)
try:
    uf.map(5); print("an int")
except TypeError:
    pass
for call in (lambda: region.read(0, 10 ** 9), lambda: region.read(-1, 1), lambda: region.numpy("O"), lambda: region.numpy("f8", (10 ** 9,)),
             lambda: region.numpy("u1", offset=-1)):
    try:
        call(); print("accepted")
    except uf.OptionError:
        pass
""",
    )


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
    array[3] = 77
    assert other[3] == 77
    assert array.tobytes()[4:] == data[4:]
    assert region.statistics().continued_bytes > 0
    del array
with uf.map(path) as region:
    try:
        region.fileno(); print("a file")
    except uf.OptionError:
        pass
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
    """dtype, order and shape come from the header, for .npy and .npy.zst; pickled objects are never loaded."""
    run(
        child,
        """
from userfault.image import pack
arrays = [np.arange(100_000, dtype="f8").reshape(100, 1000), np.asfortranarray(rng.standard_normal((37, 41))), np.array(5.0),
          np.zeros((0, 3), "i4"), rng.integers(0, 9, (3, 4, 5)).astype(">i2"), np.zeros(9, [("a", "i4"), ("b", "f8", 3)])]
for array in arrays:
    npy, packed = os.path.join(folder, "a.npy"), os.path.join(folder, "a.npy.zst")
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


def test_image_mapped_costs_what_is_touched(child):
    """Mapping an image and touching x bytes of it takes about x plus bounded staging, never the image's size."""
    run(
        child,
        """
import resource
from userfault.image import pack
raw, image = os.path.join(folder, "raw"), os.path.join(folder, "img")
with open(raw, "wb") as file:
    for _ in range(64):
        file.write(rng.integers(0, 64, 1 << 20, dtype="u1").tobytes())
    file.truncate(4 << 30)
pack(raw, image)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
region = uf.map(image)
assert len(region) == 4 << 30
before = resident()
view = memoryview(region)
for at in range(0, 64 << 20, 4 << 20):
    view[at]
assert resident() - before < 24 << 20, resident() - before
assert view[(4 << 30) - 1] == 0 and region.statistics().zero_bytes > 0
with open(raw, "rb") as file:
    file.seek(20 << 20)
    assert region.read(20 << 20, 100_000) == file.read(100_000)
""",
        timeout=60,
    )


def test_idle_region_burns_no_cpu(child):
    """Open regions, a second of nothing: no CPU time."""
    run(
        child,
        """
regions = [uf.map(data, delivery=d) for d in ("thread", "signal") for _ in range(50)]
for region in regions:
    memoryview(region)[0]
time.sleep(1.2)
before = time.process_time()
time.sleep(1.5)
assert time.process_time() - before < 0.02, time.process_time() - before
""",
    )


def test_sequential_access_is_read_ahead_and_random_access_is_not(child):
    """A scan of an image is noticed; random touches ask for nothing."""
    run(
        child,
        """
from userfault.image import pack
raw, image = os.path.join(folder, "raw"), os.path.join(folder, "img")
with open(raw, "wb") as file:
    file.write(rng.integers(0, 64, 8 << 20, dtype="u1").tobytes())
pack(raw, image)
region = uf.map(image)
view = memoryview(region)
for at in range(0, 8 << 20, 4096):
    view[at]
s = region.statistics()
assert s.readaheads > 0 and s.prefetched_units > 0, s
assert bytes(view) == open(raw, "rb").read()
other = uf.map(image)
view = memoryview(other)
for unit in rng.permutation(128)[:40]:
    view[int(unit) * 65536]
assert other.statistics().readaheads <= 1, other.statistics()
""",
    )
