"""VolatileBuffer: what is kept, what may be taken, and who is told."""

from __future__ import annotations

import pytest
from support.volatile import DELIVERIES, run

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(90)]


@DELIVERIES
def test_fresh_buffer_is_zeros_and_ordinary_memory(child, delivery):
    """Nothing is lost that was never unpinned, and system calls work on all of it."""
    run(
        child,
        """
buffer = uf.VolatileBuffer(10 * PAGE + 5, delivery=sys.argv[1])
assert len(buffer) == 10 * PAGE + 5 and not buffer.numpy().any()
assert buffer.state() == buffer.state().__class__(untouched=10 * PAGE + 5)
with open("/dev/urandom", "rb") as file:
    file.readinto(memoryview(buffer)[PAGE : 3 * PAGE])
kept = bytes(buffer)
purge(buffer)
assert bytes(buffer) == kept and buffer.pin() == []
assert buffer.state().pinned == 2 * PAGE
assert buffer.statistics().faults == 0
""",
        args=[delivery],
    )


@DELIVERIES
def test_purged_page_raises_at_the_touch_and_others_do_not(child, delivery):
    """PagePurged, with the offset, each time until it is pinned; the written page beside it keeps its bytes."""
    run(
        child,
        """
buffer, array, data = filled(20, delivery=sys.argv[1])
buffer.unpin()
assert (array == data).all()  # reading an unpinned page that is there changes nothing
array[5 * PAGE] = data[5 * PAGE] = 1
purge(buffer)
assert (array[5 * PAGE : 6 * PAGE] == data[5 * PAGE : 6 * PAGE]).all()
for _ in range(3):
    def touch():
        with uf.checked(buffer):
            array[7 * PAGE + 9]
    error = raised(uf.PagePurged, touch)
    assert isinstance(error, uf.PageError) and error.offset == 7 * PAGE and "took" in str(error.cause), error
error = raised(uf.PagePurged, lambda: buffer.read(8 * PAGE, 10))
assert buffer.read(5 * PAGE, PAGE) == data[5 * PAGE : 6 * PAGE].tobytes()
raised(uf.PagePurged, buffer.populate)
assert lost_pages(buffer.pin()) == [page for page in range(20) if page != 5]
assert buffer.pin() == []  # told once
data[: 5 * PAGE] = data[6 * PAGE :] = 0
assert (array == data).all()
check_endings(buffer)
""",
        args=[delivery],
    )


@DELIVERIES
def test_pages_that_showed_the_pattern_count_as_lost(child, delivery):
    """Exposed by one touch or by many latched ones, re-armed or not: every one of them is lost, and fresh after the pin."""
    run(
        child,
        """
for pause in (0, 0.03):
    buffer, array, data = filled(400, delivery=sys.argv[1])
    buffer.unpin()
    purge(buffer)
    def touch_all():
        with uf.checked(buffer):
            array[::PAGE].sum()
    raised(uf.PagePurged, touch_all)
    try:
        array.sum()  # many pages by one latched thread; what it sees is thrown away
    except uf.PagePurged:
        pass
    time.sleep(pause)
    assert lost_pages(buffer.pin()) == list(range(400))
    assert not array.any()
    array[:] = data  # nothing that was still to be done about the pattern may undo this
    time.sleep(0.05)
    assert (array == data).all() and buffer.pin() == []
    assert buffer.state().pinned == 400 * PAGE
    check_endings(buffer)
""",
        args=[delivery],
    )


def test_unpin_rounds_inwards_and_pin_outwards(child):
    """A page of which a part only was unpinned stays; a page of which a part is pinned is pinned."""
    run(
        child,
        """
buffer, array, data = filled(8)
buffer.unpin(1, 3 * PAGE - 1)
assert buffer.page_states() == bytes([1, 2, 1, 1, 1, 1, 1, 1])
buffer.unpin(PAGE + 1, 2 * PAGE + 1)
buffer.unpin(4 * PAGE, 4 * PAGE)
assert buffer.page_states() == bytes([1, 2, 1, 1, 1, 1, 1, 1])
purge(buffer)
assert (array[:PAGE] == data[:PAGE]).all() and (array[2 * PAGE :] == data[2 * PAGE :]).all()
assert buffer.pin(0, PAGE) == [] and buffer.pin(2 * PAGE) == [] and buffer.pin(5, 5) == []
assert buffer.pin(2 * PAGE - 1, 2 * PAGE) == [slice(PAGE, 2 * PAGE)]
odd = uf.VolatileBuffer(2 * PAGE + 100)
odd.numpy()[:] = 1
odd.unpin()  # the last page is nobody else's
purge(odd)
assert odd.state() == odd.state().__class__(purged=2 * PAGE + 100)
assert odd.pin(2 * PAGE + 99) == [slice(2 * PAGE, 2 * PAGE + 100)]
assert odd.pin() == [slice(0, 2 * PAGE)]
""",
    )


def test_states_add_up_and_are_told(child):
    """Untouched, pinned, volatile, purged, refilled: exact counts, shown by repr too."""
    run(
        child,
        """
buffer = uf.VolatileBuffer(10 * PAGE, refill=bytes(10 * PAGE))
array = buffer.numpy()
array[: 6 * PAGE] = 1
buffer.unpin(0, 4 * PAGE)
purge(buffer)
array[0]
array[4 * PAGE : 5 * PAGE] = 2
buffer.unpin(4 * PAGE, 5 * PAGE)
buffer.unpin(9 * PAGE)  # never written: nothing to take
assert buffer.page_states() == bytes([4, 3, 3, 3, 2, 1, 0, 0, 0, 0])
state = buffer.state()
assert (state.untouched, state.pinned, state.volatile) == (4 * PAGE, PAGE, PAGE)
assert (state.purged, state.refilled) == (3 * PAGE, PAGE)
for part in ("40KiB", "12KiB purged", "4KiB volatile", "4KiB refilled", "16KiB untouched", "signal", "open"):
    assert part in repr(buffer), buffer
""",
    )


def test_pinned_blocks_restore_what_was_and_may_overlap(child):
    """Pages that were not volatile before stay pinned after; the last block that needs a page unpins it."""
    run(
        child,
        """
buffer, array, data = filled(8)
buffer.unpin(0, 4 * PAGE)
volatile = bytes([2, 2, 2, 2, 1, 1, 1, 1])
with buffer.pinned() as lost:
    assert lost == [] and buffer.page_states() == bytes([1] * 8)
    with buffer.pinned(PAGE, 2 * PAGE):
        pass
    assert buffer.page_states() == bytes([1] * 8)
    purge(buffer)
assert buffer.page_states() == volatile and (array == data).all()
first, second, third = buffer.pinned(0, 3 * PAGE), buffer.pinned(PAGE, 2 * PAGE), buffer.pinned(2 * PAGE, 6 * PAGE)
for block in (first, second, third):
    block.__enter__()
first.__exit__(None, None, None)
assert buffer.page_states() == bytes([2, 1, 1, 1, 1, 1, 1, 1])
second.__exit__(None, None, None)
assert buffer.page_states() == bytes([2, 2, 1, 1, 1, 1, 1, 1])
third.__exit__(None, None, None)
assert buffer.page_states() == volatile
purge(buffer)
def fail():
    with buffer.pinned(0, 2 * PAGE) as lost:
        assert lost == [slice(0, 2 * PAGE)]
        raise LookupError
raised(LookupError, fail)
with buffer.pinned() as lost:
    assert lost == [slice(2 * PAGE, 4 * PAGE)]
    with buffer:
        pass
    assert "closing" in repr(buffer)
""",
    )


def test_wrong_use_is_a_clear_error(child):
    """Sizes, ranges, refills, closed and foreign buffers, pickles, locked memory."""
    run(
        child,
        """
import copy
for size in (0, "0KiB", -1, "-5", "many", 1 << 60):
    raised((ValueError, OSError), lambda size=size: uf.VolatileBuffer(size))
raised(uf.OptionError, lambda: uf.VolatileBuffer(10, timeout=0))
raised(uf.OptionError, lambda: uf.VolatileBuffer(10, delivery="smoke"))
raised(uf.OptionError, lambda: uf.VolatileBuffer(PAGE, refill=b"short"))
raised(TypeError, lambda: uf.VolatileBuffer(PAGE, refill=5))
buffer = uf.VolatileBuffer(3 * PAGE)
for start, stop in ((-1, 5), (5, 4), (0, 3 * PAGE + 1), (3 * PAGE + 1, None)):
    for call in (buffer.pin, buffer.unpin, lambda a, b: buffer.pinned(a, b).__enter__()):
        raised(uf.OptionError, lambda call=call, start=start, stop=stop: call(start, stop))
raised(TypeError, lambda: buffer.pin(1.5))
raised(TypeError, lambda: pickle.dumps(buffer))
raised(TypeError, lambda: copy.copy(buffer))
raised(uf.OptionError, buffer.evict)
raised(uf.OptionError, lambda: uf.Bytes(buffer).open())
libc.mlock.argtypes = libc.munlock.argtypes = [__import__("ctypes").c_void_p, __import__("ctypes").c_size_t]
buffer.numpy()[:] = 3
assert libc.mlock(buffer.address, 3 * PAGE) == 0
error = raised(OSError, buffer.unpin)
assert error.errno == errno.EINVAL and "locked" in str(error), error
assert buffer.state().pinned == 3 * PAGE and buffer.pin() == []
assert libc.munlock(buffer.address, 3 * PAGE) == 0
buffer.unpin()
child = os.fork()
if child == 0:
    try:
        raised(uf.RegionClosedError, buffer.pin)
        raised(uf.RegionClosedError, buffer.unpin)
        raised(uf.RegionClosedError, buffer.state)
        assert "foreign" in repr(buffer)
        os._exit(0)
    except BaseException:
        os._exit(1)
assert os.waitpid(child, 0)[1] == 0
view = memoryview(buffer)
raised(BufferError, buffer.close)
view.release()
buffer.close()
buffer.close()
for call in (buffer.pin, buffer.unpin, buffer.state, buffer.page_states):
    raised(uf.RegionClosedError, call)
assert "closed" in repr(buffer)
""",
    )


@DELIVERIES
def test_pin_is_right_while_pages_are_taken_and_touched(child, delivery):
    """Threads take, touch and read pages at all times; what pin calls intact is intact, what it calls lost is zeros."""
    run(
        child,
        """
pages, rounds = 64, 0
buffer, array, data = filled(pages, delivery=sys.argv[1])
expected = data.copy()
stop = threading.Event()

def take():
    while not stop.is_set():
        libc.madvise(buffer.address, pages * PAGE, 21)

def touch():
    rng = np.random.default_rng(threading.get_ident())
    while not stop.is_set():
        try:
            with uf.checked():
                for page in rng.integers(0, pages, 5):
                    array[page * PAGE]
        except uf.PageError:  # of another thread, maybe
            pass

def pin_and_look():
    global rounds
    limit = time.monotonic() + 4
    losses = 0
    while time.monotonic() < limit or ((losses <= 20 or rounds <= 50) and time.monotonic() < limit + 20):
        first, last = sorted(int(one) for one in np.random.default_rng(rounds).integers(0, pages + 1, 2))
        buffer.unpin(first * PAGE, last * PAGE)
        lost = lost_pages(buffer.pin(first * PAGE, last * PAGE))
        losses += len(lost)
        assert all(first <= page < last for page in lost), (first, last, lost)
        for page in lost:
            expected[page * PAGE : (page + 1) * PAGE] = 0
        assert (array == expected).all(), rounds
        for page in lost:
            array[page * PAGE : (page + 1) * PAGE] = expected[page * PAGE : (page + 1) * PAGE] = page % 255 + 1
        rounds += 1
    stop.set()
    assert losses > 20 and rounds > 50, (losses, rounds)

libc.madvise.argtypes = [__import__("ctypes").c_void_p, __import__("ctypes").c_size_t, __import__("ctypes").c_int]
in_threads(take, touch, touch, pin_and_look, seconds=45)
check_endings(buffer)
""",
        args=[delivery],
        timeout=60,
    )


@pytest.mark.root
def test_under_memory_pressure_volatile_pages_go_and_others_stay(child, memory_limit):
    """In a memory cgroup: the filler fits because volatile pages give way; nothing else changes, and nobody is killed."""
    run(
        child,
        """
from pathlib import Path
from userfault.testing import MemoryGroup
group = MemoryGroup(Path(sys.argv[1]), int(sys.argv[2]))
with open(group.path / "cgroup.procs", "w") as file:
    file.write("0")
pages = (20 << 20) // PAGE
buffer, array, data = filled(2 * pages)
normal = known_bytes(4 << 20, seed=2)
kept = normal.copy()
buffer.unpin(0, pages * PAGE)
group.limit(group.used() + (4 << 20))
filler = [np.full(1 << 20, 1, np.uint8) for _ in range(16)]
group.limit("1GiB")  # what follows takes memory, too, and pinned pages no longer give way to it
lost = lost_pages(buffer.pin())
assert 2000 < len(lost) <= pages and max(lost) < pages, len(lost)
assert (kept == normal).all()
for page in lost:
    data[page * PAGE : (page + 1) * PAGE] = 0
assert (array == data).all()
""",
        args=[str(memory_limit.path), str(memory_limit.version)],
        timeout=60,
    )
    assert memory_limit.kills() == 0


@DELIVERIES
def test_an_ordinary_user_has_the_same(as_nobody, delivery):
    """No privilege is needed, although faults of system calls are not served then."""
    run(
        as_nobody,
        """
for refill in (None, bytes([5]) * (40 * PAGE)):
    buffer, array, data = filled(40, delivery=sys.argv[1], refill=refill)
    buffer.unpin()
    purge(buffer)
    def touch():
        with uf.checked():
            return int(array[3 * PAGE])
    if refill:
        assert touch() == 5
    else:
        raised(uf.PagePurged, touch)
    assert lost_pages(buffer.pin()) == list(range(40))
    assert (array == (5 if refill else 0)).all()
    check_endings(buffer)
cache = uf.VolatileCache()
cache["a"] = data
assert (cache.get("a") == data).all()
""",
        args=[delivery],
        cwd="/tmp",
    )
