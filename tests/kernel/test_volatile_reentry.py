"""Volatile memory used by what runs in the middle of its own methods: finalizers, signal handlers, keys, a refill."""

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
cache = uf.VolatileCache()
interrupts, other_turns, is_over = 0, 0, False

class Interrupted(Exception):
    pass

def handle(*_):
    raise Interrupted

def use():
    global other_turns
    while not is_over:
        cache["c"] = b"c"
        assert cache.get("c") == b"c"
        other_turns += 1

def use_and_be_interrupted():
    global interrupts
    while time.monotonic() < until:
        try:
            signal.setitimer(signal.ITIMER_REAL, random.random() * 0.0002 + 1e-5)
            cache["a"] = b"x" * 100
            assert cache.get("a") == b"x" * 100
        except Interrupted:
            interrupts += 1

sys.unraisablehook = lambda _: None
thread = threading.Thread(target=use)
signal.signal(signal.SIGALRM, handle)
thread.start()
until = time.monotonic() + 4
while not is_over:
    try:
        use_and_be_interrupted()
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        is_over = True
    except Interrupted:
        interrupts += 1
thread.join(20)
assert not thread.is_alive()
assert interrupts > 100 and other_turns > 100, (interrupts, other_turns)
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
