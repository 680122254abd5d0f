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
ahead = uf.map(Slow(LENGTH, unit="4KiB", delay=0.02), delivery="process")
plain = uf.map(Known(LENGTH, unit="4KiB", delay=0.02), delivery="process")
took = scan(ahead), scan(plain)
assert took[0] < took[1] / 2, took
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
