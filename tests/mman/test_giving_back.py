"""Flagged memory in long use: direct I/O beside forks, and memory that is given back and filled again."""

from __future__ import annotations

import os

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

DIRECT = """
forks = int(sys.argv[1])
warnings.simplefilter("ignore", DeprecationWarning)
PAGES = 256
data = known_bytes(PAGES * PAGE).tobytes()
with open("data", "wb") as file:
    file.write(data)
    os.fsync(file.fileno())
try:
    file = os.open("data", os.O_RDONLY | os.O_DIRECT)
    os.preadv(file, [mman.anonymous(PAGE)], 0)
except OSError as error:
    print("no O_DIRECT:", error)
    os._exit(0)
memory, done = mman.anonymous(PAGES * PAGE), []
def read():
    rounds = 0
    view = memoryview(memory)
    while not done or rounds < 3:
        for start in range(0, PAGES * PAGE, 32 * PAGE):
            assert os.preadv(file, [view[start : start + 32 * PAGE]], start) == 32 * PAGE
        assert bytes(memory) == data, "other bytes"
        mman.madvise((at(memory), PAGES // 2 * PAGE), mman.MADV_DONTNEED)
        memory[PAGES // 2 * PAGE :] = bytes(PAGES // 2 * PAGE)
        rounds += 1
    print(rounds, "rounds")
def fork():
    try:
        for _ in range(forks // 2):
            process = os.fork()
            if process == 0:
                os._exit(0)
            assert os.waitpid(process, 0)[1] == 0
    finally:
        done.append(1)
with served(memory, lambda page: 1):
    in_threads(read, fork, fork, seconds=float(sys.argv[2]))
os._exit(0)
"""


def direct(act, forks, seconds):
    told = act(DIRECT, args=[forks, seconds], timeout=seconds + 10).stdout
    if told.startswith("no O_DIRECT"):
        pytest.skip(told)


def test_direct_reads_into_flagged_memory_while_others_fork_get_every_byte(act):
    """The classic way to lose a page: a fork between the pin and the write. 100 forks."""
    direct(act, 100, 60)


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_direct_reads_into_flagged_memory_while_others_fork_a_thousand_times_get_every_byte(act):
    """The long form."""
    direct(act, 1000, 600)


class Group:
    """A memory cgroup of version 1 or 2."""

    def __init__(self, limit: int) -> None:
        first, second = "/sys/fs/cgroup/memory", "/sys/fs/cgroup"
        self.old = os.path.exists(f"{first}/memory.limit_in_bytes")
        if not self.old and "memory" not in self.text(f"{second}/cgroup.subtree_control"):
            pytest.skip("there is no memory cgroup here")
        self.path = f"{first if self.old else second}/userfault-test-{os.getpid()}"
        try:
            os.mkdir(self.path)
        except OSError as error:
            pytest.skip(f"no memory cgroup can be made here: {error}")
        with open(f"{self.path}/{'memory.limit_in_bytes' if self.old else 'memory.max'}", "w") as file:
            file.write(str(limit))

    @staticmethod
    def text(path: str) -> str:
        try:
            with open(path) as file:
                return file.read()
        except OSError:
            return ""

    def remove(self) -> None:
        os.rmdir(self.path)


def balloon(act, rounds, seconds):
    """40 MiB filled and given back where 96 MiB are allowed; each round faults again and gets its own bytes."""
    group = Group(96 << 20)
    try:
        act(
            """
with open(sys.argv[1] + "/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
pages, block = 10_240, 256
memory = flagged(pages)
staging = mman.anonymous(block * PAGE)
rounds = int(sys.argv[2])
for round in range(1, rounds + 1):
    for page in range(0, pages, block):
        staging[:] = bytes([round % 255 + 1]) * len(staging)
        assert mman.remap_anon_pages(at(memory, page), at(staging), block * PAGE) == block * PAGE
    array = np.frombuffer(memory, "u1")
    assert int(array[::PAGE].sum(dtype="u8")) == (round % 255 + 1) * pages
    del array
    mman.madvise(memory, mman.MADV_DONTNEED)
    for page in (0, pages // 2, pages - 1):
        raised(UserFault, lambda page=page: touch(at(memory, page)))
assert resident_bytes() < 90 << 20, resident_bytes()
""",
            args=[group.path, rounds],
            timeout=seconds,
        )
    finally:
        group.remove()


@pytest.mark.root
def test_balloon_rounds_in_a_small_cgroup_never_run_out(act):
    """Ten of them."""
    balloon(act, 10, 60)


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(700)
def test_a_thousand_balloon_rounds_in_a_small_cgroup_never_run_out(act):
    """The long form: 40 GiB go through 96 MiB, and nobody is killed."""
    balloon(act, 1000, 600)


def test_page_that_a_balloon_takes_as_soon_as_it_came_is_no_failure_of_its_resolver(act):
    """Another thread drops pages all the time: each touch gets its byte, in two threads."""
    act(
        """
memory, done = flagged(8), []
def resolver(address):
    assert errno_of(table, 7, (address - at(memory)) // PAGE, memory) in (0, errno.EEXIST)  # the other thread was faster
mman.on_sigbus(memory, resolver)
def balloon():
    while not done:
        memory.madvise(mmap.MADV_DONTNEED)
def work():
    try:
        for round in range(3000):
            assert memory[round % 8 * PAGE] == 7
    finally:
        done.append(1)
in_threads(balloon, work, work, seconds=30)
""",
        timeout=40,
    )


def test_page_that_is_dropped_by_its_own_resolver_is_user_fault(act):
    """It came, each time: there is an end to it all the same."""
    act(
        """
memory, calls = flagged(1), []
def resolver(address):
    calls.append(address)
    table(7, 0, memory)
    memory.madvise(mmap.MADV_DONTNEED)
mman.on_sigbus(memory, resolver)
raised(UserFault, lambda: touch(at(memory)))
assert 1 < len(calls) < 5000, len(calls)
"""
    )


def test_page_that_comes_where_an_error_was_shown_stays(act):
    """A failed touch shows a pattern, which is taken away later: not if the page was dropped and filled meanwhile."""
    act(
        """
memory, done, faults = flagged(1), [], []
def fail():
    while not done:
        try:
            assert load(at(memory)) in (7, 255)
            len("")
        except UserFault:
            faults.append(1)
def work():
    try:
        for round in range(3000):
            memory.madvise(mmap.MADV_DONTNEED)
            while errno_of(table, 7, 0, memory) == errno.EEXIST:
                pass
            for _ in range(3):
                assert load(at(memory)) == 7
                len("")
    finally:
        done.append(1)
in_threads(fail, work, seconds=30)
assert faults
""",
        timeout=40,
    )
