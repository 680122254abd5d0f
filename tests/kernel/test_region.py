"""Region, map() and load(): what a user of them counts on."""

from __future__ import annotations

import pytest
from support.regions import run_quietly as run

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]


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
from support.lazy import check_endings
big = os.path.join(folder, "big")
with open(big, "wb") as file:
    file.write(data * 40)
expected = data * 40
with uf.map(big, huge=True, delivery={delivery!r}) as region:
    assert bytes(region) == expected
    for _ in range(3):
        check_endings(region)  # the toucher goes on before its fault is over, and a unit that has one stays
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
    for operation in (np.sum, np.mean, np.sort, np.unique, np.transpose, lambda x: x @ x.T, lambda x: x[pick],
                      lambda x: x[:, ::7] + 1,
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
    (dict(unit=5000), "power of two"), (dict(unit="1KiB"), "one page"), (dict(unit="1GiB"), "64 MiB"),
    (dict(delivery="carrier pigeon"), "delivery"), (dict(mode="r+"), "mode"), (dict(huge=True, unit="4KiB"), "2 MiB"),
    (dict(shared=True), "on_error"), (dict(timeout=0), "timeout"), (dict(fork="follow"), "fork"),
    (dict(fallback="lazy"), "fallback"), (dict(unit="banana"), "banana"),
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
for call in (lambda: region.read(0, 10 ** 9), lambda: region.read(-1, 1), lambda: region.numpy("O"),
             lambda: region.numpy("f8", (10 ** 9,)), lambda: region.numpy("u1", offset=-1)):
    try:
        call(); print("accepted")
    except uf.OptionError:
        pass
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
assert view[(4 << 30) - 1] == 0
while region.statistics().in_flight:
    time.sleep(0.001)  # the toucher goes on before its fault is counted
assert region.statistics().zero_bytes > 0
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
used = []
for _ in range(5):  # a busy machine takes longer until all is quiet; who polls is never quiet
    before = time.process_time()
    time.sleep(1.5)
    used.append(time.process_time() - before)
    if used[-1] < 0.02:
        break
assert used[-1] < 0.02, used
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
def scan():
    region = uf.map(image)
    view = memoryview(region)
    for at in range(0, 8 << 20, 4096):
        view[at]
    s = region.statistics()
    assert bytes(view) == open(raw, "rb").read()
    return s
s, until = scan(), time.monotonic() + 10
if len(os.sched_getaffinity(0)) > 1:
    while not s.prefetched_units and time.monotonic() < until:
        s = scan()  # whoever reads ahead had no CPU in time
    assert s.readaheads > 0 and s.prefetched_units > 0, s
else:
    assert s.readaheads == 0, s  # nobody would gain by it
other = uf.map(image)
view = memoryview(other)
for unit in rng.permutation(128)[:40]:
    view[int(unit) * 65536]
assert other.statistics().readaheads <= 1, other.statistics()
""",
    )


@pytest.mark.parametrize("delivery", ["thread", "signal"])
def test_scans_side_by_side_are_read_ahead_while_units_leave_and_regions_close(child, delivery):
    """More scans of one region than are told apart, some left in the middle, beside evictions and a budget: every byte right."""
    run(
        child,
        f"""
from userfault.image import pack
from support.lazy import check_endings, in_threads
raw, image = os.path.join(folder, "raw"), os.path.join(folder, "img")
want = rng.integers(1, 64, 4 << 20, dtype="u1")
with open(raw, "wb") as file:
    file.write(want.tobytes())
pack(raw, image, frame="16KiB")
def scan(region, seed):
    dice, array = np.random.default_rng(seed), region.numpy("u1")
    for _ in range(6):
        at = int(dice.integers(0, 200)) << 14
        end = min(at + int(dice.integers(1, 128) << 14), len(want))
        for place in range(at, end, 16384):
            assert (array[place : place + 16384] == want[place : place + 16384]).all(), place
def rounds():
    readaheads = prefetched = 0
    for number in range(4):
        region = uf.map(image, delivery="{delivery}", **([{{}}, {{"resident": "512KiB"}}][number % 2]))
        done = []
        def leave():
            while not done:
                region.evict()
                time.sleep(0.003)
        def scans():
            try:
                in_threads(*(lambda seed=seed: scan(region, 10 * number + seed) for seed in range(6)), seconds=40)
            finally:
                done.append(1)
        in_threads(leave, scans, seconds=45)
        s = region.statistics()
        assert s.poisoned == 0, s
        readaheads, prefetched = readaheads + s.readaheads, prefetched + s.prefetched_units
        check_endings(region)
        region.close()  # somebody may be reading ahead
    assert readaheads > 0 and prefetched > 0, (readaheads, prefetched)  # in one round perhaps none had a CPU in time
rounds()
""",
        timeout=60,
    )


@pytest.mark.parametrize("delivery", ["thread", "signal"])
def test_records_in_random_order_pay_little_for_reading_ahead(child, delivery):
    """Runs of a few units look like the beginning of a scan: what is read for nothing is bounded, and single units never are."""
    run(
        child,
        f"""
from userfault.image import pack
raw, image = os.path.join(folder, "raw"), os.path.join(folder, "img")
with open(raw, "wb") as file:
    file.write(rng.integers(0, 64, 32 << 20, dtype="u1").tobytes())
pack(raw, image, frame="16KiB")
for length in (1, 2, 4, 7, 8, 12, 20):
    region = uf.map(image, delivery="{delivery}")
    view, places = memoryview(region), rng.permutation(2048 // length)[: 1200 // length]
    for place in places.tolist():
        for unit in range(place * length, (place + 1) * length):
            view[unit << 14]
    s = region.statistics()
    touched, filled = len(places) * length, s.demand_units + s.prefetched_units + s.helped_units
    assert filled <= touched * (1.03 if length < 3 else 1.2), (length, touched, s)
""",
    )
