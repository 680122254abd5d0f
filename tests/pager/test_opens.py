"""Sources that take long to open in the pager, or to take a hint, or for ever: nobody else waits for them."""

from __future__ import annotations

import pytest

from pager.test_death import PROLOGUE

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

SOURCES = """
from pathlib import Path
here = Path(sys.argv[1])
class Slow(Known):
    '''Opens in the pager once the file `until` exists; `asked`, `read` and `closed` tell what has become of it.'''
    def __init__(self, length=1 << 20, until=here / "go", **options):
        super().__init__(length, unit=4096, **options)
        self.until, self.here = until, here
    def __setstate__(self, state):
        self.__dict__.update(state)
        (self.here / "asked").touch()
        while not self.until.exists():
            time.sleep(0.05)
    def read_into(self, offset, buffer):
        (self.here / "read").touch()
        super().read_into(offset, buffer)
    def close(self):
        (self.here / "closed").touch()
class Hinted(Known):
    '''A hint waits until the file `until` exists.'''
    def __init__(self, until=here / "go"):
        super().__init__(1 << 20, unit=4096)
        self.until, self.here = until, here
    def prefetch_hint(self, offset, length):
        (self.here / "asked").touch()
        while not self.until.exists():
            time.sleep(0.01)
def until(condition, limit=15):
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
def at_once(call, limit=10):
    began = time.monotonic()
    result = call()
    assert time.monotonic() - began < limit, time.monotonic() - began
    return result
def is_well(region):
    '''What the message thread of its pager has to do with: each in a small part of any slow open here.'''
    at_once(lambda: region.evict())
    assert at_once(lambda: region.read(8192, 16)) == known(8192, 16).tobytes()
    at_once(lambda: region.populate())
    other = at_once(lambda: uf.map(Known(4096), delivery="process", pager=region.pager, timeout="8s"))
    assert bytes(other) == known(0, 4096).tobytes()
    at_once(other.close)
    assert region.pager.restarts == 0, region.pager
"""


def test_others_are_served_while_a_source_opens(child, tmp_path):
    """read, populate, map and close of other regions; in the end the slow one is served too."""
    code = f"""{PROLOGUE}{SOURCES}
good = uf.map(Known(1 << 20, unit=4096), delivery="process", timeout="8s")
slow = []
thread = threading.Thread(target=lambda: slow.append(uf.map(Slow(seed=5), delivery="process", timeout="30s")))
thread.start()
until((here / "asked").exists)
is_well(good)
assert not slow
(here / "go").touch()
thread.join(10)
assert bytes(slow[0]) == known(0, 1 << 20, 5).tobytes()
check_endings(good)
"""
    child(code, args=[tmp_path], timeout=50).check()


def test_an_open_that_hangs_ends_with_the_timeout_of_its_region(child, tmp_path):
    """A PageError that says what took so long; the same pager serves the others on, and can be closed."""
    code = f"""{PROLOGUE}{SOURCES}
pager = uf.pager.Pager()
good = uf.map(Known(1 << 20, unit=4096), delivery="process", timeout="8s", pager=pager)
first = pager.pid
began = time.monotonic()
error = touched(lambda: uf.map(Slow(), delivery="process", timeout="6s", pager=pager))
took = time.monotonic() - began
assert 5.9 < took < 14, took
assert error.__cause__.kind == "TimeoutError", error.__cause__
assert "opening the source" in str(error) and "longer than 6 s" in str(error) and "timeout" in str(error), error
is_well(good)
assert pager.pid == first and pager.regions == 1, pager
good.close()
at_once(pager.close)
until(lambda: not is_pager(first))
"""
    child(code, args=[tmp_path], timeout=50).check()


def test_many_opens_that_hang_do_not_keep_others_out(child, tmp_path):
    """More than are opened at once: all end in their time, and then another source is opened."""
    code = f"""{PROLOGUE}{SOURCES}
pager = uf.pager.Pager()
good = uf.map(Known(1 << 20, unit=4096), delivery="process", timeout="8s", pager=pager)
errors = []
def hang():
    errors.append(touched(lambda: uf.map(Slow(), delivery="process", timeout="2s", pager=pager)))
threads = [threading.Thread(target=hang) for _ in range(40)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(25)
assert len(errors) == 40 and all("opening the source" in str(error) for error in errors), errors
is_well(good)
"""
    child(code, args=[tmp_path], timeout=50).check()


def test_a_source_that_no_thread_is_left_for_hears_of_the_others(child, tmp_path):
    """As many as are opened at once hang: the next is told so, not that its own took too long."""
    code = f"""{PROLOGUE}{SOURCES}
pager = uf.pager.Pager()
good = uf.map(Known(1 << 20, unit=4096), delivery="process", pager=pager)
def hang():
    uf.map(Slow(), delivery="process", timeout="100s", pager=pager)
for _ in range(128):
    threading.Thread(target=hang, daemon=True).start()
text, end = "", time.monotonic() + 30
while "no thread" not in text and time.monotonic() < end:  # the first may be among the 128
    text = str(touched(lambda: uf.map(Slow(), delivery="process", timeout="1s", pager=pager)))
assert "it is opening 128 others" in text and "pager=uf.pager.Pager()" in text, text
assert bytes(good) == known(0, 1 << 20).tobytes()
sys.stdout.flush()
os._exit(0)
"""
    child(code, args=[tmp_path], timeout=50).check()


@pytest.mark.parametrize("how", ["timeout", "ctrl-c"])
def test_the_source_of_an_open_that_was_given_up_is_closed(child, tmp_path, how):
    """When it is open at last; nothing is read from it, whatever has been mapped since."""
    code = f"""{PROLOGUE}{SOURCES}
good = uf.map(Known(1 << 20, unit=4096), delivery="process", timeout="8s")
interrupt = {how == "ctrl-c"}
def press():
    until((here / "asked").exists)
    os.kill(os.getpid(), signal.SIGINT)
if interrupt:
    threading.Thread(target=press).start()
    began = time.monotonic()
    try:
        uf.map(Slow(), delivery="process", timeout="30s")
    except KeyboardInterrupt:
        assert time.monotonic() - began < 10
    else:
        raise AssertionError
else:
    touched(lambda: uf.map(Slow(), delivery="process", timeout="2s"))
until(lambda: good.pager.regions == 1, 15)
others = [uf.map(Known(1 << 20, seed=seed), delivery="process", timeout="8s") for seed in range(4)]
assert not (here / "closed").exists()
(here / "go").touch()
until((here / "closed").exists)
for seed, other in enumerate(others):
    assert bytes(other) == known(0, 1 << 20, seed).tobytes()
assert not (here / "read").exists()
is_well(good)
"""
    child(code, args=[tmp_path], timeout=50).check()


def test_a_hint_that_takes_long_keeps_no_other_region_waiting(child, tmp_path):
    """Nor does one that hangs keep its own for longer than a touch may wait: it is read without."""
    code = f"""{PROLOGUE}{SOURCES}
good = uf.map(Known(1 << 20, unit=4096), delivery="process", timeout="8s")
region = uf.map(Hinted(), delivery="process", timeout="3s", pager=good.pager)
region.prefetch()
until((here / "asked").exists)
is_well(good)
began = time.monotonic()
region.populate()
assert time.monotonic() - began < 15, time.monotonic() - began
assert bytes(region) == known(0, 1 << 20).tobytes()
at_once(region.close)
is_well(good)
"""
    child(code, args=[tmp_path], timeout=50).check()


def test_a_pager_that_takes_over_opens_sources_side_by_side(child, tmp_path):
    """One that takes long to open again: others are served; its touches and fills go on when it is open."""
    code = f"""{PROLOGUE}{SOURCES}
(here / "go").touch()
slow = uf.map(Slow(seed=5), delivery="process", timeout="30s")
good = [uf.map(Known(1 << 20, unit=4096, seed=seed), delivery="process", timeout="5s") for seed in range(3)]
views = [memoryview(region) for region in good]
(here / "asked").unlink()
(here / "go").unlink()
hit(os.getpid(), int(signal.SIGKILL))
until((here / "asked").exists)
for seed, view in enumerate(views):
    assert at_once(lambda: view[8192]) == known(8192, 8, seed)[0]
at_once(good[0].populate)
populated = []
thread = threading.Thread(target=lambda: populated.append(slow.populate(slice(0, 1 << 19))))
thread.start()
import subprocess
opener = subprocess.Popen(["sh", "-c", 'sleep 1; touch "$0"', here / "go"])  # the touch keeps Python's lock here
assert memoryview(slow)[(1 << 20) - 8] == known((1 << 20) - 8, 8, 5)[0]
thread.join(10)
assert populated == [None]
assert opener.wait() == 0
assert slow.pager.restarts == 1, slow.pager
assert bytes(slow) == known(0, 1 << 20, 5).tobytes()
"""
    child(code, args=[tmp_path], timeout=50).check()


def test_a_source_that_does_not_open_again_ends_touches_in_their_time(child, tmp_path):
    """PageError instead of a hang; once it is open its pages can be had."""
    code = f"""{PROLOGUE}{SOURCES}
(here / "go").touch()
slow = uf.map(Slow(), delivery="process", timeout="2s")
view = memoryview(slow)
(here / "go").unlink()
hit(os.getpid(), int(signal.SIGKILL))
error = at_once(lambda: touched(lambda: view[8192]), 20)
assert "opening the source" in str(error), error
(here / "go").touch()
end = time.monotonic() + 15
while True:
    try:
        assert view[8192] == known(8192, 8)[0]
        break
    except uf.PageError:
        assert time.monotonic() < end
assert slow.pager.restarts == 1, slow.pager
"""
    child(code, args=[tmp_path], timeout=50).check()


def test_a_source_that_takes_long_to_close_keeps_nobody(child, tmp_path):
    """The pager closes it in a thread of its own; the region's own close() has a limit."""
    code = f"""{PROLOGUE}{SOURCES}
class Closing(Known):
    def close(self):
        (here / "closing").touch()
        until((here / "go").exists)
        (here / "closed").touch()

slow = uf.map(Closing(1 << 20, unit=4096), delivery="process", timeout="5s")
good = uf.map(Known(1 << 20, unit=4096), delivery="process", timeout="5s")
assert memoryview(slow)[0] == known(0, 8)[0]
thread = threading.Thread(target=slow.close)
thread.start()
until((here / "closing").exists)
at_once(good.populate)
is_well(uf.map(Known(1 << 20, unit=4096), delivery="process", timeout="5s"))
at_once(good.close)
(here / "go").touch()
until((here / "closed").exists)
thread.join(10)
assert not thread.is_alive()
"""
    child(code, args=[tmp_path], timeout=50).check()
