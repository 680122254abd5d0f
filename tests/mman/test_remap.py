"""B2, remap_anon_pages, rule by rule: pages move, nothing is copied, nobody is woken.

EINVAL for flags, alignment, no length, no mapping or two, shared memory, other protection or mlock; EEXIST, ENOENT (or holes
skipped), EBUSY, EFAULT by page; a short count after progress; whole huge pages; the destination need not be registered.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
import threading
import warnings

import pytest

from mman.kit import (
    PAGE,
    UserFault,
    at,
    errno_of,
    filled,
    flagged,
    libc,
    mapped,
    mman,
    other_memory,
    raised,
    table,
    touch,
    vm_flags,
)

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]


def test_remap_moves_the_pages_and_leaves_holes_behind(act):
    """All bytes arrive; the source reads as zeros."""

    def code():
        memory, source = flagged(4), filled(b"".join(bytes([n]) * PAGE for n in (1, 2, 3, 4)), 4)
        assert mman.remap_anon_pages(at(memory), at(source), 4 * PAGE) == 4 * PAGE
        assert [memory[n * PAGE + 7] for n in range(4)] == [1, 2, 3, 4]
        assert bytes(source) == bytes(4 * PAGE)
        memory[0] = 9
        assert memory[0] == 9

    act(code)


def test_remap_takes_ranges_and_the_shorter_length(act):
    """Buffers instead of addresses; the length may be left out."""

    def code():
        memory, source = flagged(4), filled(7, 2)
        assert mman.remap_anon_pages(memory, source) == 2 * PAGE
        assert memory[2 * PAGE - 1] == 7
        assert mman.remap_anon_pages(memoryview(memory)[3 * PAGE :], filled(8, 4)) == PAGE
        assert memory[3 * PAGE] == 8
        raised(UserFault, lambda: touch(at(memory, 2)))

    act(code)


def test_remap_needs_neither_flag_nor_registration(act):
    """The destination may be any private mapping, and stays without a flag."""

    def code():
        memory = mman.anonymous(4 * PAGE)
        assert table(7, 1, memory) == PAGE
        assert (memory[PAGE], memory[0], memory[2 * PAGE]) == (7, 0, 0)
        assert mman.ranges() == []

    act(code)


def test_remap_within_one_mapping_moves(act):
    """Source and destination may be the same mapping."""

    def code():
        memory = mman.anonymous(4 * PAGE)
        memory[:PAGE] = b"\7" * PAGE
        assert mman.remap_anon_pages(at(memory, 3), at(memory), PAGE) == PAGE
        assert (memory[3 * PAGE], memory[0]) == (7, 0)

    act(code)


def test_remap_out_of_a_flagged_range_leaves_a_hole_that_faults(act):
    """The source's hole is under the source's rules."""

    def code():
        source = filled(7, 2)
        mman.madvise(source, mman.MADV_USERFAULT)
        memory = mman.anonymous(PAGE)
        assert mman.remap_anon_pages(at(memory), at(source), PAGE) == PAGE
        assert memory[0] == 7
        raised(UserFault, lambda: touch(at(source)))
        assert source[PAGE] == 7

    act(code)


def test_remap_leaves_the_source_to_be_filled_again(act):
    """The same staging page serves a hundred moves."""

    def code():
        memory, staging = flagged(100), mman.anonymous(PAGE)
        for page in range(100):
            staging[:] = bytes([page + 1]) * PAGE
            assert mman.remap_anon_pages(at(memory, page), at(staging), PAGE) == PAGE
        assert [memory[page * PAGE] for page in range(100)] == list(range(1, 101))

    act(code)


@pytest.mark.parametrize("flags", [2, 4, 1 << 31, 3])
def test_remap_with_unknown_flags_is_einval(act, flags):
    """One flag is known."""

    def code():
        memory, source = flagged(1), filled(7)
        assert errno_of(mman.remap_anon_pages, at(memory), at(source), PAGE, int(sys.argv[1])) == errno.EINVAL
        assert source[0] == 7

    act(code, args=[flags])


def test_remap_of_an_unaligned_range_is_einval(act):
    """Destination, source, length."""

    def code():
        memory, source = flagged(2), filled(7, 2)
        for dst, src, length in ((16, 0, PAGE), (0, 16, PAGE), (0, 0, 16), (0, 0, PAGE + 1)):
            assert errno_of(mman.remap_anon_pages, at(memory) + dst, at(source) + src, length) == errno.EINVAL
        assert bytes(source) == b"\7" * len(source)

    act(code)


def test_remap_of_no_length_is_einval(act):
    """Success never says 0."""

    def code():
        memory, source = flagged(1), filled(7)
        assert errno_of(mman.remap_anon_pages, at(memory), at(source), 0) == errno.EINVAL

    act(code)


def test_remap_beyond_the_end_of_all_addresses_is_einval(act):
    """A range that wraps around."""

    def code():
        memory, source = flagged(1), filled(7)
        length = (1 << 64) - PAGE
        assert errno_of(mman.remap_anon_pages, at(memory), at(source), length) == errno.EINVAL
        assert errno_of(mman.remap_anon_pages, (1 << 64) - PAGE, at(source), 2 * PAGE) == errno.EINVAL
        assert errno_of(mman.remap_anon_pages, at(memory), (1 << 64) - PAGE, 2 * PAGE) == errno.EINVAL

    act(code)


def test_remap_where_nothing_is_mapped_is_einval(act):
    """On either side, wholly or in part."""

    def code():
        memory, source = flagged(2), filled(7, 2)
        hole = mapped(4 * PAGE)
        libc.munmap(hole + PAGE, 2 * PAGE)
        for dst, src, length in (
            (hole + PAGE, at(source), PAGE),
            (at(memory), hole + PAGE, PAGE),
            (hole, at(source), 2 * PAGE),
            (at(memory), hole, 2 * PAGE),
        ):
            assert errno_of(mman.remap_anon_pages, dst, src, length) == errno.EINVAL, (hex(dst), hex(src))
        assert bytes(source) == b"\7" * len(source)

    act(code)


def test_remap_over_two_mappings_is_einval(act):
    """Source and destination lie in one mapping each."""

    def code():
        source = filled(7, 2)
        memory = mman.anonymous(2 * PAGE)
        mman.madvise((at(memory, 1), PAGE), mman.MADV_USERFAULT)  # half of it flagged: two mappings
        assert errno_of(mman.remap_anon_pages, at(memory), at(source), 2 * PAGE) == errno.EINVAL
        libc.mprotect(at(source, 1), PAGE, 1)
        assert errno_of(mman.remap_anon_pages, mman.anonymous(2 * PAGE), at(source), 2 * PAGE) == errno.EINVAL

    act(code)


@pytest.mark.parametrize("end", ["dst", "src"])
def test_remap_over_memory_of_two_descriptors_is_einval(act, end):
    """Two mappings in 2014, also where nothing is flagged and the kernel of today holds it to be one."""

    def code():
        memory, source = mman.anonymous(2 * PAGE), filled(7, 2)
        shared = memory if sys.argv[1] == "dst" else source
        with mman.userfaultfd() as first, mman.userfaultfd() as second:
            first.register((at(shared), PAGE))
            second.register((at(shared, 1), PAGE))
            assert errno_of(mman.remap_anon_pages, at(memory), at(source), 2 * PAGE) == errno.EINVAL
        assert mman.remap_anon_pages(at(memory), at(source), 2 * PAGE) == 2 * PAGE

    act(code, args=[end])


@pytest.mark.parametrize("kind", ["shared", "memfd", "file"])
def test_remap_of_a_shared_mapping_is_einval(act, kind):
    """On either side."""

    def code():
        other, memory = other_memory(sys.argv[1]), filled(7)
        assert errno_of(mman.remap_anon_pages, other, at(memory), PAGE) == errno.EINVAL
        assert errno_of(mman.remap_anon_pages, mman.anonymous(PAGE), other, PAGE) == errno.EINVAL
        assert memory[0] == 7

    act(code, args=[kind])


def test_remap_between_different_protections_is_einval(act):
    """Readable and writable on one side, only readable on the other."""

    def code():
        memory, source = flagged(1), filled(7)
        libc.mprotect(at(memory), PAGE, 1)
        assert errno_of(mman.remap_anon_pages, at(memory), at(source), PAGE) == errno.EINVAL

    act(code)


@pytest.mark.parametrize("which", ["source", "destination", "both"])
def test_remap_between_different_mlock_states_is_einval(act, which):
    """Locked on one side alone; both is fine."""

    def code():
        from ctypes import c_void_p

        which = sys.argv[1]
        memory, source = mman.anonymous(PAGE), filled(7)
        if which != "source":
            assert libc.mlock2(c_void_p(at(memory)), PAGE, 1) == 0  # 1: lock as pages come
        if which != "destination":
            assert libc.mlock2(c_void_p(at(source)), PAGE, 1) == 0
        got = errno_of(mman.remap_anon_pages, at(memory), at(source), PAGE)
        assert got == (0 if which == "both" else errno.EINVAL), got

    act(code, args=[which])


def test_remap_onto_a_present_page_is_eexist(act):
    """Also where it holds zeros; neither side changes."""

    def code():
        memory, source = filled(5, 2), filled(7)
        mman.madvise(memory, mman.MADV_USERFAULT)
        assert errno_of(mman.remap_anon_pages, at(memory), at(source), PAGE) == errno.EEXIST
        assert (memory[0], source[0]) == (5, 7)
        zeros = mman.anonymous(PAGE)
        assert zeros[0] == 0
        assert errno_of(mman.remap_anon_pages, at(zeros), at(source), PAGE) == errno.EEXIST

    act(code)


def test_remap_of_a_hole_is_enoent(act):
    """The source was never touched."""

    def code():
        memory, source = flagged(2), mman.anonymous(2 * PAGE)
        assert errno_of(mman.remap_anon_pages, at(memory), at(source), PAGE) == errno.ENOENT
        raised(UserFault, lambda: touch(at(memory)))

    act(code)


def test_remap_with_allow_src_holes_passes_over_holes_and_counts_them(act):
    """The destination stays a hole there; nothing but holes is success too."""

    def code():
        memory, source = flagged(4), mman.anonymous(4 * PAGE)
        source[PAGE], source[3 * PAGE] = 1, 3
        assert mman.remap_anon_pages(at(memory), at(source), 4 * PAGE, mman.RAP_ALLOW_SRC_HOLES) == 4 * PAGE
        assert (memory[PAGE], memory[3 * PAGE]) == (1, 3)
        for page in (0, 2):
            raised(UserFault, lambda page=page: touch(at(memory, page)))
        assert mman.remap_anon_pages(at(memory), at(source), PAGE, mman.RAP_ALLOW_SRC_HOLES) == PAGE

    act(code)


def test_remap_that_stops_after_progress_is_a_short_count(act):
    """The count first; the same call again from there says why."""

    def code():
        memory, source = flagged(4), filled(7, 4)
        table(5, 2, memory)
        assert mman.remap_anon_pages(at(memory), at(source), 4 * PAGE) == 2 * PAGE
        assert errno_of(mman.remap_anon_pages, at(memory, 2), at(source, 2), 2 * PAGE) == errno.EEXIST
        assert (memory[PAGE], memory[2 * PAGE], source[2 * PAGE], source[0]) == (7, 5, 7, 0)
        raised(UserFault, lambda: touch(at(memory, 3)))

        memory, source = flagged(4), filled(7, 4)
        mman.madvise((at(source, 1), PAGE), mman.MADV_DONTNEED)
        assert mman.remap_anon_pages(at(memory), at(source), 4 * PAGE) == PAGE
        assert errno_of(mman.remap_anon_pages, at(memory, 1), at(source, 1), 3 * PAGE) == errno.ENOENT

    act(code)


def test_remap_of_a_page_that_a_living_fork_child_shares_is_ebusy(act):
    """Never a hidden copy. A source that is DONTFORK is not shared."""

    def code():
        warnings.simplefilter("ignore", DeprecationWarning)
        memory, shared, own = flagged(2), filled(7), filled(8)
        mman.madvise(own, mman.MADV_DONTFORK)
        child = os.fork()
        if child == 0:
            signal.pause()
        try:
            assert errno_of(mman.remap_anon_pages, at(memory), at(shared), PAGE) == errno.EBUSY
            assert mman.remap_anon_pages(at(memory, 1), at(own), PAGE) == PAGE
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert (shared[0], memory[PAGE]) == (7, 8)
        # The child is gone: as in 2014 the page is the parent's alone, although today's kernel would still refuse it.
        assert mman.remap_anon_pages(at(memory), at(shared), PAGE) == PAGE
        assert memory[0] == 7

    act(code)


def test_remap_wakes_nobody(act):
    """The system call that waits goes on after the wake, and not before.

    (A touch in user code may go on as soon as the page is there: it is sent a signal, so that it gives up the GIL.)
    """

    def code():
        from kernel.touching import asleep_in_fault

        memory = flagged(1)
        out, into = os.pipe()

        def write():
            os.write(into, memoryview(memory)[:1])
            seen.append(os.read(out, 1)[0])

        with mman.userfaultfd() as descriptor:
            descriptor.register(memory)
            seen = []
            thread = threading.Thread(target=write, daemon=True)
            thread.start()
            assert descriptor.read_fault() == at(memory)
            asleep_in_fault(thread)
            assert table(7, 0, memory) == PAGE
            thread.join(0.2)
            assert seen == []
            assert descriptor.unwoken == 1
            descriptor.wake(at(memory))
            thread.join(5)
            assert seen == [7]

    act(code)


def test_remap_changes_no_mapping(act):
    """The kernel's list of mappings stays as it was."""

    def code():
        from support.lazy import maps

        memory, source = flagged(64), filled(7, 64)
        before, flags = maps(), vm_flags(at(memory))
        mman.remap_anon_pages(memory, source)
        assert vm_flags(at(memory)) == flags
        assert [one for one in maps() if one[0] == at(memory)] == [one for one in before if one[0] == at(memory)]

    act(code)


def test_remap_of_huge_pages_moves_all_of_their_bytes(act):
    """2 MiB of one huge page where the machine has them; aligned, and again page by page."""

    def code():
        huge = 2 << 20
        start = -(-mapped(8 * huge) // huge) * huge
        memory, source = (start, huge), (start + 3 * huge, huge)
        mman.madvise((start, 6 * huge), mman.MADV_HUGEPAGE)
        view = (ctypes.c_ubyte * huge).from_address(source[0])
        bytes_ = bytes(range(256)) * (huge // 256)
        view[:] = bytes_
        mman.madvise(memory, mman.MADV_USERFAULT)
        assert mman.remap_anon_pages(memory, source) == huge
        assert bytes((ctypes.c_ubyte * huge).from_address(start)) == bytes_
        back = start + 5 * huge
        for offset in range(0, huge, 64 * PAGE):
            assert mman.remap_anon_pages(back + offset, start + offset, 64 * PAGE) == 64 * PAGE
        assert bytes((ctypes.c_ubyte * huge).from_address(back)) == bytes_
        raised(UserFault, lambda: touch(start + 5))

    act(code)


def test_move_beside_an_event_that_is_read_late_waits_for_it(act):
    """The kernel says EAGAIN while munmap's event is unread; the proposal never lets that out."""
    act(
        """
import subprocess
memory, staging, rounds = flagged(1), filled(7), []
cpu = max(os.sched_getaffinity(0))
for task in os.listdir("/proc/self/task"):
    with open(f"/proc/self/task/{task}/comm") as file:
        if file.read().startswith("userfault-pump"):  # it reads events, and gets hardly any time
            os.sched_setscheduler(int(task), os.SCHED_IDLE, os.sched_param(0))
            os.sched_setaffinity(int(task), {cpu})
spin = f"import os\\nos.sched_setaffinity(0, {{{cpu}}})\\nprint(flush=True)\\nwhile True: pass"
spinning = subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE)
try:
    assert spinning.stdout.readline()
    def unmap():
        for _ in range(20):
            flagged(2).close()
            rounds.append(1)
    thread = threading.Thread(target=unmap)
    thread.start()
    while thread.is_alive():
        mman.remap_anon_pages(at(memory), staging, PAGE)
        mman.remap_anon_pages(at(staging), memory, PAGE)
    assert len(rounds) == 20
finally:
    spinning.kill()
    spinning.communicate()
""",
        timeout=60,
    )
