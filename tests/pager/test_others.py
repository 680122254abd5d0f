"""What one region of a pager does leaves the others alone."""

from __future__ import annotations

import pytest

from pager.test_death import PROLOGUE

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(90)]


def test_who_waits_does_not_wait_behind_a_prefetch(child):
    """One whose source hangs, and a long one that is well: read() and populate() of another region end at once."""
    code = f"""{PROLOGUE}
hanging = uf.map(Hanging(1 << 20, range(256), "/nonexistent/x"), delivery="process", timeout="60s")
slow = uf.map(Known(8 << 20, seed=3, unit=4096, delay=0.05, preferred_size=4096), delivery="process", timeout="60s")
good = uf.map(Known(1 << 20), delivery="process", timeout="60s")
hanging.prefetch()
slow.prefetch()
time.sleep(0.3)
began = time.monotonic()
assert good.read(1 << 19, 64) == known(1 << 19, 64).tobytes()
good.populate()
slow.populate(slice((8 << 20) - 4096, 8 << 20))
assert time.monotonic() - began < 10  # the hanging ones take 60 s, the slow one 25
os._exit(0)
"""
    child(code, timeout=60).check()


def test_more_than_one_region_can_have_filled_at_once_waits_its_time_only(child):
    """Its reads hang: those behind them are not begun, and end in their time all the same."""
    code = f"""{PROLOGUE}
region = uf.map(Hanging(1 << 20, range(256), "/nonexistent/x"), delivery="process", timeout="2s")
errors = []
began = time.monotonic()
threads = [
    threading.Thread(target=lambda at=at: errors.append(touched(lambda: region.populate(slice(at << 12, (at + 1) << 12)))))
    for at in range(16)
]
[thread.start() for thread in threads]
[thread.join(30) for thread in threads]
assert len(errors) == 16 and time.monotonic() - began < 7, (errors, time.monotonic() - began)  # four by four: 8 s
os._exit(0)
"""
    child(code, timeout=60).check()


def test_a_short_timeout_leaves_the_pager_to_the_others(child):
    """Its own touches end in PageError; nobody takes the pager for dead, which cannot look as often as that."""
    code = f"""{PROLOGUE}
good = uf.map(Known(1 << 20, unit=4096), delivery="process")
pid = good.pager.pid
short = uf.map(Known(1 << 20, unit=4096, delay=0.02), delivery="process", timeout="1ms")
for at in range(40):
    touched(lambda: memoryview(short)[at << 12])
assert bytes(good) == known(0, 1 << 20).tobytes()
assert good.pager.pid == pid and good.pager.restarts == 0, good.pager
"""
    child(code).check()


def test_what_is_there_is_not_read_for_a_prefetch(child):
    """The same pages asked for again and again are read once."""
    code = f"""{PROLOGUE}
region = uf.map(Known(1 << 20, unit=4096, preferred_size=4096, delay=0.001), delivery="process")
for _ in range(10):
    region.prefetch()
end = time.monotonic() + 20
while region.statistics().present_units < 256 and time.monotonic() < end:
    time.sleep(0.05)
time.sleep(0.5)
assert region.statistics().prefetched_units < 256 * 1.5, region.statistics()
"""
    child(code).check()
