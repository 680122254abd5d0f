"""Scans of a source that makes its readers wait are read ahead by a pager, too."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

PROLOGUE = """
import subprocess, time
import userfault as uf
from pager.sources import Failing, Known, known
from support.lazy import check_endings
LENGTH = 96 << 12
want = known(0, LENGTH).tobytes()

class Slow(Known):
    readahead = True

def scan(region):
    view, began = memoryview(region), time.monotonic()
    for at in range(0, LENGTH, 4096):
        assert bytes(view[at : at + 4096]) == want[at : at + 4096], at
    return time.monotonic() - began
"""


def test_a_scan_waits_for_a_part_of_the_reads(child):
    """96 reads of 20 ms each; who did not ask for it waits for all of them."""
    code = f"""{PROLOGUE}
for _ in range(3):  # a scan that was held up by others is no measure
    ahead = uf.map(Slow(LENGTH, unit="4KiB", delay=0.02), delivery="process")
    plain = uf.map(Known(LENGTH, unit="4KiB", delay=0.02), delivery="process")
    took = scan(ahead), scan(plain)
    if took[0] < took[1] / 2:
        break
else:
    raise AssertionError(took)
assert check_endings(ahead).prefetched_units > 48 and check_endings(plain).prefetched_units == 0, ahead.statistics()
"""
    child(code, timeout=40).check()


def test_touches_here_and_there_are_no_scan(child):
    """Nothing is read that nobody touched."""
    code = f"""{PROLOGUE}
region = uf.map(Slow(LENGTH, unit="4KiB"), delivery="process")
view = memoryview(region)
for number in range(48):
    at = number * 37 % 96 * 4096
    assert view[at] == want[at]
assert check_endings(region).prefetched_units == 0
"""
    child(code).check()


def test_what_cannot_be_read_ahead_is_an_error_at_its_touch_alone(child):
    """And a pager that dies in the middle of it changes no byte."""
    code = f"""{PROLOGUE}
class Broken(Failing):
    readahead = True
region = uf.map(Broken(LENGTH, bad=[40]), delivery="process")
view = memoryview(region)
for page in range(96):
    try:
        got = bytes(view[page * 4096 : (page + 1) * 4096])
        for _ in range(10):
            pass
    except uf.PageError as error:
        assert page == 40 and error.__cause__.kind == "LookupError", error
    else:
        assert page != 40 and got == want[page * 4096 : (page + 1) * 4096], page
check_endings(region)
for _ in range(3):
    pager = uf.pager.Pager()
    again = uf.map(Slow(LENGTH, unit="4KiB", delay=0.005), delivery="process", pager=pager)
    assert view[0] == memoryview(again)[0]
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.1; kill -9 {{pager.pid}}"])  # a touch keeps Python's lock
    scan(again)
    check_endings(again)
    killer.wait()
    again.close()
    del again
"""
    child(code, timeout=40, warnings=None).check()


LOGGED = """
class Logged(Known):
    readahead = True
    preferred_size = "4KiB"

    def __init__(self, log, hangs_at=None):
        super().__init__(LENGTH, unit="4KiB", delay=0.002)
        self.log, self.hangs_at = log, hangs_at

    def read_into(self, offset, buffer):
        with open(self.log, "a") as log:
            log.write(f"{offset >> 12}\\n")
        if self.hangs_at is not None and offset >= self.hangs_at << 12:
            time.sleep(60)
        return super().read_into(offset, buffer)

    def close(self):
        with open(self.log, "a") as log:
            log.write("closed\\n")

def logged():
    try:
        with open(log) as file:
            return file.read().split()
    except FileNotFoundError:
        return []

log = sys.argv[1] + "/log"
"""


def test_a_scan_whose_next_reads_hang_does_not_stop_other_regions(child, tmp_path):
    """Of what was planned for it four reads may hang until their time is up, and then all of it is dropped."""
    code = f"""import sys
{PROLOGUE}{LOGGED}
region = uf.map(Logged(log, hangs_at=48), delivery="process", timeout=6)
other = uf.map(Known(LENGTH, unit="4KiB"), delivery="process")
view = memoryview(region)
for page in range(40):
    assert view[page << 12] == want[page << 12]
while "48" not in logged():
    time.sleep(0.01)
began = time.monotonic()
other.populate()
assert time.monotonic() - began < 11, (time.monotonic() - began, logged())
"""
    child(code, args=[tmp_path], timeout=50).check()


def test_what_is_there_is_not_read_ahead(child, tmp_path):
    """Its bytes would be thrown away."""
    code = f"""import sys
{PROLOGUE}{LOGGED}
region = uf.map(Logged(log), delivery="process")
view = memoryview(region)
region.populate(view[3 << 12 :])
for page in range(3):
    assert view[page << 12] == want[page << 12]
time.sleep(0.5)
assert sorted(map(int, logged())) == list(range(96)), logged()
"""
    child(code, args=[tmp_path], timeout=30).check()


def test_a_region_that_is_closed_is_not_read_any_further(child, tmp_path):
    """What was to be prefetched is not waited for: its source is closed soon."""
    code = f"""import sys
{PROLOGUE}{LOGGED}
class Slower(Logged):
    def read_into(self, offset, buffer):
        time.sleep(1)
        return super().read_into(offset, buffer)
with uf.map(Slower(log), delivery="process") as region:
    region.prefetch()
    while not logged():
        time.sleep(0.01)
began = time.monotonic()
while "closed" not in logged():
    assert time.monotonic() - began < 10, logged()  # 24 s for all of it
    time.sleep(0.01)
"""
    child(code, args=[tmp_path], timeout=30).check()
