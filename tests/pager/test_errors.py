"""A page that a pager cannot have is an exception at the touch, with what happened over there."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

PROLOGUE = """
import os, sys, time, pickle
from pathlib import Path
import numpy as np
import userfault as uf
from pager.killing import wait_for
from pager.sources import Failing, Hanging, Known, known
from support.lazy import check_endings, touched
"""


def test_the_exception_of_the_source_is_the_cause_in_words_with_its_traceback(child):
    """PageError at the touch; __cause__ is a RemoteError of the class, the message and the traceback over there."""
    code = f"""{PROLOGUE}
region = uf.map(Failing(1 << 20, [3]), delivery="process")
view = memoryview(region)
assert view[0] == known(0, 8)[0]
error = touched(lambda: view[3 * 4096 + 5])
assert error.offset == 3 * 4096, error
cause = error.__cause__
assert isinstance(cause, uf.RemoteError) and cause.kind == "LookupError", cause
assert cause.message == "page 3 is not to be had", cause
assert "in read_into" in cause.traceback and "raise LookupError" in cause.traceback, cause.traceback
assert cause.traceback in "".join(cause.__notes__)
again = pickle.loads(pickle.dumps(error))
assert str(again) == str(error) and again.cause.kind == "LookupError"
for work in (lambda: region.populate(), lambda: region.read(3 * 4096, 10)):
    error = touched(work)
    assert error.offset == 3 * 4096 and error.__cause__.kind == "LookupError", error
assert touched(lambda: view[3 * 4096]).__cause__.kind == "LookupError"
assert bytes(view[4 * 4096 : 5 * 4096]) == known(4 * 4096, 4096).tobytes()
found = check_endings(region)
assert found.poisoned >= 2 and found.source_errors >= 2, found
"""
    child(code).check()


def test_a_page_that_failed_can_be_had_later(child, tmp_path):
    """The next touch asks the source again, in its pager."""
    code = f"""{PROLOGUE}
flag = sys.argv[1] + "/flag"
def read_into(offset, buffer):
    if not os.path.exists(flag):
        raise OSError(5, "not yet")
    buffer[:] = b"x" * len(buffer)
region = uf.map(uf.Function(read_into, 1 << 20, unit=4096), delivery="process")
view = memoryview(region)
assert "not yet" in touched(lambda: view[5]).__cause__.message
open(flag, "w").close()
assert view[5] == ord("x")
"""
    child(code, args=[tmp_path]).check()


def test_checked_sees_a_failure_in_any_thread(child):
    """Leaving the block raises, and a sum of many failing pages ends soon: the pager knows of latched threads."""
    code = f"""{PROLOGUE}
class Slowly(Failing):
    def read_into(self, offset, buffer):
        time.sleep(0.5)
        super().read_into(offset, buffer)
region = uf.map(Slowly(4096 * 2000, range(2000)), delivery="process")
array = region.numpy("u8")
began = time.monotonic()
error = touched(lambda: array.sum())
assert time.monotonic() - began < 15, time.monotonic() - began
try:
    with uf.checked():
        try:
            array[512 * 100]
        except uf.PageError:
            pass
except uf.PageError:
    pass
else:
    raise AssertionError
check_endings(region)
"""
    child(code).check()


def test_a_failed_page_gives_efault_in_a_system_call_and_expires(child, kernel):
    """os.write of it fails; it is poison that nobody touches, and is lifted for the next try."""
    code = f"""{PROLOGUE}
flag = [True]
region = uf.map(Failing(1 << 20, [2]), delivery="process")
if not region.kernel_faults:
    sys.exit(0)
view = memoryview(region)
read, write = os.pipe()
try:
    os.write(write, view[2 * 4096 : 2 * 4096 + 10])
except OSError as error:
    assert error.errno == 14, error
else:
    raise AssertionError
from userfault.testing import __name__ as _
faults = region.statistics().faults
limit = time.monotonic() + 8
while region.statistics().faults == faults and time.monotonic() < limit:  # while the poison stands there is no fault
    time.sleep(0.2)
    try:
        os.write(write, view[2 * 4096 : 2 * 4096 + 10])
    except OSError:
        pass
assert region.statistics().faults > faults
"""
    child(code).check()


def test_a_source_that_cannot_be_opened_there_is_an_error_of_map(child):
    """Unpickling, opening and a wrong length fail in map(), with the cause; the pager goes on serving others."""
    code = f"""{PROLOGUE}
class Stubborn(Known):
    def __setstate__(self, state):
        raise RuntimeError("not here")
class Longer(Known):
    def __setstate__(self, state):
        self.__dict__.update(state)
        self.length += 4096
good = uf.map(Known(1 << 20), delivery="process")
error = touched(lambda: uf.map(Stubborn(4096), delivery="process"))
assert error.__cause__.kind == "RuntimeError" and "not here" in str(error), error
assert "bytes here" in str(touched(lambda: uf.map(Longer(4096), delivery="process")))
class Locked(Known):
    def __init__(self):
        super().__init__(4096)
        self.lock = __import__("threading").Lock()
try:
    uf.map(Locked(), delivery="process")
except uf.OptionError as error:
    assert "cannot be sent" in str(error)
else:
    raise AssertionError
assert memoryview(good)[9] == known(8, 8)[1]
assert good.pager.regions == 1, good.pager
"""
    child(code).check()


INTERRUPTED = """
import signal
begun, go = Path(sys.argv[1], "begun"), Path(sys.argv[1], "go")
region = uf.map(Hanging(1 << 20, [0], go, begun=begun), delivery="process", timeout="40s")
view = memoryview(region)
owner = os.getpid()
def interrupt():
    if os.fork() == 0:  # the touch keeps Python's lock here
        wait_for(begun)
        time.sleep(0.2)
        os.kill(owner, signal.SIGINT)
        os._exit(0)
"""


def test_ctrl_c_ends_the_wait_for_a_page(child, tmp_path):
    """KeyboardInterrupt at once, although the pager's read goes on; then the page can be had."""
    code = f"""{PROLOGUE}{INTERRUPTED}
began = time.monotonic()
try:
    interrupt()
    view[5]
    for _ in range(100):
        pass
except KeyboardInterrupt:
    assert time.monotonic() - began < 8, time.monotonic() - began
else:
    raise AssertionError
go.touch()
time.sleep(0.05)
assert view[5] == known(0, 8)[5]
os.wait()
"""
    child(code, args=[tmp_path], timeout=30).check()


@pytest.mark.parametrize("way", ["os.write(null, view[:4096])", "region.populate()", "region.read(0, 4096)"])
def test_ctrl_c_ends_other_waits(child, tmp_path, way):
    """A system call, populate and read likewise."""
    code = f"""{PROLOGUE}{INTERRUPTED}
null = os.pipe()[1]
began = time.monotonic()
try:
    interrupt()
    try:
        {way}
    except OSError as error:
        assert error.errno == 14, error
    for _ in range(100):
        pass
    time.sleep(0.5)
except KeyboardInterrupt:
    assert time.monotonic() - began < 8, time.monotonic() - began
else:
    raise AssertionError
go.touch()
"""
    child(code, args=[tmp_path], timeout=30).check()


def test_abort_dies_with_a_line(child):
    """on_error="abort": SIGBUS, and stderr says which page and why."""
    code = f"""{PROLOGUE}
region = uf.map(Failing(1 << 20, [1]), delivery="process", on_error="abort")
print(memoryview(region)[4096])
"""
    found = child(code)
    assert found.signal is not None
    assert found.signal.name == "SIGBUS"
    assert "offset 4096" in found.stderr, found.stderr
    assert "raised an exception" in found.stderr, found.stderr


def test_however_many_pages_fail_all_can_be_had_once_the_source_is_well(child, tmp_path):
    """Hundreds between two looks of the owner, in system calls: none stays an EFAULT for good."""
    code = f"""{PROLOGUE}
flag = sys.argv[1] + "/flag"
class Healing(Known):
    def read_into(self, offset, buffer):
        if not os.path.exists(flag):
            raise OSError(5, "not yet")
        super().read_into(offset, buffer)
count = 600
region = uf.map(Healing(count * 4096, unit=4096), delivery="process")
if not region.kernel_faults:
    sys.exit(0)
view = memoryview(region)
null = os.pipe()[1]
def failed(page):
    try:
        os.write(null, view[page * 4096 : page * 4096 + 1])
    except OSError as error:
        assert error.errno == 14, error
        return True
    return False
assert all(failed(page) for page in range(count))
open(flag, "w").close()
limit = time.monotonic() + 10
left = range(count)
while left and time.monotonic() < limit:
    left = [page for page in left if failed(page)]
assert not left, len(left)
assert bytes(view) == known(0, count * 4096).tobytes()
check_endings(region)
"""
    child(code, args=[tmp_path], timeout=40).check()


def test_a_page_refused_to_a_thread_whose_error_is_on_its_way_can_be_had_later(child):
    """One C call touches a page that fails and then has the kernel read a good one: that EFAULT is no answer for good."""
    code = f"""{PROLOGUE}
import ctypes
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
def refusals():
    region = uf.map(Failing(1 << 20, [0]), delivery="process")
    if not region.kernel_faults:
        sys.exit(0)
    read, write = os.pipe()
    stream = ctypes.c_void_p(libc.fdopen(os.dup(write), b"w"))
    libc.fwrite(b"x", 1, 1, stream)  # from now on it has a buffer, with room for less than a page
    touched(lambda: libc.fwrite(ctypes.c_void_p(region.address), 1, 3 * 4096, stream))
    view = memoryview(region)
    limit, refused = time.monotonic() + 10, 0
    while True:
        try:
            os.write(write, view[4096:4097])
            return refused
        except OSError as error:
            refused += 1
            assert error.errno == 14 and time.monotonic() < limit, error
# Whoever is held up for a second comes when the refusal is over.
assert any(refusals() for _ in range(5)), "the page was never refused: this test proves nothing"
"""
    child(code, timeout=40).check()
