"""What happens beside: signals, closed descriptors, ranges that are used again."""

from __future__ import annotations

import pytest

from pager.test_death import PROLOGUE

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]


def test_a_read_that_comes_back_late_puts_nothing_into_the_next_region(child):
    """A region is closed while its source reads; another one takes its addresses before the read comes back."""
    code = f"""{PROLOGUE}
seen = set()
for number in range(4):
    slow = uf.map(Known(1 << 16, seed=77, delay=0.7), delivery="process")
    slow.prefetch()
    time.sleep(0.1)
    address = slow.address
    slow.close()
    other = uf.map(Known(1 << 16, seed=number + 1), delivery="process")
    seen.add(other.address == address)
    time.sleep(0.9)
    assert other.statistics().present_units == 0
    assert bytes(other) == known(0, 1 << 16, number + 1).tobytes()
    other.close()
assert True in seen
"""
    child(code).check()


def test_closed_descriptors_do_not_matter(child):
    """os.closerange, as daemons do: pages and errors come as before, and another pager can take over."""
    code = f"""{PROLOGUE}
from pager.sources import Failing
region = uf.map(Failing(1 << 20, [9]), delivery="process")
view = memoryview(region)
os.closerange(3, 1000)
assert view[0] == known(0, 8)[0]
assert touched(lambda: view[9 * 4096]).__cause__.kind == "LookupError"
os.kill(region.pager.pid, signal.SIGKILL)
assert view[8192] == known(8192, 8)[0]
"""
    child(code).check()


def test_timers_beside_make_no_difference(child):
    """SIGALRM a thousand times a second: each interrupts a wait, which is asked again; one answer, one count."""
    code = f"""{PROLOGUE}
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
region = uf.map(Known(1 << 20, unit="16KiB", delay=0.01), delivery="process")
assert bytes(region) == known(0, 1 << 20).tobytes()
signal.setitimer(signal.ITIMER_REAL, 0)
found = check_endings(region)
assert found.demand_units == 64 and found.coalesced > 64, found
"""
    child(code).check()


def test_dropped_pages_come_again(child):
    """madvise(MADV_DONTNEED) behind our back, and evict: both ask the source again."""
    code = f"""{PROLOGUE}
import ctypes
region = uf.map(Known(1 << 20), delivery="process")
view = memoryview(region)
assert bytes(view) == known(0, 1 << 20).tobytes()
libc = ctypes.CDLL(None)
assert libc.madvise(ctypes.c_void_p(region.address + 65536), ctypes.c_size_t(20480), 4) == 0
assert bytes(view) == known(0, 1 << 20).tobytes()
assert check_endings(region).copied_bytes == (1 << 20) + 20480  # counted right once nothing is in flight
assert region.evict(slice(0, 1 << 19)) == 8
region.populate()
assert region.statistics().copied_bytes == (1 << 20) + (1 << 19) + 20480, region.statistics()
assert bytes(view) == known(0, 1 << 20).tobytes()
check_endings(region)
"""
    child(code).check()


def test_memory_that_was_protected_in_part_is_filled(child):
    """mprotect splits the mapping: a unit across the border is filled page by page."""
    code = f"""{PROLOGUE}
import ctypes
libc = ctypes.CDLL(None)
region = uf.map(Known(1 << 20), delivery="process")
assert libc.mprotect(ctypes.c_void_p(region.address + 8192), ctypes.c_size_t(4096), 1) == 0
assert bytes(region) == known(0, 1 << 20).tobytes()
"""
    child(code).check()


def test_a_fork_while_pages_are_awaited(child):
    """The child has nothing of it; the waiting threads of the parent get their pages."""
    code = f"""{PROLOGUE}
region = uf.map(Known(1 << 20, delay=0.2), delivery="process")
results = []
import hashlib
threads = [threading.Thread(target=lambda: results.append(hashlib.sha256(region).hexdigest())) for _ in range(4)]
for thread in threads:
    thread.start()
time.sleep(0.3)
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if region.state == "foreign" else 1)
    assert os.waitpid(pid, 0)[1] == 0
for thread in threads:
    thread.join()
assert set(results) == {{hashlib.sha256(known(0, 1 << 20)).hexdigest()}}
check_endings(region)
"""
    child(code, timeout=30).check()
