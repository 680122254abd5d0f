"""A read, or a whole pager, that does not come back: the touch ends in its time, and what hangs is replaced."""

from __future__ import annotations

import pytest

from pager.test_death import PROLOGUE

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]


def test_a_read_that_hangs_ends_in_an_error_in_time(child, tmp_path):
    """PageError after `timeout`; other pages are served meanwhile; once the source is well the page can be had."""
    code = f"""{PROLOGUE}
flag = sys.argv[1] + "/go"
region = uf.map(Hanging(1 << 20, [5], flag), delivery="process", timeout="3s")
view = memoryview(region)
began = time.monotonic()
error = touched(lambda: view[5 * 4096])
assert 2.9 < time.monotonic() - began < 12, time.monotonic() - began
assert "deadline" in str(error), error
assert view[6 * 4096] == known(6 * 4096, 8)[0]
assert touched(lambda: view[5 * 4096])
open(flag, "w").close()
limit = time.monotonic() + 15
while True:
    try:
        assert view[5 * 4096] == known(5 * 4096, 8)[0]
        break
    except uf.PageError:
        assert time.monotonic() < limit
assert region.pager.restarts == 0, region.pager
check_endings(region)
"""
    child(code, args=[tmp_path], timeout=40).check()


def test_many_hanging_reads_do_not_stop_the_others(child):
    """Sixty threads wait for pages that never come; a touch of another page is answered, and all sixty end in time."""
    code = f"""{PROLOGUE}
import ctypes
region = uf.map(Hanging(1 << 20, range(100), "/nonexistent/x"), delivery="process", timeout="2s")
view = memoryview(region)
libc = ctypes.CDLL(None)
ended = []
def wait(page):
    try:
        libc.getpid()
        libc.memcmp(ctypes.c_void_p(region.address + page * 4096), b"x", 1)
        for _ in range(10):
            pass
    except uf.PageError:
        ended.append(page)
threads = [threading.Thread(target=wait, args=(page,)) for page in range(60)]
for thread in threads:
    thread.start()
time.sleep(0.5)
began = time.monotonic()
assert view[200 * 4096] == known(200 * 4096, 8)[0]
took = time.monotonic() - began
for thread in threads:
    thread.join(8)
    assert not thread.is_alive()
assert len(ended) == 60, ended
assert took < 2.5, took
"""
    child(code, timeout=40).check()


def test_a_stopped_pager_is_replaced(child):
    """SIGSTOP in the middle: after the time of the touch it is killed, and the touch goes on elsewhere."""
    code = f"""{PROLOGUE}
region = uf.map(Known(1 << 20, unit=4096), delivery="process", timeout="3s")
view = memoryview(region)
assert view[0] == known(0, 8)[0]
hit(os.getpid(), int(signal.SIGSTOP))
began = time.monotonic()
assert view[9000] == known(9000, 8)[0]
assert 2.9 < time.monotonic() - began < 15, time.monotonic() - began
assert region.pager.restarts == 1, region.pager
check_endings(region)
"""
    child(code, timeout=40).check()


def test_a_pager_stopped_while_it_reads_is_replaced(child, tmp_path):
    """The message is read already: nobody but the kernel knows that somebody waits."""
    code = f"""{PROLOGUE}
begun, flag = sys.argv[1] + "/begun", sys.argv[1] + "/go"
region = uf.map(Hanging(1 << 20, [5], flag, begun=begun), delivery="process", timeout="3s")
view = memoryview(region)
pid = region.pager.pid
stopper = start("hit", os.getpid(), int(signal.SIGSTOP), 0, begun)
if os.fork() == 0:  # the touch keeps Python's lock here
    while is_pager(pid) and not is_stopped(pid):
        time.sleep(0.005)
    open(flag, "w").close()
    os._exit(0)
began = time.monotonic()
assert view[5 * 4096] == known(5 * 4096, 8)[0]
assert time.monotonic() - began < 15, time.monotonic() - began
assert stopper.wait() == 0 and region.pager.restarts == 1, region.pager
assert check_endings(region).requeued == 1
"""
    child(code, args=[tmp_path], timeout=40).check()


def test_a_source_that_keeps_the_lock_is_replaced(child, tmp_path):
    """Nothing in that pager can run Python any more: the touch fails in its time, and others are served by another pager."""
    code = f"""{PROLOGUE}
class Stuck(Known):
    def read_into(self, offset, buffer):
        if offset == 5 * 4096 and not os.path.exists(sys.argv[1] if len(sys.argv) > 1 else flag):
            import ctypes
            ctypes.PyDLL(None).sleep(1000)
        super().read_into(offset, buffer)
flag = sys.argv[1] + "/go"
region = uf.map(Stuck(1 << 20, unit=4096), delivery="process", timeout="3s")
view = memoryview(region)
assert view[0] == known(0, 8)[0]
assert touched(lambda: view[5 * 4096])
began = time.monotonic()
for page in range(20, 24):
    while True:
        try:
            assert view[page * 4096] == known(page * 4096, 8)[0]
            break
        except uf.PageError:
            assert time.monotonic() - began < 30
assert region.pager.restarts >= 1, region.pager
check_endings(region)
"""
    child(code, args=[tmp_path], timeout=60).check()


def test_a_populate_of_a_stopped_pager_goes_on_in_another(child):
    """Nobody touches, so no fault tells that it hangs; a call waits all the same."""
    code = f"""{PROLOGUE}
region = uf.map(Known(1 << 20), delivery="process", timeout="3s")
hit(os.getpid(), int(signal.SIGSTOP))
began = time.monotonic()
region.populate()
assert time.monotonic() - began < 15, time.monotonic() - began
assert region.pager.restarts == 1
"""
    child(code, timeout=40).check()


def test_a_map_with_a_stopped_pager_goes_on_in_another(child):
    """Nothing waits for a page; the call does."""
    code = f"""{PROLOGUE}
first = uf.map(Known(1 << 20), delivery="process", timeout="3s")
hit(os.getpid(), int(signal.SIGSTOP))
began = time.monotonic()
second = uf.map(Known(1 << 20, seed=2), delivery="process", timeout="3s")
assert time.monotonic() - began < 15, time.monotonic() - began
assert memoryview(second)[0] == known(0, 8, 2)[0] and memoryview(first)[0] == known(0, 8)[0]
hit(os.getpid(), int(signal.SIGSTOP))
second.close_when_free()
second.close()  # waits for two seconds at most
limit = time.monotonic() + 15
while first.pager.regions != 1:
    assert time.monotonic() < limit, first.pager
    time.sleep(0.01)
"""
    child(code, timeout=40).check()


def test_a_source_that_takes_long_to_open_is_waited_for(child):
    """Longer than a touch may wait: the pager is not taken for dead, and serves its other regions meanwhile."""
    code = f"""{PROLOGUE}
class Late(Known):
    def __setstate__(self, state):
        time.sleep(2.5)
        self.__dict__.update(state)
first = uf.map(Known(1 << 20, unit=4096), delivery="process", timeout="1500ms")
pid = first.pager.pid
def touch():
    for at in range(200):
        time.sleep(0.01)
        assert memoryview(first)[at << 12] == known(at << 12, 8)[0]
def open_late():
    second = uf.map(Late(1 << 20, seed=2), delivery="process", timeout="1500ms")
    assert memoryview(second)[0] == known(0, 8, 2)[0]
in_threads(touch, open_late)
assert first.pager.pid == pid and first.pager.restarts == 0, first.pager
"""
    child(code, timeout=40).check()


def test_a_populate_that_hangs_ends_in_its_time_and_stops_no_other(child):
    """Six regions of one pager populate from reads that never return: each a PageError after `timeout`; a seventh is filled, and
    what was given up can be had at a touch where the source answers."""
    code = f"""{PROLOGUE}
def ended():
    region = uf.map(Hanging(1 << 20, [5], "/nonexistent/x"), delivery="process", timeout="4s")
    began = time.monotonic()
    error = touched(region.populate)
    return region, error, time.monotonic() - began
found = []
threads = [threading.Thread(target=lambda: found.append(ended()), daemon=True) for _ in range(6)]
for thread in threads:
    thread.start()
good = uf.map(Known(1 << 20), delivery="process", timeout="4s")
for thread in threads:
    thread.join(30)
assert len(found) == 6, found
for region, error, took in found:
    assert "deadline" in str(error) and 3.9 < took < 20, (error, took)
    assert region.pager.pid == good.pager.pid and region.pager.restarts == 0, region.pager
began = time.monotonic()
good.populate()
assert time.monotonic() - began < 3.5, time.monotonic() - began
region = found[0][0]
assert memoryview(region)[6 * 4096] == known(6 * 4096, 8)[0]
assert "deadline" in str(touched(lambda: memoryview(region)[5 * 4096]))
"""
    child(code, timeout=50).check()


def test_a_prefetch_that_hangs_is_dropped(child):
    """Eight of them, which nobody waits for: a populate of another region is done, one of the same region fails in its time."""
    code = f"""{PROLOGUE}
hanging = [uf.map(Hanging(1 << 20, [5], "/nonexistent/x"), delivery="process", timeout="2s") for _ in range(8)]
for region in hanging:
    region.prefetch()
good = uf.map(Known(1 << 20), delivery="process", timeout="8s")
began = time.monotonic()
good.populate()
assert time.monotonic() - began < 12, time.monotonic() - began
assert "deadline" in str(touched(hanging[0].populate))
assert good.pager.restarts == 0, good.pager
"""
    child(code, timeout=40).check()
