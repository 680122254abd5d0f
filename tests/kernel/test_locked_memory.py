"""Memory that a program locks (mlockall): a page that was not asked for is never a page of zeros."""

from __future__ import annotations

import pytest
from support.regions import run_quietly as run

pytestmark = [pytest.mark.kernel, pytest.mark.root]

CURRENT, FUTURE, ON_FAULT = 1, 2, 4
ZEROS = """
from support.lazy import libc, known_bytes, check_endings
def lock(flags):
    assert libc.mlockall(flags) == 0, "mlockall"
big = known_bytes(6 << 20)
"""
SHAPES = [
    {},
    {"unit": "4KiB"},
    {"unit": "2MiB"},
    {"huge": True},
    {"shared": True, "on_error": "abort"},
    {"resident": "1MiB"},
    {"unit": "4KiB", "resident": "256KiB"},
    {"unit": "256KiB", "resident": "2MiB"},
]
both = pytest.mark.parametrize("delivery", ["thread", "signal"])


@both
@pytest.mark.parametrize("flags", [FUTURE, CURRENT | FUTURE, CURRENT | FUTURE | ON_FAULT])
def test_map_of_a_process_that_locks_what_it_maps_holds_data_and_no_zeros(child, delivery, flags):
    """The kernel fills what is mapped under MCL_FUTURE at once, with zeros: not a region, whose pages come when touched."""
    run(
        child,
        ZEROS
        + f"""
lock({flags})
for shape in {SHAPES}:
    with uf.map(big, delivery={delivery!r}, **shape) as region:
        for _ in range(2):
            assert (region.numpy() == big).all(), shape
            assert (region.numpy()[::-4096] == big[::-4096]).all(), shape
            assert region.evict() > 0
        assert check_endings(region).poisoned == 0
""",
    )


@both
def test_locking_what_is_mapped_leaves_its_pages_right(child, delivery):
    """mlockall(MCL_CURRENT) asks for every page of a region: each is data or stays absent, and evict() still empties it."""
    run(
        child,
        ZEROS
        + f"""
for shape in {SHAPES}:
    with uf.map(big, delivery={delivery!r}, **shape) as region:
        assert region.numpy()[0] == big[0]
        lock({CURRENT | FUTURE})
        for _ in range(2):
            assert (region.numpy() == big).all(), shape
            check_endings(region)  # the toucher goes on before its fault is over, and a unit that has one stays
            assert region.evict() > 0
            before = region.statistics()
            assert region.numpy()[5 << 20] == big[5 << 20]
            assert region.statistics().faults == before.faults + 1, ("evict() left the page there", shape)
        check_endings(region)
    assert libc.munlockall() == 0
""",
    )


def test_working_memory_of_a_process_that_locks_what_it_maps_comes_when_it_is_used(child):
    """Ten images with room for 32 MiB of decoded frames each take what their touches need."""
    run(
        child,
        ZEROS
        + f"""
import shutil
from support.lazy import resident_bytes
from userfault.image import pack
names = [os.path.join(folder, f"{{number}}.zst") for number in range(10)]
pack(big.tobytes(), names[0], frame="1MiB")
for name in names[1:]:
    shutil.copy(names[0], name)
uf.map(names[0]).close()
lock({FUTURE})
before = resident_bytes()
regions = [uf.map(name, unit="64KiB") for name in names]
assert all(region.numpy()[9] == big[9] for region in regions)
assert resident_bytes() - before < (60 << 20), resident_bytes() - before
""",
    )


@both
def test_a_page_that_cannot_be_had_raises_each_time_in_locked_memory(child, delivery):
    """The error pattern does not stay where MADV_DONTNEED is refused, because the memory is locked."""
    run(
        child,
        f"""
from support.lazy import libc, raised
with uf.map(path, delivery={delivery!r}, unit="4KiB") as region:
    os.truncate(path, 4096)
    assert region.numpy()[0] == data[0]
    assert libc.mlockall({CURRENT}) == 0
    for _ in range(3):
        raised(uf.PageError, lambda: int(region.numpy()[8192]))
        with uf.checked():
            pass                                # turns what shows the pattern back into a hole
    assert region.numpy()[0] == data[0]
""",
    )


@pytest.mark.parametrize("hole", [16, 1024], ids=["poisoned", "replaced"])
def test_a_descriptor_gets_the_faults_of_locked_memory_without_a_page_of_zeros(child, hole):
    """Holes of locked memory change owner as any others do: poisoned if small, replaced by a registered twin if large."""
    run(
        child,
        f"""
import threading
from support.lazy import libc
from userfault import mman
assert libc.mlockall({CURRENT | FUTURE}) == 0
page, hole = mman.PAGE_SIZE, {hole}
memory, staging = mman.anonymous(4 * hole * page), mman.anonymous(page)
memory[:] = bytes([7]) * len(memory)
mman.madvise(memory, mman.MADV_USERFAULT)
start = mman.address_of(memory)
mman.madvise((start + hole * page, 2 * hole * page), mman.MADV_DONTNEED_LOCKED)
descriptor = mman.userfaultfd(user_mode_only=True)
descriptor.register(memory)
def serve():
    for _ in range(2):
        at = descriptor.read_fault() & -page
        staging[:5] = b"hello"
        mman.remap_anon_pages(at, staging)
        descriptor.wake(at)
server = threading.Thread(target=serve, daemon=True)
server.start()
for number in (hole, 3 * hole - 1):
    assert memory[number * page : number * page + 5] == b"hello"
server.join()
assert memory[0] == memory[hole * page - 1] == memory[3 * hole * page] == 7
descriptor.close()
""",
    )
