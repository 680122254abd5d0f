"""B1, a flag of the mapping: it goes where the mapping goes, is split and joined with it, and ends with it."""

from __future__ import annotations

import errno
import mmap
import os
import sys
import time

import pytest

from mman.kit import (
    PAGE,
    UserFault,
    at,
    errno_of,
    filled,
    flagged,
    in_threads,
    libc,
    mapped,
    mman,
    move_mapping,
    raised,
    table,
    touch,
)
from mman.waiting import bits, waiting

#: The rules here are those of options 3 and 1 alike.
UNDER = ("madvise", "mprotect")
pytestmark = pytest.mark.kernel


def test_munmap_ends_the_flag(act):
    """A new mapping at the old address is ordinary."""

    def code():
        start = mapped(4 * PAGE)
        mman.madvise((start, 4 * PAGE), mman.MADV_USERFAULT)
        libc.munmap(start, 4 * PAGE)
        mapped(4 * PAGE, address=start)
        assert touch(start) == 0
        assert mman.ranges() == []

    act(code)


def test_munmap_of_a_part_ends_the_flag_of_that_part(act):
    """What remains on both sides goes on faulting."""

    def code():
        start = mapped(5 * PAGE)
        mman.madvise((start, 5 * PAGE), mman.MADV_USERFAULT)
        libc.munmap(start + 2 * PAGE, PAGE)
        mapped(PAGE, address=start + 2 * PAGE)
        assert touch(start + 2 * PAGE) == 0
        for page in (0, 1, 3, 4):
            raised(UserFault, lambda page=page: touch(start + page * PAGE))
        assert sum(one.length for one in mman.ranges()) == 4 * PAGE

    act(code)


def test_mmap_close_ends_the_flag(act):
    """The object that most people hold; a hundred times, since the address is used again."""

    def code():
        for _ in range(100):
            memory = flagged(16)
            raised(UserFault, lambda memory=memory: touch(at(memory, 3)))
            memory.close()
            assert mman.ranges() == []
            fresh = mman.anonymous(16 * PAGE)
            assert fresh[3 * PAGE] == 0

    act(code, timeout=40)


def test_map_fixed_over_a_flagged_range_ends_the_flag(act):
    """The new mapping has no flag, whatever was there."""

    def code():
        memory = flagged(4)
        mapped(PAGE, address=at(memory, 1))
        assert touch(at(memory, 1)) == 0
        raised(UserFault, lambda: touch(at(memory, 0)))
        raised(UserFault, lambda: touch(at(memory, 2)))

    act(code)


@pytest.mark.parametrize("registered", [False, True], ids=["flagged", "registered"])
def test_mremap_takes_the_flag_along(act, registered):
    """And the registration; a new mapping at the old address is ordinary, present pages keep their bytes."""

    def code():
        start, to = mapped(4 * PAGE), mapped(4 * PAGE)
        mman.madvise((start, 4 * PAGE), mman.MADV_USERFAULT)
        mman.remap_anon_pages(start, filled(7), PAGE)
        it = mman.userfaultfd()
        if sys.argv[1] == "True":
            it.register((start, 4 * PAGE))
        move_mapping(start, 4 * PAGE, to)
        mapped(4 * PAGE, address=start)
        assert touch(start) == 0
        assert touch(start + PAGE) == 0
        assert touch(to) == 7
        if sys.argv[1] == "True":
            thread = waiting(it, to + PAGE)
            assert it.read_fault() == to + PAGE
            mman.remap_anon_pages(to + PAGE, filled(8), PAGE)
            it.wake(to + PAGE)
            assert thread.ended() == 8
            it.close()
        raised(UserFault, lambda: touch(to + 2 * PAGE))
        assert [(one.start, one.length) for one in mman.ranges()] == [(to, 4 * PAGE)]

    act(code, args=[str(registered)])


def test_mmap_resize_takes_the_flag_along(act):
    """mmap.resize keeps the GIL while the kernel tells of the move: no deadlock; the old part is flagged where it is now."""

    def code():
        memory = flagged(4)
        table(7, 0, memory)
        barrier = mman.anonymous(PAGE)
        memory.resize(4096 * PAGE)
        assert memory[0] == 7
        for page in (1, 3):
            raised(UserFault, lambda page=page: touch(at(memory, page)))
        assert barrier[0] == 0
        memory.resize(2 * PAGE)
        raised(UserFault, lambda: touch(at(memory, 1)))

    act(code)


def test_mremap_of_a_part_takes_the_flag_of_that_part(act):
    """The hole it leaves in the middle is ordinary once it is mapped again."""

    def code():
        start, to = mapped(5 * PAGE), mapped(PAGE)
        mman.madvise((start, 5 * PAGE), mman.MADV_USERFAULT)
        move_mapping(start + 2 * PAGE, PAGE, to)
        mapped(PAGE, address=start + 2 * PAGE)
        assert touch(start + 2 * PAGE) == 0
        raised(UserFault, lambda: touch(to))
        for page in (0, 1, 3, 4):
            raised(UserFault, lambda page=page: touch(start + page * PAGE))

    act(code)


@pytest.mark.parametrize("moved", ["flagged", "registered"])
def test_a_mapping_moved_over_another_kind_keeps_its_own(act, moved):
    """Flagged memory faults also where registered memory without the flag, which fills with zeros, was; and the reverse."""

    def code():
        it, flag_moves = mman.userfaultfd(), sys.argv[1] == "flagged"
        for _ in range(20):
            start, to = mapped(2 * PAGE), mapped(2 * PAGE)
            with_flag, without = (start, to) if flag_moves else (to, start)
            mman.madvise((with_flag, 2 * PAGE), mman.MADV_USERFAULT)
            it.register((without, 2 * PAGE))
            move_mapping(start, 2 * PAGE, to)
            told = [(one.flagged, one.owner) for one in mman.ranges() if one.start == to]
            assert told == [(flag_moves, None if flag_moves else it.ident)], told
            for page in (to, to + PAGE):
                if flag_moves:
                    raised(UserFault, lambda page=page: touch(page))
                else:
                    assert touch(page) == 0

    act(code, args=[moved])


@pytest.mark.parametrize("how", ["munmap", "fixed", "mremap"])
def test_registration_ends_with_its_mapping(act, how):
    """Another descriptor may have the new mapping there."""

    def code():
        start, to = mapped(2 * PAGE), mapped(2 * PAGE)
        mman.madvise((start, 2 * PAGE), mman.MADV_USERFAULT)
        with mman.userfaultfd() as first, mman.userfaultfd() as second:
            first.register((start, 2 * PAGE))
            if sys.argv[1] == "munmap":
                libc.munmap(start, 2 * PAGE)
            elif sys.argv[1] == "mremap":
                move_mapping(start, 2 * PAGE, to)
            mapped(2 * PAGE, address=start)
            second.register((start, 2 * PAGE))
            assert touch(start) == 0
            mman.madvise((start, 2 * PAGE), mman.MADV_USERFAULT)
            thread = waiting(second, start + PAGE)
            assert first.pending == 0
        assert thread.ended() == "UserFault"

    act(code, args=[how])


def test_registration_of_shared_memory_goes_where_its_mapping_goes(act):
    """It cannot fault, but it has an owner: at its new place, and not at the old one, whatever is mapped there next."""

    def code():
        shared = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
        start, to = mapped(PAGE, flags=shared), mapped(PAGE, flags=shared)
        with mman.userfaultfd() as first, mman.userfaultfd() as second:
            first.register((start, PAGE))
            move_mapping(start, PAGE, to)
            mapped(PAGE, flags=shared, address=start)
            assert [(one.start, one.owner) for one in mman.ranges()] == [(to, first.ident)]
            assert errno_of(second.register, (to, PAGE)) == errno.EBUSY
            second.register((start, PAGE))
            mapped(PAGE, flags=shared, address=to)
            second.register((to, PAGE))
            assert touch(start) == touch(to) == 0

    act(code)


def test_dontneed_and_munmap_under_the_gil_do_not_deadlock(act):
    """mmap.madvise(DONTNEED) keeps the GIL; with flags and registrations, in six threads."""

    def code():
        shared = filled(7, 64)
        mman.madvise(shared, mman.MADV_USERFAULT)
        it = mman.userfaultfd()
        it.register((at(shared, 32), 32 * PAGE))

        def work():
            for _ in range(100):
                memory = filled(7, 16)
                mman.madvise(memory, mman.MADV_USERFAULT)
                memory.madvise(mmap.MADV_DONTNEED, 0, 8 * PAGE)
                raised(UserFault, lambda memory=memory: touch(at(memory)))
                assert memory[9 * PAGE] == 7
                shared.madvise(mmap.MADV_DONTNEED, 32 * PAGE, 16 * PAGE)
                memory.resize(32 * PAGE)
                memory.close()

        in_threads(*[work] * 6, seconds=30)
        assert shared[0] == 7

    act(code, timeout=40)


@pytest.mark.parametrize("how", ["close", "resize"])
def test_flag_survives_the_end_of_older_mappings_at_its_address(act, how):
    """Six threads map, flag, touch, unmap: the kernel gives addresses again at once, and what ended there takes no new flag."""

    def code():
        until = time.monotonic() + 1.5

        def work():
            while time.monotonic() < until:
                memory = mman.anonymous(16 * PAGE)
                mman.madvise(memory, mman.MADV_USERFAULT)
                raised(UserFault, lambda memory=memory: touch(at(memory)))
                if sys.argv[1] == "resize":
                    memory.resize(32 * PAGE)
                memory.close()

        in_threads(*[work] * 6, seconds=20)

    act(code, args=[how])


def test_closerange_leaves_sigbus_in_force(act):
    """A daemon closes all descriptors it does not know: the touch is still a fault, and no page of zeros."""

    def code():
        memory = flagged(4)
        raised(UserFault, lambda: touch(at(memory)))
        os.closerange(3, 65536)
        for page in (1, 2, 3):
            raised(UserFault, lambda page=page: touch(at(memory, page)))
        table(7, 1, memory)
        assert memory[PAGE] == 7
        other = flagged(2)
        raised(UserFault, lambda: touch(at(other)))

    act(code)


def test_numbers_that_closerange_freed_are_used_by_files_unharmed(act):
    """Files opened then have our old numbers: nothing of ours writes to them or closes them."""

    def code():
        memory = flagged(64)
        it = mman.userfaultfd()
        it.register((at(memory, 32), 32 * PAGE))
        os.closerange(3, 65536)
        files = [open(f"{number}", "w+b") for number in range(30)]  # noqa: SIM115
        for number, file in enumerate(files):
            file.write(b"%d" % number)
            file.flush()
        for page in range(4):
            raised(UserFault, lambda page=page: touch(at(memory, page)))
        mman.madvise(memory, mman.MADV_NOUSERFAULT)
        mman.madvise(memory, mman.MADV_USERFAULT)
        memory.close()
        it.close()
        for number, file in enumerate(files):
            file.seek(0)
            assert file.read() == b"%d" % number

    act(code, warnings=None)


def test_numbers_that_a_polled_descriptor_had_are_used_by_sockets_unharmed(act):
    """Poll bits are written to sockets of ours, not to those that have their numbers now; polling goes on under another one."""

    def code():
        import socket

        memory = flagged(8)
        it = mman.userfaultfd()
        it.register(memory)
        old = it.fileno()
        os.closerange(3, 900)
        pairs = [socket.socketpair() for _ in range(20)]
        assert old in {end.fileno() for pair in pairs for end in pair}
        for one, other in pairs:
            one.send(b"mine")
            other.send(b"mine")
        threads = [waiting(it, at(memory, page)) for page in range(3)]
        assert bits(it) == "in"
        assert it.fileno() not in {end.fileno() for pair in pairs for end in pair}
        for _ in threads:
            page = it.read_fault() // PAGE * PAGE
            assert bits(it) in ("in out", "out")
            mman.remap_anon_pages(page, filled(7), PAGE)
            it.wake(page)
        assert [thread.ended() for thread in threads] == [7, 7, 7]
        assert bits(it) == ""
        it.close()
        for pair in pairs:
            for end in pair:
                assert os.fstat(end.fileno())
                end.setblocking(False)
                assert end.recv(99) == b"mine"
        os._exit(0)

    act(code)


def test_numbers_that_closerange_freed_are_used_by_userfaultfds_unharmed(act):
    """The worst that a number can become: another userfaultfd. Pages still move, waiters wake, and the other stays open."""

    def code():
        from userfault import kernel

        memory, plain = flagged(64), mman.anonymous(4 * PAGE)
        it = mman.userfaultfd()
        it.register((at(memory, 32), 32 * PAGE))
        table(3, 0, memory)
        table(3, 0, plain)
        os.closerange(3, 65536)
        others = [kernel.Userfaultfd(user_mode_only=True) for _ in range(40)]
        # Numbers that are given out only where somebody asks for them.
        others += [os.dup2(others[0].fileno(), number) for number in range(490, 520)]
        table(4, 1, memory)
        table(5, 1, plain)
        thread = waiting(it, at(memory, 40))
        assert it.read_fault() == at(memory, 40)
        table(6, 40, memory)
        it.wake(at(memory, 40))
        assert thread.ended() == 6
        assert (memory[0], memory[PAGE], plain[0], plain[PAGE], plain[2 * PAGE]) == (3, 4, 3, 5, 0)
        it.close()
        raised(UserFault, lambda: touch(at(memory, 41)))
        assert all(os.fstat(other if isinstance(other, int) else other.fileno()) for other in others)
        os._exit(0)

    act(code)
