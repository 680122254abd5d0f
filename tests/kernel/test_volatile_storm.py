"""Pins, touches, writes and purges of the same few pages beside each other; the refill is slow, fails, and pins pages itself."""

from __future__ import annotations

import pytest
from support.volatile import run

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(90)]


@pytest.mark.parametrize("delivery", ["signal", "thread"])
def test_no_byte_is_wrong_in_a_storm(child, delivery):
    """What is read is what the refill says or what was written; the error pattern only with an error, zeros never."""
    run(
        child,
        f"""
import random
PAGES, SECONDS = 8, 5

class Refill(uf.Source):
    length = PAGES * PAGE

    def read_into(self, offset, buffer):
        what = random.random()
        if what < 0.2:
            time.sleep(0.001)
        if what < 0.1:
            raise OSError("far away")
        if what > 0.95:
            page = random.randrange(PAGES)
            try:
                with memory.pinned(page * PAGE, (page + 1) * PAGE):
                    pass
            except (uf.PageError, OSError):
                pass
        buffer[:] = bytes([offset // PAGE + 1]) * len(buffer)

memory = uf.VolatileBuffer(PAGES * PAGE, refill=Refill(), delivery="{delivery}", timeout="20s")
view = memory.numpy()
for page in range(PAGES):
    view[page * PAGE : (page + 1) * PAGE] = page + 1
memory.unpin()
locks = [threading.Lock() for _ in range(PAGES)]
counts, wrong = dict.fromkeys(["touch", "pin", "block", "write", "take", "error"], 0), []

def expect(found, *values):
    if not set(found) <= set(values):
        wrong.append((values, set(found)))

def touch(page, part):
    with uf.checked():
        found = int(view[page * PAGE + random.randrange(PAGE)])
    expect([found], page + 1, 100 + page)

def pin(page, part):
    with locks[page], memory.pinned(part.start, part.stop):
        view[part] = 100 + page
        time.sleep(random.random() * 0.0005)
        expect(view[part].tolist(), 100 + page)
        view[part] = page + 1

def block(page, part):
    with locks[page], memory.pinned(part.start, part.stop):
        expect(view[part].tolist(), page + 1)

def write(page, part):
    with locks[page], uf.checked():
        view[part.start] = page + 1

def take(page, part):
    purge(memory)

def worker():
    ways = [touch] * 3 + [pin] * 2 + [block] + [write] * 2 + [take]
    while time.monotonic() < until:
        page, way = random.randrange(PAGES), random.choice(ways)
        try:
            way(page, slice(page * PAGE, (page + 1) * PAGE))
            counts[way.__name__] += 1
        except uf.PageError:
            counts["error"] += 1

until = time.monotonic() + SECONDS
in_threads(*[worker] * 4)
assert wrong == [], wrong[:5]
assert all(counts.values()), counts
""",
    )
