"""Pages of a volatile buffer that a pin, a touch and an unpin want at once, one order each; and what outlives its threads."""

from __future__ import annotations

import pytest
from support.volatile import DELIVERIES, run

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(90)]

BASE = """
class Refill(uf.Source):
    "Calls `meanwhile(page)` before it fills a page with that number, plus 10."

    def __init__(self, pages, meanwhile):
        self.length, self.meanwhile = pages * PAGE, meanwhile

    def read_into(self, offset, buffer):
        self.meanwhile(offset // PAGE)
        buffer[:] = bytes([(offset // PAGE + 10) % 100]) * len(buffer)

def taken(pages, meanwhile, **options):
    "A buffer of ones of which the kernel has all pages."
    buffer = uf.VolatileBuffer(pages * PAGE, refill=Refill(pages, meanwhile), timeout="30s", **options)
    buffer.numpy()[:] = 1
    buffer.unpin()
    purge(buffer)
    return buffer
"""


@DELIVERIES
def test_a_page_that_a_pin_has_claimed_shows_no_error_pattern(child, delivery):
    """It failed for a touch before that; until the pin gets to it each touch raises, and no write is taken that is lost."""
    run(
        child,
        f"""{BASE}
slow, go_on, pinner = threading.Event(), threading.Event(), []

def meanwhile(page):
    if threading.get_ident() in pinner:
        if page == 0:
            slow.set()
            go_on.wait()
    elif page == 5:
        raise OSError("for this thread")

def touch():
    with uf.checked(buffer):
        view[5 * PAGE] = 77

def pin():
    pinner.append(threading.get_ident())
    buffer.pin()

buffer = taken(16, meanwhile, delivery="{delivery}")
view = buffer.numpy()
raised(uf.PageError, touch)
thread = threading.Thread(target=pin)
thread.start()
slow.wait()
until = time.monotonic() + 1
while time.monotonic() < until:
    raised(uf.PageError, touch)
go_on.set()
thread.join()
assert view[5 * PAGE + 1] == 15
""",
    )


def test_who_pins_after_a_pin_that_failed_hears_of_the_loss(child):
    """The first one leaves everything in order before it lets others in."""
    run(
        child,
        f"""{BASE}
PAGES = 1 << 15
begun, go_on = threading.Event(), threading.Event()

def meanwhile(page):
    if page == 0:
        begun.set()
        go_on.wait()
        raise OSError("far away")

buffer = taken(PAGES, meanwhile)
told = []
threads = [
    threading.Thread(target=lambda: raised(uf.PageError, buffer.pin)),
    threading.Thread(target=lambda: told.append(buffer.pin((PAGES - 1) * PAGE))),
]
threads[0].start()
begun.wait()
threads[1].start()
time.sleep(0.2)
go_on.set()
[thread.join() for thread in threads]
assert lost_pages(told[0]) == [PAGES - 1] and buffer.page_states()[PAGES - 1] == 1
assert buffer.pin((PAGES - 1) * PAGE) == []
""",
    )


def test_a_touch_that_is_served_late_takes_nothing_away(child):
    """It waits for a worker while its page is pinned, written and unpinned: what is written stays, and no loss is told again."""
    run(
        child,
        f"""{BASE}
import ctypes
go_on, busy = threading.Event(), []

def meanwhile(page):
    if page >= 100:
        busy.append(page)
        go_on.wait(20)

pages = 256
buffer = uf.VolatileBuffer(pages * PAGE, refill=uf.Retry(Refill(pages, meanwhile)), delivery="thread", timeout="30s")
view = buffer.numpy()
view[:] = 1
buffer.unpin()
purge(buffer)
room = ctypes.create_string_buffer(8)
touches = [(room, buffer.address + page * PAGE, 1) for page in [*range(100, 164), 3]]
threads = [threading.Thread(target=ctypes.memmove, args=touch) for touch in touches]
[thread.start() for thread in threads]
time.sleep(1.5)
assert len(busy) < 64, busy  # else nobody waits for a worker
assert lost_pages(buffer.pin(3 * PAGE, 4 * PAGE)) == [3]
view[3 * PAGE : 4 * PAGE] = 55
buffer.unpin(3 * PAGE, 4 * PAGE)
go_on.set()
[thread.join() for thread in threads]
view[3 * PAGE + 1] = 77
assert buffer.pin(3 * PAGE, 4 * PAGE) == []
assert set(view[3 * PAGE : 4 * PAGE].tolist()) == {{55, 77}}
""",
    )


@DELIVERIES
def test_a_loss_is_told_though_the_page_was_touched_and_unpinned_since(child, delivery):
    """Once, and as often as it happened."""
    run(
        child,
        f"""{BASE}
buffer = taken(4, lambda page: None, delivery="{delivery}")
view = buffer.numpy()
assert view[0] == 10
buffer.unpin()
assert buffer.page_states() == bytes([2, 3, 3, 3])
buffer.unpin()
assert lost_pages(buffer.pin(0, 2 * PAGE)) == [0, 1]
assert buffer.pin(0, 2 * PAGE) == []
assert view[2 * PAGE] == 12
buffer.unpin()
purge(buffer)
gone = {{page for page, state in enumerate(buffer.page_states()) if state == 3}}  # of page 2 it is told anyway
assert lost_pages(buffer.pin()) == sorted(gone | {{2}})
buffer.unpin()
assert buffer.pin() == []
""",
    )


def test_a_forked_child_leaves_its_blocks(child):
    """Others were in the middle of theirs at the fork."""
    run(
        child,
        """
cache, buffer = uf.VolatileCache(), uf.VolatileBuffer(16 * PAGE)
cache["x"] = b"x" * 9000
buffer.numpy()[:] = 5
buffer.unpin()
until = time.monotonic() + 4

def use():
    while time.monotonic() < until:
        with cache.borrow("x"), buffer.pinned(0, PAGE):
            pass

def fork():
    while time.monotonic() < until:
        with cache.borrow("x") as view, buffer.pinned():
            pid = os.fork()
        del view
        if pid == 0:
            own = uf.VolatileCache()
            own["y"] = b"y"
            os._exit(0 if own.get("y") == b"y" else 5)
        end = time.monotonic() + 10
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            assert time.monotonic() < end or os.kill(pid, 9)
            time.sleep(0.0005)

in_threads(use, use, fork)
""",
    )


def test_a_process_ends_while_daemon_threads_use_caches_and_blocks(child):
    """The interpreter ends such threads wherever they are."""
    code = """
import threading, time
import userfault as uf
cache, buffer = uf.VolatileCache(), uf.VolatileBuffer("64KiB")
cache["x"] = b"x" * 9000
buffer.unpin()

def use():
    while True:
        cache.get("x")
        with buffer.pinned():
            pass

for _ in range(2):
    threading.Thread(target=use, daemon=True).start()
time.sleep(0.1)
"""
    for _ in range(12):
        result = child(code)
        assert (result.returncode, result.stderr) == (0, ""), result.talk()
