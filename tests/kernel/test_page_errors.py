"""Law 4: a page that cannot be had is an exception in the thread that touched it, and never zeros."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

DELIVERIES = pytest.mark.parametrize("delivery", ["thread", "signal"])

#: 4 MiB of sevens whose pages from 64 KiB on fail, and what the cases below use.
PREPARE = """
import os, struct, sys, threading, time, tempfile
import numpy as np
import userfault as uf
from userfault.testing import Chaos

delivery = sys.argv[1]
N, off = 4 << 20, 16 * 4096
with tempfile.NamedTemporaryFile() as file:
    file.write(b"\\7" * N); file.flush()
    region = uf.map(Chaos(uf.File(file.name), fail=[range(off, N)]), delivery=delivery, unit="4KiB")
mv, a, f = memoryview(region), region.numpy("u1"), region.numpy("f4")
r, w = os.pipe(); os.set_blocking(r, False)

def leaked():
    try:
        return os.read(r, 100)
    except BlockingIOError:
        return None

def quiet():
    "Every fault that was read has exactly one ending."
    for _ in range(200):
        s = region.statistics()
        if s.in_flight == 0:
            break
        time.sleep(0.01)
    assert s.in_flight == 0, s
    assert s.faults == s.resolved + s.coalesced + s.poisoned + s.torn_down + s.requeued, s
"""

#: Code after which the exception is raised before anything of the page can leave the process.
TIGHT = {
    "attribute_call": "x = a[off:off+10].tobytes(); os.write(w, x)",
    "small_sum": "x = f[off//4:off//4+100].sum(); os.write(w, b'%f' % x)",
    "sum_without_gil": "x = f[off//4:].sum(); os.write(w, b'%f' % x)",
    "unpack": "x, = struct.unpack_from('I', mv, off); os.write(w, b'%d' % x)",
    "bytes_of_slice": "x = bytes(mv[off:off+10]); os.write(w, x)",
    "format": "s = f'{a[off]}'; os.write(w, s.encode())",
    "index_loop": "s = 0\\nfor i in range(off, off + 10): s += mv[i]\\nos.write(w, b'%d' % s)",
    "iteration": "s = 0\\nfor v in a[off:off+3]: s += int(v)\\nos.write(w, b'%d' % s)",
    "index_then_call": "x = mv[off]; os.write(w, bytes([x]))",
    "array_method": "x = a[off]; os.write(w, x.tobytes())",
}

#: Code whose very next call sees the pattern before the exception surfaces: documented, and never zeros for a read.
LOOSE = {
    "operator_into_call": "os.write(w, a[off])",
    "compare_and_call": "if mv[off] == 7: os.write(w, b'seven')\\nelse: os.write(w, b'other')",
}

CASE = (
    PREPARE
    + """
def case():
    {body}

def run():
    try:
        case()
    except uf.PageError as error:
        print("raised", error.offset // 4096 * 4096 == off, error.source.startswith("Chaos"), leaked())
    else:
        print("silent", leaked())

for _ in range(3):
    run()
thread = threading.Thread(target=run); thread.start(); thread.join()
quiet()
"""
)


def body(code: str) -> str:
    return code.replace("\\n", "\n").replace("\n", "\n    ")


@DELIVERIES
@pytest.mark.parametrize("name", TIGHT)
def test_page_error_in_ordinary_code_is_raised_before_anything_leaves(child, name, delivery):
    """Each touch raises again, in the main thread and in another, and nothing of the page was written."""
    result = child(CASE.replace("{body}", body(TIGHT[name])), args=(delivery,))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["raised True True None"] * 4


@DELIVERIES
@pytest.mark.parametrize("name", LOOSE)
def test_page_error_behind_a_bare_operand_is_raised_after_one_call(child, name, delivery):
    """The one call that takes the operand may see the pattern; then it raises, every time."""
    result = child(CASE.replace("{body}", body(LOOSE[name])), args=(delivery,))
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[:3] for line in lines] == [["raised", "True", "True"]] * 4
    assert all(line.endswith(("b'\\xff'", "b'other'")) for line in lines)


@DELIVERIES
def test_page_error_from_read_and_populate_comes_before_a_byte_is_seen(child, delivery):
    """read() and populate() raise synchronously and expose nothing; good pages beside bad ones are good."""
    result = child(
        PREPARE
        + """
for call in (lambda: region.read(off, 10), lambda: region.read(off - 5, 10), lambda: region.populate(a[off:off+1])):
    try:
        call(); print("silent")
    except uf.PageError as error:
        assert error.offset == off, error.offset
assert region.statistics().exposed_pages == 0
assert region.read(off - 5, 5) == b"\\7" * 5
region.populate(slice(0, off))
assert a[:off].sum() == 7 * off
quiet()
""",
        args=(delivery,),
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


@DELIVERIES
def test_checked_when_a_page_failed_raises_page_error_with_the_first_error_as_context(child, delivery):
    """checked() turns an IndexError made from the pattern into PageError, and lets good blocks pass."""
    result = child(
        PREPARE
        + """
with uf.checked() as block:
    assert a[5] == 7
for regions in ((), (region,)):
    try:
        with uf.checked(*regions):
            np.take(np.arange(10), a[off:off+10])
        print("silent")
    except uf.PageError as error:
        assert isinstance(error.__context__, IndexError) or error.__context__ is None, repr(error.__context__)
    try:
        with uf.checked(*regions):
            x = mv[off]
        print("silent")
    except uf.PageError as error:
        assert error.offset == off
    sum(range(1000))
quiet()
""",
        args=(delivery,),
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


@DELIVERIES
def test_checked_when_another_thread_failed_raises_too(child, delivery):
    """A false alarm is fine, silence is not: whoever touched the page, the block raises."""
    result = child(
        PREPARE
        + """
def other():
    try:
        mv[off]; time.sleep(0)
    except uf.PageError:
        pass
try:
    with uf.checked():
        thread = threading.Thread(target=other); thread.start(); thread.join()
    print("silent")
except uf.PageError:
    pass
""",
        args=(delivery,),
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_system_call_on_a_failed_page_gets_efault_or_a_short_count(child):
    """A good and a bad page in one call: a short count; only bad: EFAULT; and the poison expires."""
    result = child(
        PREPARE
        + """
assert os.write(w, mv[off-4096:off+4096]) == 4096
os.read(r, 4096)
for _ in range(2):
    try:
        os.write(w, mv[off:off+10]); print("silent")
    except OSError as error:
        assert error.errno == 14, error
quiet()
deadline = time.time() + 5
while open("/proc/self/pagemap", "rb").seek((region.address + off) // 4096 * 8) and time.time() < deadline:
    file = open("/proc/self/pagemap", "rb"); file.seek((region.address + off) // 4096 * 8)
    if int.from_bytes(file.read(8), "little") >> 62 == 0:
        break
    time.sleep(0.05)
else:
    print("poison stays")
assert region.statistics().exposed_pages == 0
""",
        args=("thread",),
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


@pytest.mark.parametrize("holder", [False, True], ids=["gil_free", "gil_held_elsewhere"])
def test_sum_over_10000_failing_pages_of_a_slow_source_ends_soon(child, holder):
    """One second for the first page, and not one for each: the latched thread is answered at once."""
    result = child(
        """
import sys, threading, time, userfault as uf
from userfault.testing import Chaos
pages = 10_000
region = uf.map(Chaos(uf.Zero(pages * 4096), fail=[range(pages * 4096)], delay="1s"), unit="4KiB")
a, stop = region.numpy("f4"), False
def hold():
    while not stop:
        pass
if sys.argv[1] == "True":
    threading.Thread(target=hold, daemon=True).start()
began = time.monotonic()
try:
    a.sum(); print("silent")
except uf.PageError:
    pass
stop = True
print(time.monotonic() - began, region.statistics().exposed_pages)
""",
        args=(str(holder),),
        timeout=60,
    )
    took, exposed = map(float, result.stdout.split())
    assert exposed >= 10_000
    # The promise is 2 s on a quiet machine; a shared one gets some more. Without the latch it would be three hours.
    assert 1 <= took < 20, took


def test_zero_source_under_chaos_is_asked_and_fails(child):
    """A layer that injects faults is not bypassed by the zero-run shortcut."""
    result = child(
        """
import userfault as uf
from userfault.testing import Chaos
region = uf.map(Chaos(uf.Zero(8192), fail=[slice(4096, 8192)]), unit="4KiB")
view = memoryview(region)
assert view[0] == 0
try:
    x = int(view[4096]); print("silent", x)
except uf.PageError as error:
    assert error.offset == 4096
"""
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


@pytest.mark.parametrize(
    "touch",
    ["x = int(view[5 * 4096])", "os.write(w, view[5 * 4096:])", "region.populate()"],
    ids=["memory", "system_call", "populate"],
)
def test_ctrl_c_while_a_page_is_awaited_raises_keyboard_interrupt(child, touch):
    """KeyboardInterrupt surfaces soon after the key, although the source takes 20 s."""
    result = child(
        f"""
import os, signal, sys, time, userfault as uf
from userfault.testing import Chaos
region = uf.map(Chaos(uf.Zero(1 << 20), delay="20s"), unit="4KiB")
view = memoryview(region)
r, w = os.pipe()
sender = os.getpid()
try:
    if os.fork() == 0:
        time.sleep(0.5)
        print(time.monotonic(), flush=True)
        os.kill(sender, signal.SIGINT)
        os._exit(0)
    try:
        {touch}
    except OSError as error:
        assert error.errno == 14
    int("0")  # an exception surfaces at the end of a call
    time.sleep(8)
    print("silent")
except KeyboardInterrupt:
    print(time.monotonic())
os._exit(0)
""",
        timeout=30,
    )
    pressed, raised = map(float, result.stdout.split())
    # 100 ms is the promise on a quiet machine; a busy one may add seconds. The source takes 20.
    assert raised - pressed < 4, result.stdout


def test_ctrl_c_with_a_handler_that_does_not_raise_keeps_waiting(child):
    """A custom SIGINT handler may do anything: the page is then awaited, and never shown as the pattern."""
    result = child(
        """
import os, signal, time, userfault as uf
from userfault.testing import Chaos
seen = []
signal.signal(signal.SIGINT, lambda *a: seen.append(1))
region = uf.map(Chaos(uf.Bytes(b"\\5" * 4096), delay="5s"))
sender = os.getpid()
if os.fork() == 0:
    time.sleep(0.3); os.kill(sender, signal.SIGINT); os._exit(0)
x = int(memoryview(region)[0])
assert x == 5, x
assert seen == [1]
"""
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


@DELIVERIES
def test_abort_when_a_page_fails_dies_by_sigbus_with_one_line(child, delivery):
    """on_error="abort" ends the process with the page, the source and the reason on one line."""
    result = child(
        """
import sys, userfault as uf
from userfault.testing import Chaos
region = uf.map(Chaos(uf.File(sys.executable), fail=[range(4096)]), delivery=sys.argv[1], on_error="abort")
memoryview(region)[0]
print("silent")
""",
        args=(delivery,),
    )
    assert result.signal == 7
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "offset 0 of Chaos(File(" in result.stderr
    assert "abort" in result.stderr


def test_page_error_pickles_and_names_its_cause():
    """The exception travels between processes with its data."""
    import errno
    import pickle

    import userfault as uf

    error = uf.PageError("File('x')", 4096, OSError(errno.EIO, "Input/output error"))
    again = pickle.loads(pickle.dumps(error))
    assert (again.source, again.offset, again.errno) == ("File('x')", 4096, errno.EIO)
    assert "byte 4096" in str(again)
    assert isinstance(again, OSError)
    assert isinstance(again, uf.UserfaultError)


def test_transient_failure_when_touched_again_gives_the_data(child):
    """The page is re-armed: after the source has recovered, the same touch gives its bytes."""
    result = child(
        """
import userfault as uf
from userfault.testing import Chaos
region = uf.map(Chaos(uf.Bytes(b"\\5" * 4096), fail=[range(1)], failures=2))
view = memoryview(region)
def touch():
    x = view[0]
    return int(x)
try:
    touch(); print("silent")
except uf.PageError:
    pass
assert touch() == 5
"""
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


@DELIVERIES
def test_checked_when_a_page_shows_the_pattern_already_asks_again(child, delivery):
    """Two regions fail in one call and one error surfaces; a fence entered then does not read the other's pattern."""
    result = child(
        """
import sys, numpy as np, userfault as uf
from userfault.testing import Chaos
def make():
    return uf.map(Chaos(uf.Bytes(b"1" * 262144), fail=[range(4096)]), delivery=sys.argv[1]).numpy()
for _ in range(50):
    a, b = make(), make()
    try:
        np.add(a[:10], b[:10])
    except uf.PageError:
        pass
    try:
        with uf.checked():
            v = int(b[0])
        print("silent", v)
    except uf.PageError:
        pass
""",
        args=(delivery,),
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
