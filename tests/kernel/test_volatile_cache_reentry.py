"""A cache used by what runs in the middle of its own methods: finalizers, signal handlers, keys."""

from __future__ import annotations

import pytest
from support.volatile import run as run_volatile

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(90)]


def run(child, code):
    """Run in a child that must say nothing."""
    run_volatile(child, "import gc, random, signal\n" + code)


def test_finalizers_may_use_the_cache(child):
    """Wherever a garbage collection runs them."""
    run(
        child,
        """
cache = uf.VolatileCache(maxsize=10)

@uf.volatile_cache
def tile(number):
    return bytes([number]) * 5000

class Node:
    def __init__(self, number):
        self.number, self.me = number, self

    def __del__(self):
        assert cache.get(self.number % 7) in (None, b"y" * 100)
        cache["of a finalizer"] = bytes([self.number])
        assert tile(self.number) == bytes([self.number]) * 5000

until, number = time.monotonic() + 4, 0
while time.monotonic() < until:
    gc.set_threshold(random.randrange(1, 40))
    number = (number + 1) % 50
    Node(number)
    cache[number % 7] = b"y" * 100
    with cache.borrow(1):
        assert tile(number) == bytes([number]) * 5000
gc.collect()
assert cache.get("of a finalizer") is not None
assert len(cache) <= 10
""",
    )


def test_signal_handlers_may_use_the_cache(child):
    """And what they store is there when the interrupted method is over."""
    run(
        child,
        """
cache = uf.VolatileCache()
handled, found = 0, 0

def handle(*_):
    global handled, found
    handled += 1
    found += cache.get("a") is not None
    cache["b"] = handled.to_bytes(4, "little")
    list(cache), repr(cache), "a" in cache
    signal.setitimer(signal.ITIMER_REAL, 0.001)

signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.001)
until = time.monotonic() + 3
while time.monotonic() < until or handled < 20:
    cache["a"] = b"x" * 4096
    assert cache.get("a") == b"x" * 4096
signal.setitimer(signal.ITIMER_REAL, 0)
assert int.from_bytes(cache["b"], "little") == handled
assert found > 0
""",
    )


def test_interrupts_leave_the_cache_usable(child):
    """An exception of a handler after any call: no lock stays taken."""
    run(
        child,
        """
from support.interrupts import interrupted
cache = uf.VolatileCache()
other_turns, is_over = 0, False

def use():
    global other_turns
    while not is_over:
        cache["c"] = b"c"
        assert cache.get("c") == b"c"
        other_turns += 1

def use_a():
    cache["a"] = b"x" * 100
    assert cache.get("a") == b"x" * 100

thread = threading.Thread(target=use)
thread.start()
assert interrupted(use_a, 4) > 100
is_over = True
thread.join(20)
assert not thread.is_alive()
assert other_turns > 100, other_turns
cache["a"] = b"end"
assert cache.get("a") == b"end"
""",
    )


def test_keys_may_use_the_cache(child):
    """Nothing is found in the middle of a method; what is stored and deleted is so after it."""
    run(
        child,
        """
cache = uf.VolatileCache()
said = []

class Key:
    def __init__(self, number):
        self.number = number

    def __hash__(self):
        return 1

    def __eq__(self, other):
        said.append(cache.get("x"))
        with cache.borrow("x") as view:
            said.append(view)
        value = np.arange(3)
        cache["array"] = value
        value[:] = 0
        del cache["y"]
        raised(KeyError, lambda: cache.__delitem__("nothing"))
        assert "x" in cache and cache.statistics().entries == len(cache)
        return self.number == other.number

cache["x"], cache["y"] = b"x", b"y"
cache[Key(1)] = b"one"
assert cache.get(Key(2)) is None
assert set(said) == {None}
assert "y" not in cache and cache.get("x") == b"x"
assert (cache["array"] == np.arange(3)).all()
cache["y"] = b"y"
said.clear()
assert cache.get(Key(1)) == b"one" and said

class Closing(Key):
    __hash__ = Key.__hash__

    def __eq__(self, other):
        cache.close()
        return True

raised(uf.RegionClosedError, lambda: (cache.get(Closing(1)), cache.get("x")))
assert "closed" in repr(cache)
""",
    )


def test_what_is_stored_in_between_is_stored_in_order(child):
    """The last one counts, however many there are."""
    run(
        child,
        """
cache = uf.VolatileCache()

class Key:
    def __hash__(self):
        return 1

    def __eq__(self, other):
        if wanted:
            for number in range(wanted.pop()):
                cache["a"] = str(number).encode()
                cache[number] = b"1"
            del cache["b"]
        return False

wanted = []
cache[Key()] = b"key"
cache["b"] = b"b"
wanted.append(2000)
assert cache.get(Key()) is None
assert cache["a"] == b"1999" and len(cache) == 2002 and "b" not in cache
""",
    )


def test_two_caches_do_not_wait_for_each_other(child):
    """Each in the middle of a method, where a finalizer uses the other."""
    run(
        child,
        """
caches = [uf.VolatileCache(), uf.VolatileCache()]

class Key:
    def __init__(self, other):
        self.other = other

    def __hash__(self):
        return 1

    def __eq__(self, other):
        time.sleep(0.05)
        self.other.get("x")
        self.other["y"] = b"y"
        return False

for cache, other in zip(caches, caches[::-1]):
    cache[Key(other)] = b"key"
threads = [threading.Thread(target=cache.get, args=(Key(other),), daemon=True) for cache, other in zip(caches, caches[::-1])]
[thread.start() for thread in threads]
[thread.join(20) for thread in threads]
assert not any(thread.is_alive() for thread in threads)
assert [cache["y"] for cache in caches] == [b"y", b"y"]
""",
    )


def test_interrupts_leave_no_value_pinned(child):
    """Whoever read it is counted out, and closing again gives the memory back that an interrupted close() kept."""
    run(
        child,
        """
from support.interrupts import interrupted
cache = uf.VolatileCache()
for number in range(20):
    cache[number] = bytes([number]) * 5000

def borrow():
    with cache.borrow(random.randrange(20)):
        pass

for use in (lambda: cache.get(random.randrange(20)), borrow):
    assert interrupted(use, 2) > 100
    assert not any(entry.holders for entry in cache._entries.values())
slabs = list(cache._arena.slabs)
interrupted(cache.close, 0.5)
cache.close()
assert not cache._arena.slabs
""",
    )


def test_a_view_that_dies_in_a_forked_child_waits_for_nobody(child):
    """Another thread may have had the lock at the fork."""
    run(
        child,
        """
cache = uf.VolatileCache()
cache["array"], cache["w"] = np.arange(1000), b"w" * 4096
is_over = False

def use():
    while not is_over:
        cache.get("w")

thread = threading.Thread(target=use)
thread.start()
for _ in range(50):
    with cache.borrow("array") as array:
        pass
    pid = os.fork()
    if pid == 0:
        del array
        os._exit(0)
    end = time.monotonic() + 10
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        assert time.monotonic() < end or os.kill(pid, 9)
        time.sleep(0.001)
is_over = True
thread.join()
""",
    )


def test_an_interrupt_makes_no_value_zeros(child):
    """The loss is told once, and the exception comes right after that: then the value is gone, as the loss says."""
    run(
        child,
        """
from support.interrupts import interrupted
cache = uf.VolatileCache()
wrong = []

def use():
    cache["a"] = b"\\x07" * 65536
    for slab in cache._arena.slabs:
        purge(slab.buffer)
    for _ in range(2):
        found = cache.get("a")
        if found is not None and set(found) != {7}:
            wrong.append(set(found))

assert interrupted(use, 4) > 100
assert wrong == []
""",
    )


def test_keys_are_listed_beside_other_threads(child):
    """Keys with a hash of their own, of which a dictionary may change while it is listed."""
    run(
        child,
        """
class Key:
    def __init__(self, number):
        self.number = number

    def __hash__(self):
        return hash(self.number)

    def __eq__(self, other):
        return self.number == other.number

cache = uf.VolatileCache()
until = time.monotonic() + 2

def change():
    number = 0
    while time.monotonic() < until:
        number += 1
        cache[Key(number % 50)] = b"x"
        if number % 7 == 0:
            cache.clear()

def list_them():
    while time.monotonic() < until:
        assert len(list(cache)) <= 50

in_threads(change, list_them)
""",
    )


def test_values_that_cannot_be_let_go_keep_nobody(child):
    """All memory is locked after they were stored: they can be read as before, and stay."""
    run(
        child,
        """
cache = uf.VolatileCache()
for key in "abc":
    cache[key] = key.encode() * 100
other = uf.VolatileCache()
assert libc.mlockall(1) == 0, "RLIMIT_MEMLOCK"
for key in "abcabc":
    assert cache.get(key) == key.encode() * 100
with cache.borrow("a") as view:
    cache["a"] = b"" if view is None else b""
assert other.get("nothing") is None
cache.close()
""",
    )
