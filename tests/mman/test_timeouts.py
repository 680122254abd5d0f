"""A fault in a system call ends by the descriptor's timeout: in EFAULT, and the program is told what it was."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel

#: Calls of C that keep the GIL while the kernel touches `memory`, what their error says (133 is EHWPOISON), and whether the call
#: itself raises it: an OSError that Python makes of errno comes an instruction after the warning.
KEEP_THE_GIL = {
    "madvise": ("memory.madvise(22, 2 * PAGE, PAGE)", 133, True),  # MADV_POPULATE_READ
    "read": ("read_into(at(memory, 2))", 14, False),
}

PREPARE = """
def read_into(address, dll=ctypes.PyDLL(None, use_errno=True)):
    r, w = os.pipe()
    os.write(w, b"x")
    if dll.read(r, ctypes.c_void_p(address), 1) < 0:
        raise OSError(ctypes.get_errno(), "read")
def spoken(caught):
    assert all(one.category is RuntimeWarning for one in caught), caught
    return [str(one.message) for one in caught]
"""


@pytest.mark.parametrize("name", KEEP_THE_GIL)
def test_fault_in_a_system_call_that_keeps_the_gil_ends_in_an_error_that_names_the_cause(act, name):
    """The server needs the GIL, so nobody can come: OSError with its cause, a warning, a record, and no process that hangs."""
    call, said, raises = KEEP_THE_GIL[name]
    act(
        PREPARE
        + f"""
memory = mman.anonymous(4 * PAGE)
it = mman.userfaultfd(timeout=4)
mman.madvise(memory, mman.MADV_USERFAULT)
it.register(memory)
def serve():
    while True:
        address = it.read_fault()
        table(7, (address - at(memory)) // PAGE, memory)
        it.wake(address // PAGE * PAGE)
threading.Thread(target=serve, daemon=True).start()
began = time.monotonic()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        {call}
        raise AssertionError("it came back")
    except OSError as error:
        took = time.monotonic() - began
        assert error.errno == {said}, error
        cause = error.__cause__
assert 3 < took < 18, took
if {raises}:
    assert type(cause) is UserFault and cause.address == at(memory, 2), cause
    assert "in a system call that kept the GIL" in str(cause), cause
[text] = spoken(caught)
for part in (hex(at(memory, 2)), f"thread {{threading.get_native_id()}} (MainThread)", "4 s", "system call that kept the GIL"):
    assert part in text, (part, text)
[late] = it.timed_out()
assert (late.address, late.thread) == (at(memory, 2), threading.get_native_id()), late
assert 4 <= late.seconds < 15 and late.place == "a system call that kept the GIL", late
assert it.fdinfo().timeouts == 1
assert memory[0] == 7
os._exit(0)
""",
        timeout=40,
    )


def test_fault_in_a_system_call_that_gives_up_the_gil_is_told_as_such(act):
    """os.write in another thread, and nobody serves: the GIL has nothing to do with it, and the text does not say so."""
    act(
        PREPARE
        + """
memory = flagged(2)
it = mman.userfaultfd(timeout=0.4)
it.register(memory)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    thread = Touching(at(memory, 1), lambda address: errno_of(os.write, os.pipe()[1], memoryview(memory)[PAGE:]))
    assert thread.ended() == errno.EFAULT
    eventually(lambda: caught, what="the warning")
[text] = spoken(caught)
assert hex(at(memory, 1)) in text and "in a system call" in text and "GIL" not in text, text
assert [(late.address, late.place) for late in it.timed_out()] == [(at(memory, 1), "a system call")]
os._exit(0)
"""
    )


def test_touch_that_nobody_answers_warns_of_nothing(act):
    """It is told by its exception; the record has it."""
    act(
        """
memory = flagged(1)
it = mman.userfaultfd(timeout=0.3)
it.register(memory)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    raised(UserFault, lambda: touch(at(memory)))
    eventually(lambda: len(it.timed_out()) == 1, what="the record")
assert not caught, caught
assert it.timed_out()[0].place == "user code"
os._exit(0)
"""
    )


def test_record_keeps_the_newest(act):
    """Sixteen, oldest first, of twenty."""
    act(
        """
memory = flagged(20)
it = mman.userfaultfd(timeout=0.05)
it.register(memory)
for page in range(20):
    raised(UserFault, lambda: touch(at(memory, page)))
assert [late.address for late in it.timed_out()] == [at(memory, page) for page in range(4, 20)]
assert it.fdinfo().timeouts == 20
os._exit(0)
"""
    )


def test_error_that_nobody_catches_is_followed_by_the_warning(child):
    """At the end of the program at the latest."""
    result = child(
        """
from userfault import mman
memory = mman.anonymous(4096)
mman.madvise(memory, mman.MADV_USERFAULT)
it = mman.userfaultfd(timeout=4)
it.register(memory)
memory.madvise(22)
""",
        timeout=30,
    )
    assert result.returncode == 1, result
    assert "OSError: [Errno 133]" in result.stderr
    assert "RuntimeWarning: EFAULT in thread" in result.stderr
    assert "kept the GIL" in result.stderr


#: A page whose fault in a system call ended by the timeout is poisoned for a while: `memory[PAGE:]`, of `it`.
POISONED = """
def is_poisoned(address):
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        entry = int.from_bytes(os.pread(file.fileno(), 8, address // PAGE * 8), sys.byteorder)
    return entry >> 62 == 1
def written(address):
    return errno_of(os.write, os.pipe()[1], (ctypes.c_char * 1).from_address(address))
def poison(memory, page):
    for _ in range(5):  # it goes after a second, which may be over before anybody looks
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert written(at(memory, page)) == errno.EFAULT
            found = is_poisoned(at(memory, page))
            eventually(lambda: caught, what="the warning")
        if found:
            return
    raise AssertionError("never poisoned")
memory = mman.anonymous(4 * PAGE)
it = mman.userfaultfd(timeout=3)
if mman.policy() != "register-only":
    mman.madvise(memory, mman.MADV_USERFAULT)
it.register(memory)
"""


@pytest.mark.parametrize("ending", ["mman.madvise(memory, mman.MADV_NOUSERFAULT)", "it.unregister(memory)"])
def test_poison_of_a_timed_out_call_ends_with_the_faults_of_its_range(act, ending):
    """Afterwards it is memory like any other: zeros for a write(2) and a touch, no EFAULT and no SIGBUS."""
    policy = 'mman.set_policy("register-only")\n' if "unregister" in ending else ""
    act(
        policy
        + POISONED
        + f"""
poison(memory, 1)
{ending}
assert not is_poisoned(at(memory, 1))
assert written(at(memory, 1)) == 0
assert memory[PAGE] == 0
os._exit(0)
""",
        timeout=50,
    )


def test_poison_of_a_timed_out_call_does_not_move_with_its_mapping(act):
    """After mremap(2) the page is a hole of the same descriptor."""
    act(
        POISONED
        + """
poison(memory, 1)
there = mapped(4 * PAGE)
move_mapping(at(memory), 4 * PAGE, there)
assert [one.start for one in mman.ranges()] == [there]
assert not is_poisoned(there + PAGE)
before = it.pending
writing = Touching(there + PAGE, written)
eventually(lambda: it.pending > before, what="the fault")
assert mman.remap_anon_pages(there + PAGE, filled(7), PAGE) == PAGE
assert it.read_fault() == there + PAGE
it.wake(there + PAGE)
assert writing.ended() == 0
os._exit(0)
""",
        timeout=50,
    )


def test_poison_ends_when_another_resolver_takes_the_range_over(act):
    """Who is to fill the page now finds a hole, not what an earlier one has left."""
    act(
        POISONED
        + """
poison(memory, 1)
it.close()
mman.on_sigbus(memory, lambda address: table(5, 1, memory))
assert memory[PAGE] == 5
os._exit(0)
""",
        timeout=50,
    )


def test_page_that_was_dropped_and_filled_again_outlives_the_poison_it_had(act):
    """Poison is lifted after a second; not from a page that has come since."""
    act(
        POISONED
        + """
poison(memory, 1)
memory.madvise(mmap.MADV_DONTNEED, PAGE, PAGE)
table(7, 1, memory)
poison(memory, 2)
eventually(lambda: not is_poisoned(at(memory, 2)), what="the end of poison")
assert memory[PAGE] == 7
os._exit(0)
""",
        timeout=50,
    )


def test_busy_threads_are_not_taken_for_a_call_that_keeps_the_gil(act):
    """Four of them leave the GIL to others only now and then; the text says nothing of it, and names the setting."""
    act(
        PREPARE
        + """
memory, done = flagged(1), []
it = mman.userfaultfd(timeout=4)
it.register(memory)
def busy():
    while not done:
        sum(range(1000))
sys.setswitchinterval(0.03)
threads = [threading.Thread(target=busy, daemon=True) for _ in range(4)]
for thread in threads:
    thread.start()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert Touching(at(memory), lambda address: errno_of(os.write, os.pipe()[1], memory)).ended(25) == errno.EFAULT
    eventually(lambda: caught, seconds=15, what="the warning")
done.append(1)
for text in spoken(caught):  # the call may fault again before it ends, and be timed out once more
    assert "GIL" not in text and "timeout of 4 s" in text, text
late = it.timed_out()
assert late and all((one.place, one.timeout) == ("a system call", 4) for one in late), late
os._exit(0)
""",
        timeout=50,
    )


def test_touch_that_is_woken_without_its_page_again_and_again_ends_by_the_timeout(act):
    """A server that only wakes: the time counts from the first fault. One whose pages come and go is not timed out for it."""
    act(
        """
memory = flagged(4)
it = mman.userfaultfd(timeout="4s")
it.register(memory)
bring = []
def serve():
    while True:
        try:
            address = it.read_fault()
        except (OSError, ValueError):
            return
        if bring:
            errno_of(table, 7, (address - at(memory)) // PAGE, memory)
        errno_of(it.wake, address // PAGE * PAGE)
threading.Thread(target=serve, daemon=True).start()
began = time.monotonic()
raised(UserFault, lambda: touch(at(memory, 1)))
assert 3.9 < time.monotonic() - began < 15, time.monotonic() - began
late = it.timed_out()
assert [one.place for one in late] == ["user code"] and late[0].seconds < 15, late
bring.append(1)
began = time.monotonic()
while time.monotonic() - began < 8:  # twice its timeout
    assert touch(at(memory, 2)) == 7
    mman.madvise(memory, mman.MADV_DONTNEED)
it.close()
os._exit(0)
""",
        timeout=45,
    )
