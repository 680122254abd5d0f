"""B1, the SIGBUS side: a touch that no descriptor hears of is a signal with its address; a handler resolves it and returns."""

from __future__ import annotations

import signal

import pytest

from mman.touches import PREPARE, READS, WRITES

#: The rules here are those of options 3 and 1 alike.
UNDER = ("madvise", "mprotect")
pytestmark = pytest.mark.kernel

#: A flagged range whose callable fills page n with the byte n + 1.
SQUARE = (
    PREPARE
    + """
calls, threads = [], set()

def resolver_of(memory):
    base = at(memory)
    def resolve(address):
        calls.append(address)
        threads.add(threading.get_ident())
        page = (address - base) // PAGE
        try:
            mman.remap_anon_pages(base + page * PAGE, filled(page + 1), PAGE)
        except FileExistsError:
            pass  # another thread was faster
    return resolve

def resolved(pages=64):
    memory = flagged(pages)
    mman.on_sigbus(memory, resolver_of(memory))
    return memory
"""
)

TOUCHES = READS | WRITES


@pytest.mark.parametrize("name", TOUCHES)
def test_callable_in_the_touching_thread_gives_right_bytes(act, name):
    """The instruction starts again with them; each page was asked for once, in the thread that touched."""
    act(
        SQUARE
        + f"""
memory = resolved()
{TOUCHES[name]}
pages = [address // PAGE for address in calls]
if "{name}" != "numpy_matmul":  # its library has threads of its own
    assert threads == {{threading.get_ident()}}
    assert pages and len(set(pages)) == len(pages), pages
"""
    )


def test_callable_gets_the_address_as_touched(act):
    """Not rounded to the page."""
    act(SQUARE + "memory = resolved()\nassert touch(at(memory, 3) + 123) == 4\nassert calls == [at(memory, 3) + 123], calls")


def test_callable_runs_in_each_of_six_threads_that_touch(act):
    """Mixed touches with the GIL and without; every byte is right."""
    act(
        SQUARE
        + """
for _ in range(5):
    memory = resolved()
    array = np.frombuffer(memory, "u1")
    def by_index():
        for page in np.random.permutation(PAGES):
            assert memory[int(page) * PAGE] == page + 1
    def by_numpy():
        assert int(array.sum()) == sum(known)
    def by_hash():
        assert hashlib.sha256(memory).digest() == hashlib.sha256(known).digest()
    in_threads(by_index, by_numpy, by_hash, by_index, by_numpy, by_hash)
    assert bytes(memory) == known
assert len(threads) > 1
""",
        timeout=40,
    )


def test_callable_under_a_timer_at_one_kilohertz_gives_right_bytes(act):
    """SIGALRM with a Python handler all the while."""
    act(
        SQUARE
        + """
ticks = []
signal.signal(signal.SIGALRM, lambda *rest: ticks.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
until = time.monotonic() + 2
while time.monotonic() < until or len(ticks) <= 100:
    memory = resolved()
    assert int(np.frombuffer(memory, "u1").sum()) == sum(known)
    assert bytes(memory) == known
signal.setitimer(signal.ITIMER_REAL, 0)
""",
        timeout=40,
    )


def test_callable_that_collects_garbage_gives_right_bytes(act):
    """It is ordinary Python that runs there."""
    act(
        SQUARE
        + """
memory = flagged(PAGES)
resolve = resolver_of(memory)
mman.on_sigbus(memory, lambda address: (gc.collect(), resolve(address)))
assert bytes(memory) == known
"""
    )


def test_callable_that_raises_makes_user_fault_with_its_exception_as_cause(act):
    """In the thread that touched; the next touch asks again."""
    act(
        """
memory, fail = flagged(4), True
def resolve(address):
    if fail:
        raise KeyError("no such page")
    table(7, (address - at(memory)) // PAGE, memory)
mman.on_sigbus(memory, resolve)
for _ in range(3):
    error = raised(UserFault, lambda: touch(at(memory, 2)))
    assert isinstance(error.__cause__, KeyError), repr(error.__cause__)
    assert error.address // PAGE * PAGE == at(memory, 2)
def in_thread():
    error = raised(UserFault, lambda: touch(at(memory, 1)))
    assert isinstance(error.__cause__, KeyError)
in_threads(in_thread)
fail = False
assert touch(at(memory, 2)) == 7
"""
    )


def test_callable_that_resolves_nothing_raises_user_fault(act):
    """It is not asked for ever."""
    act(
        """
memory, asked = flagged(2), []
mman.on_sigbus(memory, asked.append)
raised(UserFault, lambda: touch(at(memory)))
assert 1 <= len(asked) <= 8, len(asked)
raised(UserFault, lambda: touch(at(memory)))
"""
    )


def test_callable_that_touches_its_own_range_is_bounded(act):
    """Recursion ends in an exception, and neither in a dead process nor in a hang."""
    act(
        """
memory, depth = flagged(4096), []
def resolve(address):
    depth.append(address)
    touch(at(memory, len(depth) % 4096))
mman.on_sigbus(memory, resolve)
raised(UserFault, lambda: touch(at(memory)))
assert len(depth) < 4000, len(depth)
other = flagged(2)
mman.on_sigbus(other, lambda address: table(7, (address - at(other)) // PAGE, other))
assert touch(at(other)) == 7
"""
    )


def test_callable_may_touch_a_page_of_its_range_that_it_can_resolve(act):
    """One page is made of another: two deep is no runaway."""
    act(
        """
memory = flagged(8)
def resolve(address):
    page = (address - at(memory)) // PAGE
    table(1 if page == 0 else memory[(page - 1) * PAGE] + 1, page, memory)
mman.on_sigbus(memory, resolve)
assert memory[2 * PAGE] == 3
assert [memory[page * PAGE] for page in range(5)] == [1, 2, 3, 4, 5]
"""
    )


def test_callable_keeps_the_exception_that_is_being_handled(act):
    """A touch in an except clause or a finally changes neither."""
    act(
        SQUARE
        + """
memory = resolved()
try:
    try:
        raise KeyError("mine")
    except KeyError:
        assert memory[PAGE] == 2
        assert isinstance(sys.exc_info()[1], KeyError)
        raise
except KeyError as error:
    assert error.args == ("mine",)
    assert error.__context__ is None
"""
    )


def test_source_of_the_engine_fills_the_pages(act):
    """Native: no Python in the touch; offset 0 of the source is the start of the range."""
    act(
        """
import userfault as uf
data = known_bytes(64 * PAGE).tobytes()
memory = flagged(64)
mman.on_sigbus(memory, uf.Bytes(data))
assert memory[5 * PAGE + 9] == data[5 * PAGE + 9]
def whole():
    assert bytes(memory) == data
def digest():
    assert hashlib.sha256(memory).digest() == hashlib.sha256(data).digest()
in_threads(whole, digest, whole, digest)
assert [one.resolver for one in mman.ranges()] == ["source"]
"""
    )


def test_source_that_fails_raises_user_fault_with_its_error(act):
    """Its OSError is the cause; good pages are good."""
    act(
        """
import userfault as uf
from userfault.testing import Chaos
memory = flagged(8)
mman.on_sigbus(memory, Chaos(uf.Bytes(b"\\7" * 8 * PAGE), fail=[range(4 * PAGE, 8 * PAGE)]))
assert memory[0] == 7
error = raised(UserFault, lambda: touch(at(memory, 5)))
assert error.address // PAGE * PAGE == at(memory, 5)
"""
    )


@pytest.mark.parametrize("explicit", [False, True], ids=["unset", "None"])
def test_none_raises_user_fault_with_the_address(act, explicit):
    """It is what a range has that nobody gave a resolver."""
    act(
        f"""
memory = flagged(5)
if {explicit}:
    mman.on_sigbus(memory, lambda address: table(7, 0, memory))
    mman.on_sigbus(memory, None)
error = raised(UserFault, lambda: touch(at(memory, 1) + 77))
assert error.address in (at(memory, 1), at(memory, 1) + 77), hex(error.address)
assert hex(at(memory, 1))[2:-3] in str(error), error
def in_thread(page):
    raised(UserFault, lambda: touch(at(memory, page)))
    raised(UserFault, lambda: load(at(memory, page + 1)) + len(""))
in_threads(lambda: in_thread(1), lambda: in_thread(3))
"""
    )


def test_default_ends_the_process_by_sigbus(child):
    """signal.SIG_DFL with nobody before: what the kernel does."""
    result = child(
        """
import signal
from mman.kit import *
memory = flagged(1)
mman.on_sigbus(memory, signal.SIG_DFL)
touch(at(memory))
print("silent")
"""
    )
    assert (result.signal, result.stdout) == (signal.SIGBUS, ""), result.talk()


def test_default_goes_to_faulthandler_that_was_enabled_before(child):
    """It prints where the touch was, and the process ends by SIGBUS."""
    code = "import signal\nfrom mman.kit import *\nmemory = flagged(1)\nmman.on_sigbus(memory, signal.SIG_DFL)\nmemory[0]"
    result = child(code, faulthandler=True)
    assert result.signal == signal.SIGBUS, result.talk()
    assert "Fatal Python error: Bus error" in result.stderr


def test_default_goes_to_a_handler_that_was_there_before(act):
    """With its siginfo: number, code and the exact address; what it maps there is what the instruction sees."""
    act(
        """
class Action(ctypes.Structure):
    _fields_ = [("call", ctypes.c_void_p), ("mask", ctypes.c_ulong * 16), ("flags", ctypes.c_int), ("rest", ctypes.c_void_p)]
seen = []
@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.c_void_p)
def older(number, info, context):
    address = ctypes.cast(info, ctypes.POINTER(ctypes.c_uint64))[2]
    seen.append((number, info[0], info[2] > 0, address))
    page = address // PAGE * PAGE
    mapped(PAGE, address=page)
    ctypes.memset(page, 7, PAGE)
action = Action(ctypes.cast(older, ctypes.c_void_p).value, flags=4 | 0x40000000)
assert libc.sigaction(signal.SIGBUS, ctypes.byref(action), None) == 0
memory = flagged(2)
mman.on_sigbus(memory, signal.SIG_DFL)
assert touch(at(memory) + 9) == 7
assert seen == [(signal.SIGBUS, signal.SIGBUS, True, at(memory) + 9)], seen
"""
    )


def test_default_beside_other_resolvers_concerns_its_range_alone(act):
    """Half a mapping with a callable, half without: page by page."""
    act(
        SQUARE
        + """
memory = flagged(PAGES)
mman.on_sigbus((at(memory), 8 * PAGE), resolver_of(memory))
assert memory[7 * PAGE] == 8
raised(UserFault, lambda: touch(at(memory, 8)))
kinds = {(one.start - at(memory)) // PAGE: one.resolver for one in mman.ranges()}
assert kinds == {0: "callable", 8: "raise"}, kinds
"""
    )


KINDS = {
    "callable": "lambda address: table(7, (address - at(memory)) // PAGE, memory)",
    "source": "__import__('userfault').Bytes(b'7' * 4 * PAGE)",
    "default": "signal.SIG_DFL",
    "none": "None",
}


@pytest.mark.parametrize("kind", KINDS)
def test_system_call_gets_efault_whoever_resolves(act, kind):
    """The kernel asks nobody on the side of SIGBUS; and nothing was put there."""
    act(
        f"""
memory = flagged(4)
mman.on_sigbus(memory, {KINDS[kind]})
reader, writer = os.pipe()
os.write(writer, b"x" * 100)
for call in (lambda: os.write(writer, memoryview(memory)[:9]), lambda: os.readv(reader, [memoryview(memory)[PAGE : PAGE + 9]])):
    assert errno_of(call) == errno.EFAULT
assert mman.remap_anon_pages(at(memory), filled(3), PAGE) == PAGE
assert os.write(writer, memoryview(memory)[:9]) == 9
"""
    )


def test_on_sigbus_of_a_range_without_the_flag_is_einval(act):
    """There is nothing to resolve."""
    act(
        """
memory = mman.anonymous(2 * PAGE)
assert errno_of(mman.on_sigbus, memory, None) == errno.EINVAL
mman.madvise(memory, mman.MADV_USERFAULT)
mman.on_sigbus(memory, None)
mman.madvise(memory, mman.MADV_NOUSERFAULT)
assert errno_of(mman.on_sigbus, memory, print) == errno.EINVAL
"""
    )


def test_on_sigbus_of_something_else_is_a_type_error(act):
    """Neither a callable, nor a source, nor SIG_DFL, nor None."""
    act(
        """
memory = flagged(1)
for wrong in (7, "path", signal.SIG_IGN, b"bytes"):
    raised((TypeError, ValueError), lambda wrong=wrong: mman.on_sigbus(memory, wrong))
"""
    )


def test_resolver_survives_a_registration(act):
    """While a descriptor owns the range it is not asked; after unregister it is again."""
    act(
        SQUARE
        + """
memory = resolved()
with mman.userfaultfd() as it:
    it.register(memory)
    thread = waiting(it, at(memory))
    assert it.read_fault() == at(memory) and not calls
    table(99, 0, memory)
    it.wake(at(memory))
    assert thread.ended() == 99
    it.unregister(memory)
    assert memory[PAGE] == 2
assert memory[2 * PAGE] == 3
"""
    )


def test_resolver_is_let_go_with_its_range(act):
    """A callable that is replaced, or whose range is unmapped or unflagged, is not kept alive."""
    act(
        """
import weakref
class Resolver:
    def __call__(self, address):
        pass
def unmapped(memory):
    memory.close()
def replaced(memory):
    mman.on_sigbus(memory, None)
def unflagged(memory):
    mman.madvise(memory, mman.MADV_NOUSERFAULT)
for end in (unmapped, replaced, unflagged):
    memory, resolver = flagged(2), Resolver()
    mman.on_sigbus(memory, resolver)
    last = weakref.ref(resolver)
    del resolver
    end(memory)
    eventually(lambda: mman.ranges() is not None and gc.collect() >= 0 and last() is None, what=end.__name__)
"""
    )


def test_handler_of_faulthandler_enabled_before_is_no_hindrance(act):
    """Normal touches print nothing."""
    act(SQUARE + "memory = resolved()\nassert bytes(memory) == known", faulthandler=True)
