"""A buffer used while it is pinned: by its refill, by signal handlers, by other threads."""

from __future__ import annotations

import pytest
from support.volatile import run as run_volatile

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(90)]


BASE = """
import _thread, signal

class Refill(uf.Source):
    "Calls `meanwhile(page)` before it fills a page with that number."
    length = 64 * PAGE

    def __init__(self, meanwhile):
        self.meanwhile = meanwhile

    def read_into(self, offset, buffer):
        self.meanwhile(offset // PAGE)
        buffer[:] = bytes([offset // PAGE]) * len(buffer)

def taken(meanwhile, **options):
    "A buffer of which the kernel has all pages but the last."
    buffer = uf.VolatileBuffer(64 * PAGE, refill=Refill(meanwhile), **options)
    buffer.numpy()[:] = 99
    buffer.unpin(0, 63 * PAGE)
    purge(buffer)
    return buffer
"""


def run(child, code, **options):
    """Run in a child that must say nothing."""
    run_volatile(child, BASE + code, **options)


def test_a_refill_may_pin_what_it_does_not_fill(child):
    """Pages that are there, others that are not, and unpin; not those of the pin that it is called by."""
    run(
        child,
        """
def use(page):
    if page == 10:
        assert buffer.pin(63 * PAGE) == []
        assert buffer.pin(20 * PAGE, 21 * PAGE) == [slice(20 * PAGE, 21 * PAGE)]
        buffer.unpin(63 * PAGE)
        with buffer.pinned(30 * PAGE, 31 * PAGE):
            assert buffer.numpy()[30 * PAGE] == 30
        for wrong in (10, 11):
            error = raised(OSError, lambda: buffer.pin(wrong * PAGE, 12 * PAGE))
            assert error.errno == errno.EDEADLK, error
        assert buffer.state().purged > 0

buffer = taken(use, timeout="20s")
start = time.monotonic()
assert buffer.pin(10 * PAGE, 12 * PAGE) == [slice(10 * PAGE, 12 * PAGE)]
assert time.monotonic() - start < 5
assert set(buffer.numpy()[10 * PAGE : 12 * PAGE]) == {10, 11}
states = buffer.page_states()
assert (states[10], states[11], states[20], states[30], states[63]) == (1, 1, 1, 2, 2), states
""",
    )


@pytest.mark.parametrize("delivery", ["signal", "thread"])
def test_a_refill_may_pin_in_the_middle_of_a_touch(child, delivery):
    """Other pages, whose refill is read there and then, in several threads at once; its own is refused, not waited for."""
    run(
        child,
        f"""
together = threading.Barrier(4)

def use(page):
    if page < 4:
        together.wait(20)  # all four are in the middle of their touches
        own = raised(uf.PageError, lambda: buffer.pin(page * PAGE, page * PAGE + 1))
        assert "fill itself" in str(own), own
        assert buffer.pin((40 + page) * PAGE, (41 + page) * PAGE) == [slice((40 + page) * PAGE, (41 + page) * PAGE)]
        buffer.unpin((50 + page) * PAGE, (51 + page) * PAGE)

buffer = taken(use, delivery="{delivery}", timeout="20s")
view = buffer.numpy()
start = time.monotonic()
seen = []
threads = [threading.Thread(target=lambda page=page: seen.append(int(view[page * PAGE]))) for page in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert sorted(seen) == [0, 1, 2, 3], seen
assert time.monotonic() - start < 5
assert list(view[40 * PAGE : 44 * PAGE : PAGE]) == [40, 41, 42, 43]
assert buffer.page_states()[40:44] == bytes([1] * 4) and buffer.page_states()[50:54] == bytes([3] * 4)
assert buffer.pin(0, 4 * PAGE) == [slice(0, 4 * PAGE)]
""",
    )


@pytest.mark.parametrize("fails", [False, True])
def test_a_touch_whose_refill_is_slow_keeps_nobody(child, fails):
    """Pins, of its own page too, unpins and looks go on; what is written to the page then stays, however the touch ends."""
    run(
        child,
        f"""
begun, go_on = threading.Event(), threading.Event()
reads = []

def wait(page):
    reads.append(page)
    if reads == [3]:
        begun.set()
        go_on.wait()
        if {fails}:
            raise OSError("far away")

buffer = taken(wait, delivery="signal", timeout="20s")
view = buffer.numpy()
seen = []
thread = threading.Thread(target=lambda: seen.append(int(view[3 * PAGE + 1])))
thread.start()
begun.wait()
start = time.monotonic()
assert buffer.pin(30 * PAGE, 31 * PAGE) == [slice(30 * PAGE, 31 * PAGE)]
assert buffer.pin(3 * PAGE, 4 * PAGE) == [slice(3 * PAGE, 4 * PAGE)] and view[3 * PAGE] == 3
buffer.unpin(3 * PAGE, 4 * PAGE)
view[3 * PAGE : 3 * PAGE + 2] = 77
assert buffer.state().volatile >= PAGE
assert time.monotonic() - start < 5
go_on.set()
thread.join()
assert seen == [77], seen
purge(buffer)
buffer.pin(3 * PAGE, 4 * PAGE)
assert view[3 * PAGE] == 77 and view[3 * PAGE + 2] == 3
""",
    )


def test_a_pin_is_waited_for_as_long_as_it_makes_progress(child):
    """Its refill of all pages takes longer than `timeout`, none of them does."""
    run(
        child,
        """
begun = threading.Event()

def slow(page):
    begun.set()
    time.sleep(0.7)

buffer = taken(slow, timeout="4s")
told = []
thread = threading.Thread(target=lambda: told.append(buffer.pin(0, 8 * PAGE)))
thread.start()
begun.wait()
assert buffer.pin(7 * PAGE, 8 * PAGE) == []
thread.join()
assert told == [[slice(0, 8 * PAGE)]]
""",
        timeout=40,
    )


def test_a_slow_refill_keeps_nobody(child):
    """Other pages are pinned and unpinned, and all looked at, while it is read; the same ones are waited for, and told once."""
    run(
        child,
        """
begun, go_on = threading.Event(), threading.Event()

def wait(page):
    if page < 6:
        begun.set()
        go_on.wait()

buffer = taken(wait)
told = []
threads = [threading.Thread(target=lambda: told.append(buffer.pin(0, 6 * PAGE))) for _ in range(2)]
threads[0].start()
begun.wait()
start = time.monotonic()
assert buffer.pin(30 * PAGE, 31 * PAGE) == [slice(30 * PAGE, 31 * PAGE)]
buffer.unpin(30 * PAGE)
with buffer.pinned(40 * PAGE, 41 * PAGE) as lost:
    assert lost
assert buffer.state().purged > 6 * PAGE
assert time.monotonic() - start < 5
threads[1].start()
time.sleep(0.2)
assert told == []
go_on.set()
[thread.join() for thread in threads]
assert sorted(map(len, told)) == [0, 1], told
assert buffer.page_states()[:6] == bytes([1] * 6)
""",
    )


def test_a_buffer_that_is_closed_ends_a_slow_pin(child):
    """At the next page; and Ctrl-C ends the wait for another thread's."""
    run(
        child,
        """
begun, errors = threading.Event(), []

def wait(page):
    begun.set()
    time.sleep(0.25)

def pin():
    errors.append(raised(uf.RegionClosedError, buffer.pin))

def interrupted():
    threading.Timer(1, _thread.interrupt_main).start()
    buffer.pin()

buffer = taken(wait)
thread = threading.Thread(target=pin)
thread.start()
begun.wait()
start = time.monotonic()
raised(KeyboardInterrupt, interrupted)
buffer.close()
thread.join()
assert time.monotonic() - start < 10  # 15 s for all pages
assert len(errors) == 1
""",
        timeout=40,
    )


def test_signal_handlers_may_pin(child):
    """In the middle of the block of the code that they interrupt, and of its refill."""
    run(
        child,
        """
handled = 0

def handle(*_):
    global handled
    with buffer.pinned(63 * PAGE):
        handled += 1
    signal.setitimer(signal.ITIMER_REAL, 0.001)

buffer = taken(lambda page: None)
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.001)
until = time.monotonic() + 3
while time.monotonic() < until or handled < 20:
    with buffer.pinned(0, 63 * PAGE):
        pass
    purge(buffer)
signal.signal(signal.SIGALRM, signal.SIG_IGN)
assert not buffer._blocks
buffer.unpin(0, PAGE)
with buffer.pinned():
    assert set(buffer.page_states()) == {1}
""",
    )


def test_what_is_written_while_the_refill_is_read_is_kept(child):
    """A touch brings the refill's bytes and writes to them; the pin brings the same ones a little later."""
    run(
        child,
        """
begun, go_on, calls = threading.Event(), threading.Event(), []

def wait(page):
    calls.append(page)
    if len(calls) == 1:
        begun.set()
        go_on.wait()

for delivery in ("signal", "thread"):
    [one.clear() for one in (begun, go_on, calls)]
    buffer = taken(wait, delivery=delivery)
    array, told = buffer.numpy(), []
    thread = threading.Thread(target=lambda: told.append(buffer.pin(7 * PAGE, 9 * PAGE)))
    thread.start()
    begun.wait()
    array[7 * PAGE] = 77
    go_on.set()
    thread.join()
    assert (array[7 * PAGE], array[7 * PAGE + 1], array[8 * PAGE]) == (77, 7, 8)
    assert told == [[slice(7 * PAGE, 9 * PAGE)]]
""",
    )


def test_a_touch_keeps_its_page_when_the_pin_fails(child):
    """What it brought, and what was written to it."""
    run(
        child,
        """
begun, go_on = threading.Event(), threading.Event()

def wait(page):
    if page == 4:
        begun.set()
        go_on.wait()
        raise OSError("for now")

for delivery in ("signal", "thread"):
    begun.clear()
    go_on.clear()
    buffer = taken(wait, delivery=delivery)
    thread = threading.Thread(target=lambda: raised(uf.PageError, lambda: buffer.pin(4 * PAGE, 6 * PAGE)))
    thread.start()
    begun.wait()
    buffer.numpy()[5 * PAGE] = 77
    go_on.set()
    thread.join()
    assert (buffer.numpy()[5 * PAGE], buffer.numpy()[5 * PAGE + 1]) == (77, 5)
""",
    )


def test_a_touch_that_fails_beside_a_pin_leaves_no_error_pattern_behind(child):
    """The pin's own reads succeed: what it says it has is there."""
    run(
        child,
        """
failing = None

def wait(page):
    if threading.get_ident() == failing:
        raise OSError("for this thread")
    if page == 0:
        begun.set()
        time.sleep(0.01)

def touch():
    global failing
    begun.wait()
    failing = threading.get_ident()
    try:
        buffer.numpy().reshape(64, PAGE)[1:, 0].astype("i8").sum()
        time.sleep(0)
    except uf.PageError:
        pass

for round_ in range(40):
    begun, failing = threading.Event(), None
    buffer = taken(wait, delivery="signal" if round_ % 2 else "thread")
    thread = threading.Thread(target=touch)
    thread.start()
    buffer.pin()
    while thread.is_alive():
        thread.join(0.01)
    failing = None
    with uf.checked(buffer):
        seen = buffer.numpy().reshape(64, PAGE)[:63].copy()
    assert (seen == np.arange(63, dtype="u1")[:, None]).all()
    buffer.close_when_free()
""",
    )


def test_writes_beside_a_pin_are_kept(child):
    """Whenever they come: before a page is claimed, while it is read, after it."""
    run(
        child,
        """
for round_ in range(60):
    buffer = taken(lambda page: None, delivery="signal" if round_ % 2 else "thread")
    array = buffer.numpy()
    purge(buffer)

    def write():
        for page in range(0, 63, 3):
            array[page * PAGE + 5] = 200

    thread = threading.Thread(target=write)
    thread.start()
    buffer.pin()
    thread.join()
    assert set(array[5 : 63 * PAGE : 3 * PAGE]) == {200}
    buffer.close_when_free()
""",
    )


def test_ctrl_c_in_a_refill_is_ctrl_c(child):
    """And no PageError, which somebody might catch."""
    run(
        child,
        """
import os
buffer = taken(lambda page: page == 3 and signal.raise_signal(signal.SIGINT))
raised(KeyboardInterrupt, buffer.pin)

def block():
    with buffer.pinned():
        raise AssertionError

raised(KeyboardInterrupt, block)
""",
    )


def test_an_interrupt_leaves_no_block_behind(child):
    """Whenever it comes, the block ends: what was volatile is so again."""
    run(
        child,
        """
import random
from support.interrupts import interrupted
buffer = uf.VolatileBuffer(64 * PAGE)
buffer.numpy()[:] = 1
buffer.unpin()

def use():
    with buffer.pinned(random.randrange(60) * PAGE):
        with buffer.pinned(random.randrange(60) * PAGE):
            pass

assert interrupted(use, 3) > 100
assert set(buffer.page_states()) == {2}
block = buffer.pinned()
with block:
    assert set(buffer.page_states()) == {1}
raised(RuntimeError, block.__enter__)
""",
    )
