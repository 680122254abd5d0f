"""A Python thread serves the descriptor, while other threads touch with the GIL held: the obvious program of 2014."""

from __future__ import annotations

import pytest

from mman.touches import PREPARE, READS, SYSTEM_CALLS, WRITES

pytestmark = pytest.mark.kernel

TOUCHES = READS | WRITES | SYSTEM_CALLS


@pytest.mark.parametrize("name", TOUCHES)
def test_touch_beside_a_python_server_gets_the_bytes(act, name):
    """In the main thread and in another; the server read every fault that there was."""
    act(
        PREPARE
        + f"""
def run(memory):
    {TOUCHES[name]}
kept = []  # the server may still be told of a thread that came second
for runner in (lambda work: work(), in_threads):
    memory = mman.anonymous(PAGES * PAGE)
    kept.append(memory)
    with served(memory, lambda page: page + 1) as seen:
        runner(lambda: run(memory))
        assert seen
os._exit(0)
"""
    )


def test_six_threads_beside_a_python_server_get_the_bytes(act):
    """All the kinds of touch at once, on a fresh range for each round."""
    body = "".join(f"def touch_{name}(memory):\n    {code}\n" for name, code in READS.items())
    names = ", ".join(f"touch_{name}" for name in READS)
    act(
        PREPARE
        + body
        + f"""
all_ = [{names}]
for round in range(6):
    memory = mman.anonymous(PAGES * PAGE)
    with served(memory, lambda page: page + 1):
        def work(first):
            for step in range(len(all_)):
                all_[(first + step) % len(all_)](memory)
        in_threads(*[lambda first=first: work(first * 3) for first in range(6)])
        check(bytes(memory), known)
os._exit(0)
""",
        timeout=50,
    )


def test_random_touches_of_six_threads_beside_a_python_server(act):
    """Each thread in an order of its own over 512 pages."""
    act(
        """
memory = mman.anonymous(512 * PAGE)
with served(memory, lambda page: page % 255 + 1) as seen:
    def work(seed):
        for page in np.random.default_rng(seed).permutation(512):
            assert memory[int(page) * PAGE + seed] == page % 255 + 1
    in_threads(*[lambda seed=seed: work(seed) for seed in range(6)])
    assert len({address // PAGE for address in seen}) == 512
os._exit(0)
""",
        timeout=50,
    )


def test_python_server_under_a_timer_at_one_kilohertz(act):
    """Signals restart the wait in the kernel: no fault is lost, none is read twice for ever."""
    act(
        """
ticks = []
signal.signal(signal.SIGALRM, lambda *rest: ticks.append(1))
memory = mman.anonymous(1024 * PAGE)
with served(memory, lambda page: page % 255 + 1):
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    assert all(memory[page * PAGE] == page % 255 + 1 for page in range(512))
    assert int(np.frombuffer(memory, "u1").astype("u8").sum()) == PAGE * sum(page % 255 + 1 for page in range(1024))
    signal.setitimer(signal.ITIMER_REAL, 0)
assert ticks
os._exit(0)
""",
        timeout=50,
    )


def test_timeout_of_a_touch_that_nobody_serves_is_user_fault(act):
    """Never zeros; with no timeout it waits."""
    act(
        """
memory = flagged(3)
with mman.userfaultfd(timeout=0.4) as it:
    it.register(memory)
    began = time.monotonic()
    raised(UserFault, lambda: touch(at(memory)))
    assert 0.2 < time.monotonic() - began < 10
endless = mman.userfaultfd(timeout=None)
endless.register(memory)
thread = waiting(endless, at(memory, 1))
thread.join(1)
assert thread.is_alive()
os._exit(0)
"""
    )


def test_ctrl_c_ends_a_wait_for_a_page(act):
    """KeyboardInterrupt in the main thread, although no server comes."""
    act(
        """
memory = flagged(1)
it = mman.userfaultfd(timeout=None)
it.register(memory)
try:
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
    touch(at(memory))
    len("")
except KeyboardInterrupt:
    os._exit(0)
os._exit(3)
"""
    )


def test_server_may_prepare_pages_ahead(act):
    """More is moved than was asked for: the pages around it need no fault."""
    act(
        """
memory, seen = mman.anonymous(64 * PAGE), []
mman.madvise(memory, mman.MADV_USERFAULT)
it = mman.userfaultfd()
it.register(memory)
def serve():
    while True:
        block = (it.read_fault() - at(memory)) // PAGE // 8 * 8
        seen.append(block)
        mman.remap_anon_pages(at(memory, block), filled(block + 1, 8), 8 * PAGE)
        it.wake(at(memory, block), 8 * PAGE)
threading.Thread(target=serve, daemon=True).start()
assert [memory[page * PAGE] for page in range(64)] == [page // 8 * 8 + 1 for page in range(64)]
assert seen == list(range(0, 64, 8)), seen
os._exit(0)
"""
    )


def test_two_threads_serve_one_descriptor(act):
    """Each fault is read by one of them."""
    act(
        """
memory, seen = mman.anonymous(256 * PAGE), []
mman.madvise(memory, mman.MADV_USERFAULT)
it = mman.userfaultfd()
it.register(memory)
def serve():
    while True:
        address = it.read_fault()
        seen.append(address)
        table(7, (address - at(memory)) // PAGE, memory)
        it.wake(address // PAGE * PAGE)
for _ in range(2):
    threading.Thread(target=serve, daemon=True).start()
def work(first):
    assert all(memory[page * PAGE] == 7 for page in range(first, 256, 4))
in_threads(*[lambda first=first: work(first) for first in range(4)])
assert len(seen) == len(set(seen)) == 256
os._exit(0)
""",
        timeout=40,
    )


def test_server_in_an_event_loop_reads_when_the_descriptor_is_readable(act):
    """asyncio.add_reader on the descriptor; the touches are in threads of an executor."""
    act(
        """
import asyncio
memory = flagged(16)
it = mman.userfaultfd(os.O_NONBLOCK)
it.register(memory)
def ready():
    try:
        while True:
            address = it.read_fault()
            table(9, (address - at(memory)) // PAGE, memory)
            it.wake(address // PAGE * PAGE)
    except BlockingIOError:
        return
async def main():
    loop = asyncio.get_running_loop()
    loop.add_reader(it.fileno(), ready)
    got = await asyncio.gather(*[asyncio.to_thread(lambda page=page: memory[page * PAGE]) for page in range(16)])
    assert got == [9] * 16
asyncio.run(main())
os._exit(0)
"""
    )


def test_page_dropped_between_the_move_and_the_wake_is_asked_for_again(act):
    """The toucher looked again, found its page, and lost it while it waited for the GIL: it gives that up once more."""
    act(
        """
holding = ctypes.PyDLL(None, use_errno=True)  # its calls keep the GIL
memory, seen = flagged(1), []
it = mman.userfaultfd(timeout=8)
it.register(memory)
def doing(descriptor, room=ctypes.create_string_buffer(16)):
    holding.pread(descriptor, room, 16, 0)
    return room.raw.split()[0]
def serve():
    descriptor = os.open(f"/proc/self/task/{main}/syscall", os.O_RDONLY)
    seen.append(it.read_fault())
    while doing(descriptor) != b"-1":  # it waits for its page, in the handler
        pass
    table(3, 0, memory)
    holding.tgkill(os.getpid(), main, signal.SIGUSR1)
    while doing(descriptor) == b"-1":  # it found the page, and waits for the GIL
        pass
    while doing(descriptor) == b"running":
        pass
    assert holding.madvise(ctypes.c_void_p(at(memory)), PAGE, mmap.MADV_DONTNEED) == 0
    eventually(lambda: os.pread(descriptor, 2, 0) == b"-1", what="the second wait")  # lets the GIL go meanwhile
    it.wake(at(memory))
    seen.append(it.read_fault())
    table(7, 0, memory)
    it.wake(at(memory))
main = threading.get_native_id()
signal.signal(signal.SIGUSR1, lambda *rest: None)
sys.setswitchinterval(60)
threading.Thread(target=serve, daemon=True).start()
began = time.monotonic()
assert memory[0] == 7
assert time.monotonic() - began < 5 and len(seen) == 2
os._exit(0)
"""
    )


def test_resolver_that_touches_memory_of_a_python_server_gives_up_the_gil(act):
    """Faults within faults: the resolver runs in the thread that touched, and waits for a page of another range itself."""
    act(
        """
inner, outer = mman.anonymous(8 * PAGE), flagged(8)
with served(inner, lambda page: page + 1, timeout=5) as seen:
    def resolver(address):
        page = (address - at(outer)) // PAGE
        table(inner[page * PAGE], page, outer)
    mman.on_sigbus(outer, resolver)
    assert [outer[page * PAGE] for page in range(8)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert len(seen) >= 8
os._exit(0)
"""
    )


def test_late_request_for_the_gil_leaves_the_thread_alone(act):
    """The signal that asks a waiting thread to give up the GIL may come when it has gone on, and is in an allocation, say."""
    act(
        """
class Queued(ctypes.Structure):  # siginfo_t of a queued signal
    _fields_ = [(name, ctypes.c_int) for name in ("signal", "errno", "code", "padding", "process", "user")]
    _fields_ += [(name, ctypes.c_size_t) for name in ("value", "instruction", "stack")] + [("rest", ctypes.c_char * 80)]

memory = flagged(2)
it = mman.userfaultfd(timeout="30s")
it.register(memory)
with open("/proc/self/status") as status:
    caught = next(line for line in status if line.startswith("SigCgt:")).split()[1]
number = int(caught, 16).bit_length()
assert number > signal.SIGRTMIN, caught
queued = Queued(number, 0, -1, 0, os.getpid(), os.getuid(), at(memory, 1), 1, 1)
rt_tgsigqueueinfo = 297 if os.uname().machine == "x86_64" else 240
began = time.monotonic()
for _ in range(100):
    assert libc.syscall(rt_tgsigqueueinfo, os.getpid(), threading.get_native_id(), number, ctypes.byref(queued)) == 0
assert time.monotonic() - began < 15  # it did not wait for a page
assert not select.select([it], [], [], 0)[0]  # nor ask for one
"""
    )
