"""A pager dies: the same touch goes on, or fails, or the process ends, as was chosen; never zeros, never a hang."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

PROLOGUE = """
import os, signal, sys, threading, time
from pathlib import Path
import userfault as uf
from pager.killing import hit, is_pager, is_stopped, pagers_of, start, wait_for
from pager.sources import Hanging, Known, known
from support.lazy import check_endings, in_threads, touched
"""


def test_the_same_touch_continues_in_another_pager(child, tmp_path):
    """Killed in the middle of a read while the toucher keeps Python's lock: the value comes, counted as requeued."""
    code = f"""{PROLOGUE}
begun, go = sys.argv[1] + "/begun", sys.argv[1] + "/go"
region = uf.map(Hanging(1 << 20, [5], go, begun=begun), delivery="process")
view = memoryview(region)
assert view[0] == known(0, 8)[0]
first = region.pager.pid
killer = start("hit", os.getpid(), int(signal.SIGKILL), 0.1, begun)
if os.fork() == 0:  # the touch keeps Python's lock here
    while is_pager(first):
        time.sleep(0.01)
    open(go, "w").close()
    os._exit(0)
assert view[5 * 4096 + 1] == known(5 * 4096, 8)[1]
assert killer.wait() == 0
assert region.pager.pid != first and region.pager.restarts == 1, region.pager
assert view[0] == known(0, 8)[0]
found = check_endings(region)
assert found.requeued == 1, found
"""
    child(code, args=[tmp_path], timeout=40).check()


def test_an_idle_pager_that_dies_is_replaced(child):
    """Nobody waits: the next touch finds another one."""
    code = f"""{PROLOGUE}
region = uf.map(Known(1 << 20, unit=4096), delivery="process")
view = memoryview(region)
for at in range(3):
    os.kill(region.pager.pid or hit(os.getpid(), 0), signal.SIGKILL)
    assert view[at * 8192] == known(at * 8192, 8)[0]
assert region.pager.restarts == 3, region.pager
"""
    child(code).check()


def test_too_many_deaths_end_in_errors_not_in_zeros(child, tmp_path):
    """After three in a minute every page that is not there fails, those of a waiting touch too; those that are there stay."""
    code = f"""{PROLOGUE}
pager = uf.pager.Pager(restarts=1)
begun, owner = Path(sys.argv[1], "begun"), os.getpid()
region = uf.map(Hanging(1 << 20, [5], "/nonexistent/x", begun=begun), delivery="process", pager=pager)
view = memoryview(region)
assert view[0] == known(0, 8)[0]
killer = os.fork()
if killer == 0:
    for _ in range(2):  # each in the middle of its read
        wait_for(begun)
        begun.unlink()
        hit(owner, signal.SIGKILL)
    os._exit(0)
began = time.monotonic()
error = touched(lambda: view[5 * 4096])
assert time.monotonic() - began < 15, time.monotonic() - began
assert "signal 9" in str(error) and "not replaced" in str(error), error
assert os.waitpid(killer, 0)[1] == 0
assert "signal 9" in pager.lost, pager
assert view[0] == known(0, 8)[0]
assert touched(lambda: view[100_000]).offset == 98304
assert "signal 9" in str(touched(region.populate))
assert b"" == region.read(0, 0)
try:
    uf.map(Known(4096), delivery="process", pager=pager)
except uf.RegionClosedError:
    pass
else:
    raise AssertionError
check_endings(region)
del view
region.close()
pager.close()
other = uf.map(Known(1 << 20), delivery="process")
assert memoryview(other)[8] == known(8, 8)[0]
"""
    child(code, args=[tmp_path], timeout=40).check()


def test_poison_is_final_for_its_region_alone(child):
    """Two regions of one pager: the one with "poison" fails from then on, the other goes on."""
    code = f"""{PROLOGUE}
poisoned = uf.map(Known(1 << 20, unit=4096), delivery="process", on_pager_death="poison")
again = uf.map(Known(1 << 20, unit=4096), delivery="process")
first, second = memoryview(poisoned), memoryview(again)
assert first[0] == second[0] == known(0, 8)[0]
os.kill(again.pager.pid, signal.SIGKILL)
assert second[4096] == known(4096, 8)[0]
error = touched(lambda: first[4096])
assert "signal 9" in str(error), error
assert touched(lambda: first[8192]) and first[0] == known(0, 8)[0] and second[8192] == known(8192, 8)[0]
assert "signal 9" in str(touched(poisoned.populate))
assert again.pager.regions == 2
check_endings(poisoned)
check_endings(again)
"""
    child(code).check()


def test_poison_alone_ends_the_pager(child, tmp_path):
    """No region wants another pager: none is started, and the waiting touch fails long before its timeout."""
    code = f"""{PROLOGUE}
begun = sys.argv[1] + "/begun"
region = uf.map(Hanging(1 << 20, [5], "/nonexistent/x", begun=begun), delivery="process", on_pager_death="poison")
view = memoryview(region)
killer = start("hit", os.getpid(), int(signal.SIGKILL), 0.1, begun)
began = time.monotonic()
error = touched(lambda: view[5 * 4096])
assert time.monotonic() - began < 12, time.monotonic() - began
assert "signal 9" in str(error) and region.pager.lost == "signal 9", (error, region.pager)
assert pagers_of(os.getpid()) == []
found = check_endings(region)
assert found.requeued == 1 and found.poisoned == 1, found
"""
    child(code, args=[tmp_path], timeout=40).check()


def test_abort_ends_the_process_with_a_line(child):
    """on_pager_death="abort"."""
    code = f"""{PROLOGUE}
region = uf.map(Known(1 << 20, delay=5), delivery="process", on_pager_death="abort")
killer = start("hit", os.getpid(), int(signal.SIGKILL), 0.5)
memoryview(region)[5]
"""
    found = child(code)
    assert found.signal is not None
    assert found.signal.name == "SIGABRT"
    assert "pager of a region died (signal 9)" in found.stderr, found.stderr


WAYS = {
    "exit": ("os._exit(3)", "exit status 3"),
    "fatal error of Python": ("import ctypes; ctypes.pythonapi.Py_FatalError(b'on purpose')", "signal 6"),
    "bad pointer": ("import ctypes; ctypes.string_at(1)", "signal 11"),
    "no memory": ("os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),  # what the kernel's killer does
}


@pytest.mark.parametrize(("way", "words"), WAYS.values(), ids=WAYS)
def test_a_source_that_ends_the_process_is_a_death_too(child, way, words):
    """In a read, on every try: after the restarts it is a PageError that tells how."""
    code = f"""{PROLOGUE}
class Exits(Known):
    def read_into(self, offset, buffer):
        if offset:
            {way}
        super().read_into(offset, buffer)
region = uf.map(Exits(1 << 20, unit=4096), delivery="process", pager=uf.pager.Pager(restarts=2))
view = memoryview(region)
assert view[0] == known(0, 8)[0]
error = touched(lambda: view[9000])
assert {words!r} in str(error), error
assert region.pager.restarts == 2
"""
    child(code).check()


def test_populate_goes_on_in_another_pager(child):
    """What was asked for is asked again."""
    code = f"""{PROLOGUE}
region = uf.map(Known(1 << 20, delay=0.1), delivery="process")
killer = start("hit", os.getpid(), int(signal.SIGKILL), 0.3)
region.populate()
time.sleep(0.3)
assert killer.wait() == 0
assert bytes(region) == known(0, 1 << 20).tobytes()
"""
    child(code).check()


def test_a_pager_that_cannot_start_is_an_error(child):
    """Its program ends at once: map() says so, and nothing hangs."""
    code = f"""{PROLOGUE}
import userfault.pager.process as process
process._arguments = lambda: [b"/bin/false"]
try:
    uf.map(Known(4096), delivery="process")
except uf.RegionClosedError as error:
    assert "gone" in str(error), error
else:
    raise AssertionError
process._arguments = lambda: [b"/nonexistent/python"]
try:
    uf.map(Known(4096), delivery="process")
except uf.RegionClosedError as error:
    assert "gone" in str(error), error
else:
    raise AssertionError
"""
    child(code).check()
