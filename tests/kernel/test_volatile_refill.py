"""Volatile buffers whose lost pages come back from a source, and system calls on either kind."""

from __future__ import annotations

import pytest
from support.volatile import DELIVERIES, run

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(90)]


@DELIVERIES
def test_refill_brings_the_bytes_and_keeps_what_is_written_after(child, delivery, tmp_path):
    """A touch of a purged page reads the refill; pin tells the loss and refills the rest; writes to refilled pages stay."""
    run(
        child,
        """
refill = known_bytes(30 * PAGE - 7, seed=1)
write("refill", refill)
for source in ("refill", refill.tobytes(), uf.File("refill")):
    buffer = uf.VolatileBuffer(len(refill), delivery=sys.argv[1], refill=source)
    array = buffer.numpy()
    assert not array.any()
    array[:] = 9
    buffer.unpin()
    purge(buffer)
    assert (array[3 * PAGE : 5 * PAGE] == refill[3 * PAGE : 5 * PAGE]).all()
    array[3 * PAGE] = 7
    purge(buffer)  # refilled pages are kept
    assert array[3 * PAGE] == 7 and buffer.page_states()[3:5] == bytes([4, 4])
    assert buffer.pin() == [slice(0, len(refill))]
    expected = refill.copy()
    expected[3 * PAGE] = 7
    assert (array == expected).all() and buffer.pin() == []
    assert buffer.state().pinned == len(refill)
    check_endings(buffer)
""",
        args=[delivery],
        cwd=tmp_path,
    )


@DELIVERIES
@pytest.mark.parametrize("refill", [False, True], ids=["plain", "refill"])
def test_system_calls_on_purged_pages_get_efault_or_the_refill(child, delivery, refill):
    """Never zeros; pages that were not taken are written as they are, and a read into an unpinned page keeps it."""
    run(
        child,
        """
data = known_bytes(8 * PAGE)
buffer = uf.VolatileBuffer(8 * PAGE, delivery=sys.argv[1], refill=data.tobytes() if sys.argv[2] == "True" else None)
buffer.numpy()[:] = data
view = memoryview(buffer)
buffer.unpin()
reader, writer = os.pipe()
os.write(writer, b"kept")
assert os.readv(reader, [view[:4]]) == 4  # a write by the kernel cancels too
purge(buffer)
os.write(writer, view[:PAGE])
assert os.read(reader, 2 * PAGE) == b"kept" + data[4:PAGE].tobytes()
if sys.argv[1] == "thread" and sys.argv[2] == "True" and buffer.kernel_faults:
    os.write(writer, view[2 * PAGE : 3 * PAGE])
    assert os.read(reader, 2 * PAGE) == data[2 * PAGE : 3 * PAGE].tobytes()
else:
    error = raised(OSError, lambda: os.write(writer, view[2 * PAGE : 3 * PAGE]))
    assert error.errno == errno.EFAULT, error
assert lost_pages(buffer.pin()) == list(range(1, 8))
os.write(writer, view[2 * PAGE : 3 * PAGE])
assert os.read(reader, 2 * PAGE) == (data[2 * PAGE : 3 * PAGE].tobytes() if sys.argv[2] == "True" else bytes(PAGE))
time.sleep(1.3)  # what a system call left behind expires after a second, and must not take a pinned page along
buffer.numpy()[2 * PAGE] = 9
assert buffer.numpy()[2 * PAGE] == 9 and buffer.pin() == []
check_endings(buffer)
""",
        args=[delivery, str(refill)],
    )


def test_refill_that_may_wait_is_delivered_to_threads(child, tmp_path):
    """Without a word about delivery; asked for by signal it is refused. A slow one can be interrupted."""
    run(
        child,
        """
import _thread
from userfault.testing import Chaos
slow = Chaos(uf.Zero("1MiB"), delay="60ms")
buffer = uf.VolatileBuffer("1MiB", refill=slow)
assert buffer.options.delivery == "thread"
raised(uf.OptionError, lambda: uf.VolatileBuffer("1MiB", refill=slow, delivery="signal"))
array = buffer.numpy()
array[:] = 1
buffer.unpin()
purge(buffer)
assert array[0] == 0
def interrupted():
    threading.Timer(1, _thread.interrupt_main).start()
    buffer.pin()
start = time.monotonic()
raised(KeyboardInterrupt, interrupted)
assert time.monotonic() - start < 10  # 15 s for all pages
assert set(buffer.page_states()) == {3, 4}  # nothing of it was told, so all of it is still to be told
""",
        cwd=tmp_path,
    )


@DELIVERIES
def test_refill_that_fails_is_a_page_error_and_the_loss_stays_to_be_told(child, delivery, tmp_path):
    """At the touch and at the pin; when it works again, everything is there."""
    run(
        child,
        """
data = known_bytes(16 * PAGE)
write("refill", data)
buffer = uf.VolatileBuffer(16 * PAGE, refill="refill", delivery=sys.argv[1])
array = buffer.numpy()
array[:] = 1
buffer.unpin()
purge(buffer)
os.truncate("refill", 8 * PAGE)
def touch():
    with uf.checked():
        array[9 * PAGE]
error = raised(uf.PageError, touch)
assert not isinstance(error, uf.PagePurged) and error.offset == 9 * PAGE, error
assert array[5] == data[5]
error = raised(uf.PageError, buffer.pin)
assert error.offset >= 8 * PAGE and not isinstance(error, uf.PagePurged), error
write("refill", data)
assert buffer.pin() == [slice(0, 16 * PAGE)]
assert (array == data).all()
""",
        args=[delivery],
        cwd=tmp_path,
    )
