"""VolatileCache: what comes back, what may be missing, and who keeps what pinned."""

from __future__ import annotations

import pytest
from support.volatile import run as run_volatile

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(90)]

BASE = """
import array, contextlib, gc
from userfault.volatile import turns

def purge_all(cache):
    for slab in list(cache._arena.slabs):
        with contextlib.suppress(OSError, ValueError):  # another thread has given the slab back
            purge(slab.buffer)
"""


def run(child, code, **options):
    """Run in a child that must say nothing."""
    run_volatile(child, BASE + code, **options)


def test_values_come_back_as_they_went_in(child):
    """Bytes-likes as bytes, arrays with dtype, shape and order; a copy each time."""
    run(
        child,
        """
cache = uf.VolatileCache()
record = np.zeros(3, [("a", "i4"), ("b", "f8", 2)])
record["b"] = 2.5
values = [b"", b"x", bytes(PAGE), known_bytes(3 * PAGE + 1).tobytes(), np.arange(10000.0).reshape(100, 100),
          np.asfortranarray(np.arange(12).reshape(3, 4)), np.arange(20)[::3], np.array(5), np.zeros((0, 3)), record,
          np.array(["2020-01-01"], "M8[D]"), np.array([True, False]), np.arange(3, dtype=">i2"), np.array(["a", "bc"])]
for key, value in enumerate(values):
    cache[key] = value
for key, value in enumerate(values):
    back = cache.get(key)
    assert type(back) is type(value)
    if isinstance(value, np.ndarray):
        assert back.dtype == value.dtype and back.shape == value.shape and (back == value).all()
        assert back.flags.f_contiguous == value.flags.f_contiguous or not value.flags.contiguous
        assert back.flags.writeable and back.flags.owndata
    else:
        assert back == value
cache["other"] = bytearray(b"changed later")
cache["ints"] = array.array("i", [1, 2])
cache["view"] = memoryview(b"abcdef")[::2]
assert (cache["other"], cache["view"]) == (b"changed later", b"ace")
assert cache["ints"] == array.array("i", [1, 2]).tobytes()
back = cache[4]
back[:] = 0
assert (cache[4] == values[4]).all()
assert len(cache) == len(values) + 3 and 4 in cache and "nothing" not in cache
assert list(cache)[-4:] == ["other", "view", "ints", 4], list(cache)  # those used last come last
""",
    )


def test_wrong_values_and_keys_are_type_errors(child):
    """Nothing is kept of them, and nothing leaks."""
    run(
        child,
        """
cache = uf.VolatileCache()
cache["kept"] = b"kept"
used = cache._arena.slabs[0].extents
def keep(key, value):
    cache[key] = value
for key, value in [([], b"x"), ("k", "text"), ("k", 5), ("k", None), ("k", np.array([object()])), ("k", np.float64(1)),
                   ("k", np.ma.masked_array([1, 2], [0, 1])), ("k", np.zeros(2, [("o", "O")]))]:
    raised(TypeError, lambda key=key, value=value: keep(key, value))
assert cache._arena.slabs[0].extents == used and list(cache) == ["kept"]
raised(KeyError, lambda: cache["missing"])
raised(KeyError, lambda: cache.__delitem__("missing"))
assert cache.get("missing") is None and cache.get("missing", 7) == 7
for size in (0, -1):
    raised(uf.OptionError, lambda size=size: uf.VolatileCache(size))
raised(TypeError, lambda: pickle.dumps(cache))
""",
    )


def test_purged_values_are_misses_and_are_counted_exactly(child):
    """Each value that lost a page is missed as a whole and counted once, found by a look or by the statistics."""
    run(
        child,
        """
cache = uf.VolatileCache()
for key in range(50):
    cache[key] = known_bytes(key * 1000 + 1, seed=key)
assert cache.statistics().purges == 0
found = cache.statistics()
assert found.stored_bytes == sum(key * 1000 + 1 for key in range(50))
assert found.resident_bytes == sum(-(-(key * 1000 + 1) // PAGE) * PAGE for key in range(50))
with cache.borrow(40) as kept:
    purge_all(cache)
    assert cache.get(10) is None and 10 not in cache
    assert (cache.get(40) == known_bytes(40001, seed=40)).all()
    found = cache.statistics()
    assert (found.purges, found.entries, found.misses, found.hits) == (49, 1, 1, 2), found
    assert (kept == known_bytes(40001, seed=40)).all()
cache[10] = b"again"
assert cache.get(10) == b"again"
found = cache.statistics()
assert (found.purges, found.entries) == (49, 2) and "49 taken" in repr(cache), cache
del kept
big = known_bytes(3 << 20)
cache["big"] = big
extent = cache._entries["big"].extent
with extent.slab.buffer.pinned(0, extent.start + PAGE):
    pass
extent.slab.buffer.pin(extent.start, extent.stop - PAGE)  # all but one page
purge_all(cache)
assert cache.get("big") is None and cache.statistics().purges == 52
""",
    )


def test_borrowed_views_keep_their_entry_until_released(child):
    """Inside of the block, and after it as long as anything of the view lives: unpinned then, at once."""
    run(
        child,
        """
cache = uf.VolatileCache()
data = known_bytes(5 * PAGE)
cache["array"], cache["bytes"], cache["empty"] = data, data.tobytes(), b""
with cache.borrow("array") as view:
    assert view.dtype == np.uint8 and not view.flags.writeable
    part = view[7:].reshape(-1)[::2]
    purge_all(cache)
    assert (view == data).all()
del view
purge_all(cache)
assert (part == data[7::2]).all()
assert cache.statistics().purges == 1  # the other
del part
purge_all(cache)
assert cache.get("array") is None

cache["bytes"] = data.tobytes()
with cache.borrow("bytes") as view:
    assert view.readonly and view == data.tobytes()
raised(ValueError, lambda: view[0])  # released by the block
with cache.borrow("bytes") as view, cache.borrow("bytes") as other:
    wrapped = np.frombuffer(view, np.uint8)
assert cache._entries["bytes"].holders == 1
purge_all(cache)
assert (wrapped == data).all()
del wrapped, view
assert cache._entries["bytes"].holders == 0
with cache.borrow("missing") as view:
    assert view is None
with cache.borrow("empty") as view:
    assert view == b""
for value in (np.zeros((0, 2)), b""):
    cache["empty"] = value
    with cache.borrow("empty") as view:
        assert len(view) == 0

def fail():
    with cache.borrow("bytes"):
        raise LookupError
raised(LookupError, fail)
assert cache._entries["bytes"].holders == 0
""",
    )


def test_replaced_and_deleted_values_live_on_for_those_who_look(child):
    """Their memory is given back when the last view goes; cycles that the collector finds do so too."""
    run(
        child,
        """
cache = uf.VolatileCache()
data = known_bytes(5 * PAGE)
cache["a"] = data
used = lambda: sum(slab.extents for slab in cache._arena.slabs)
with cache.borrow("a") as view:
    cache["a"] = np.zeros(5 * PAGE, np.uint8)
    del cache["a"]
    purge_all(cache)
    assert (view == data).all() and used() == 1
    cycle = [view]
    cycle.append(cycle)
del view, cycle
gc.collect()
assert used() == 0
slab = cache._arena.slabs[0]
assert slab.buffer.state().untouched == len(slab.buffer)
for _ in range(3000):  # memory is used again
    cache["a"] = data
assert len(cache._arena.slabs) == 1 and slab.used <= 4 * 5 * PAGE
with cache.borrow("a") as view:
    cache.close()
    assert (view == data).all()
raised(uf.RegionClosedError, lambda: cache.get("a"))
raised(uf.RegionClosedError, lambda: cache.__setitem__("a", b"x"))
assert "closed" in repr(cache)
cache.close()
assert (view == data).all()
del view
with uf.VolatileCache() as cache:
    cache["a"] = b"a"
raised(uf.RegionClosedError, cache.statistics)
""",
    )


def test_maxsize_pushes_out_what_was_not_used_for_longest(child):
    """As lru_cache does; looking and writing count as use."""
    run(
        child,
        """
cache = uf.VolatileCache(maxsize=3)
for key in "abc":
    cache[key] = key.encode() * 100
assert cache.get("a")
cache["d"] = b"d"
assert list(cache) == ["c", "a", "d"]
cache["c"] = b"new"
cache["e"] = b"e"
assert list(cache) == ["d", "c", "e"]
found = cache.statistics()
assert (found.evictions, found.purges, found.entries) == (2, 0, 3)
cache.clear()
assert len(cache) == 0 and cache.get("e") is None
""",
    )


def test_many_values_take_few_mappings_and_descriptors(child):
    """Twenty thousand values: address space is all they cost besides their pages."""
    run(
        child,
        """
from support.lazy import maps, open_descriptors
cache = uf.VolatileCache()
cache["first"] = b"1"
before = len(maps()), open_descriptors()
for key in range(20_000):
    cache[key] = b"%d" % key * 3
assert len(maps()) - before[0] < 20 and open_descriptors() <= before[1] + 1
assert all(cache.get(key) == b"%d" % key * 3 for key in range(0, 20_000, 7))
for size in (1, PAGE, PAGE + 1, 100_000, 5 << 20, 70 << 20):
    cache[size] = bytes([7]) * size
    assert cache.get(size) == bytes([7]) * size
for key in list(cache):
    del cache[key]
assert len(cache._arena.slabs) == 1
""",
    )


def test_threads_see_whole_values_or_none(child):
    """Writers, readers, borrowers, purges and deletes at once: every value found is one that was written, whole."""
    run(
        child,
        """
cache = uf.VolatileCache(maxsize=30)
stop = time.monotonic() + 4
found = [0, 0]

def going():
    now = time.monotonic()
    return now < stop or (min(found) <= 50 and now < stop + 20)

def value(key, seed):
    return np.full(key * 700 + 1, seed, np.uint8)

def write():
    rng = np.random.default_rng(threading.get_ident())
    while going():
        key = int(rng.integers(0, 40))
        cache[key] = value(key, int(rng.integers(1, 255)))

def read():
    rng = np.random.default_rng(threading.get_ident())
    while going():
        key = int(rng.integers(0, 40))
        got = cache.get(key)
        found[got is None] += 1
        if got is not None:
            assert got.shape == (key * 700 + 1,) and got[0] != 0 and (got == got[0]).all(), (key, got)

def borrow():
    rng = np.random.default_rng(threading.get_ident())
    kept = []
    while going():
        key = int(rng.integers(0, 40))
        with cache.borrow(key) as view:
            if view is not None:
                kept.append((view, view.copy()))
        if len(kept) > 10:
            old, copy = kept.pop(0)
            assert (old == copy).all() and copy[0] != 0

def drop():
    while going():
        purge_all(cache)
        cache.statistics()
        try:
            del cache[int(time.monotonic() * 1000) % 40]
        except KeyError:
            pass

in_threads(write, write, read, read, borrow, drop, seconds=45)
gc.collect()
assert found[0] > 50 and found[1] > 50, found
assert all(entry.holders == 0 for entry in cache._entries.values())
extents = [slab.extents for slab in cache._arena.slabs]
assert sum(extents) == len(cache), (extents, len(cache), turns.calls)
""",
        timeout=60,
    )


def test_forked_child_is_told_and_does_not_hang(child):
    """Also when another thread held the cache's lock at the fork."""
    run(
        child,
        """
cache = uf.VolatileCache()
cache["a"] = b"a"
view = cache.borrow("a").__enter__()
held, go_on = threading.Event(), threading.Event()
holder = threading.Thread(target=turns.turn, args=(lambda: held.set() or go_on.wait(),))
holder.start()
held.wait()
pid = os.fork()
if pid == 0:
    try:
        assert "closed" in repr(cache)
        for call in (lambda: cache.get("a"), lambda: cache.__setitem__("a", b"b"), cache.statistics, cache.clear):
            raised(uf.RegionClosedError, call)
        cache.close()
        os._exit(0)
    finally:
        os._exit(1)
go_on.set()
holder.join()
assert os.waitpid(pid, 0)[1] == 0
assert cache.get("a") == b"a"
""",
    )


def test_volatile_cache_remembers_results_until_they_are_taken(child):
    """As functools.lru_cache; each caller has a copy of its own."""
    run(
        child,
        """
calls = []
@uf.volatile_cache
def squares(count, *, start=0):
    "Docs."
    calls.append(count)
    return np.arange(start, count) ** 2

assert squares.__doc__ == "Docs." and squares.__name__ == "squares"
first = squares(10, start=2)
first[:] = 0
assert squares(10, start=2)[3] == 25 and squares(10, start=3)[0] == 9 and len(calls) == 2
purge_all(squares.cache)
assert squares(10, start=2)[3] == 25 and len(calls) == 3
info = squares.cache_info()
assert (info.hits, info.misses, info.purges) == (1, 3, 2), info
squares.cache_clear()
squares(10, start=2)
assert len(calls) == 4
raised(TypeError, lambda: squares([]))

@uf.volatile_cache(maxsize=1)
def text(number):
    calls.append(number)
    return bytearray(b"%d" % number)

assert [text(1), text(1), text(2), text(1)] == [b"1", b"1", b"2", b"1"] and type(text(1)) is bytes
assert calls[4:] == [1, 2, 1]

@uf.volatile_cache
def wrong():
    return "text"

raised(TypeError, wrong)
""",
    )
