"""B3, commands 1 and 2, and the rule that joins them with the flag of B1: whose faults a descriptor hears.

EINVAL for a range of holes, ENOMEM with nothing above, EBUSY for another's; registered only: zeros; after the close: SIGBUS.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
import threading
import time

import pytest

from mman.kit import (
    PAGE,
    UserFault,
    at,
    errno_of,
    eventually,
    flagged,
    in_threads,
    libc,
    mapped,
    mman,
    other_memory,
    raised,
    table,
    touch,
)
from mman.waiting import Touching, command, owner_of_pages, waiting

#: The rules here are those of options 3 and 1 alike.
UNDER = ("madvise", "mprotect")
pytestmark = pytest.mark.kernel

# Register and unregister


def test_register_and_unregister_by_write_return_sixteen(act):
    """The methods are these writes."""

    def code():
        memory = flagged(1)
        with mman.userfaultfd() as it:
            assert it.write(command(at(memory), at(memory, 1), 1)) == 16
            assert [one.owner is None for one in mman.ranges()] == [False]
            assert it.write(command(at(memory), at(memory, 1), 2)) == 16
            assert [one.owner is None for one in mman.ranges()] == [True]

    act(code)


@pytest.mark.parametrize("method", ["register", "unregister"])
def test_register_of_nothing_but_a_hole_is_einval(act, method):
    """And ENOMEM where nothing at all is mapped from there on."""

    def code():
        hole = mapped(3 * PAGE)
        libc.munmap(hole + PAGE, PAGE)
        with mman.userfaultfd() as it:
            call = getattr(it, sys.argv[1])
            assert errno_of(call, (hole + PAGE, PAGE)) == errno.EINVAL
            top = (1 << 47) - 2 * PAGE
            assert errno_of(call, (top, PAGE)) == errno.ENOMEM
            call((hole, 3 * PAGE))  # with a hole in the middle it is fine

    act(code, args=[method])


@pytest.mark.parametrize("flag", [True, False], ids=["flagged", "unflagged"])
@pytest.mark.parametrize("method", ["register", "unregister"])
def test_register_of_what_another_descriptor_owns_is_ebusy(act, method, flag):
    """The mappings before it are done, those after it are not; also where the kernel holds all of it to be one mapping."""

    def code():
        memory = flagged(3) if sys.argv[2] == "True" else mman.anonymous(3 * PAGE)
        with mman.userfaultfd() as other, mman.userfaultfd() as it:
            other.register((at(memory, 1), PAGE))
            if sys.argv[1] == "unregister":
                it.register((at(memory, 0), PAGE))
                it.register((at(memory, 2), PAGE))
            assert errno_of(getattr(it, sys.argv[1]), memory) == errno.EBUSY
            owners = owner_of_pages(memory)
            if sys.argv[1] == "register":
                assert owners[0] is not None
                assert owners[2] is None
            else:
                assert owners[0] is None
                assert owners[2] is not None
            assert owners[1] not in (None, owners[0], owners[2])

    act(code, args=[method, str(flag)])


def test_register_twice_with_the_same_descriptor_is_fine(act):
    """And of more than before."""

    def code():
        memory = flagged(3)
        with mman.userfaultfd() as it:
            it.register((at(memory, 1), PAGE))
            it.register((at(memory, 1), PAGE))
            it.register(memory)
            thread = waiting(it, at(memory, 2))
        assert thread.ended() == "UserFault"

    act(code)


@pytest.mark.parametrize("kind", ["shared", "memfd", "file"])
def test_register_of_memory_that_cannot_fault_changes_nothing(act, kind):
    """It is remembered, that is all: a touch gives the bytes that are there."""

    def code():
        address = other_memory(sys.argv[1])
        with mman.userfaultfd() as it, mman.userfaultfd() as second:
            it.register((address, 2 * PAGE))
            assert errno_of(second.register, (address, PAGE)) == errno.EBUSY
            assert touch(address) == 0
            it.unregister((address, 2 * PAGE))
            second.register((address, PAGE))

    act(code, args=[kind])


# The joining rule


def test_registered_without_the_flag_fills_with_zeros(act):
    """Nobody is told."""

    def code():
        memory = mman.anonymous(2 * PAGE)
        with mman.userfaultfd(os.O_NONBLOCK) as it:
            it.register(memory)
            assert touch(at(memory)) == 0
            raised(BlockingIOError, it.read_fault)

    act(code)


def test_flag_after_the_registration_joins_as_well(act):
    """The order of the two calls does not matter, page by page."""

    def code():
        memory = mman.anonymous(4 * PAGE)
        with mman.userfaultfd() as it:
            it.register((at(memory), 3 * PAGE))
            mman.madvise((at(memory, 1), 3 * PAGE), mman.MADV_USERFAULT)
            assert touch(at(memory, 0)) == 0  # registered only
            raised(UserFault, lambda: touch(at(memory, 3)))  # flagged only
            for page in (1, 2):
                thread = waiting(it, at(memory, page))
                it.read_fault()
                table(page + 5, page, memory)
                it.wake(at(memory, page))
                assert thread.ended() == page + 5

    act(code)


def test_nouserfault_on_a_registered_range_fills_with_zeros(act):
    """The registration stays: the flag brings the faults back."""

    def code():
        memory = flagged(3)
        with mman.userfaultfd() as it:
            it.register(memory)
            mman.madvise(memory, mman.MADV_NOUSERFAULT)
            assert touch(at(memory)) == 0
            mman.madvise(memory, mman.MADV_USERFAULT)
            thread = waiting(it, at(memory, 1))
            it.read_fault()
        assert thread.ended() == "UserFault"

    act(code)


def test_unregistered_flagged_range_is_on_the_side_of_sigbus_again(act):
    """For the part that was unregistered."""

    def code():
        memory = flagged(3)
        with mman.userfaultfd() as it:
            it.register(memory)
            it.unregister((at(memory, 1), PAGE))
            raised(UserFault, lambda: touch(at(memory, 1)))
            thread = waiting(it, at(memory, 2))
        assert thread.ended() == "UserFault"

    act(code)


def test_each_fault_goes_to_the_descriptor_that_owns_its_page(act):
    """Two descriptors beside each other."""

    def code():
        memory = flagged(2)
        with mman.userfaultfd() as a, mman.userfaultfd() as b:
            a.register((at(memory, 0), PAGE))
            b.register((at(memory, 1), PAGE))
            threads = [waiting(a, at(memory, 0)), waiting(b, at(memory, 1))]
            assert (a.pending, b.pending) == (1, 1)
            assert (a.read_fault(), b.read_fault()) == (at(memory, 0), at(memory, 1))
        assert [thread.ended() for thread in threads] == ["UserFault"] * 2

    act(code)


def test_a_thousand_descriptors_serve_a_range_each(act):
    """All at once; each sees the faults of its own range alone."""

    def code():
        count = 1000
        memory = flagged(2 * count)
        all_ = [mman.userfaultfd(os.O_NONBLOCK) for _ in range(count)]
        for number, one in enumerate(all_):
            one.register((at(memory, 2 * number), PAGE))
        threads = [Touching(at(memory, 2 * number)) for number in range(0, count, 5)]
        for number in range(0, count, 5):
            eventually(lambda number=number: all_[number].pending == 1)
            assert all_[number].read_fault() == at(memory, 2 * number)
            table(number % 255 + 1, 2 * number, memory)
            all_[number].wake(at(memory, 2 * number))
        assert [thread.ended() for thread in threads] == [number % 255 + 1 for number in range(0, count, 5)]
        assert not any(one.pending or one.unwoken for one in all_)
        raised(UserFault, lambda: touch(at(memory, 1)))
        for one in all_:
            one.close()
        raised(UserFault, lambda: touch(at(memory, 2)))

    act(code, timeout=50)


# Close


@pytest.mark.parametrize("read", [False, True], ids=["unread", "read"])
def test_close_gives_waiting_threads_sigbus_and_never_zeros(act, read):
    """Whether their fault was read or not; later touches too."""

    def code():
        memory = flagged(4)
        it = mman.userfaultfd()
        it.register(memory)
        threads = [waiting(it, at(memory, page)) for page in range(3)]
        if sys.argv[1] == "True":
            it.read_fault()
        it.close()
        assert [thread.ended() for thread in threads] == ["UserFault"] * 3
        for page in range(4):
            raised(UserFault, lambda page=page: touch(at(memory, page)))
        assert it.closed

    act(code, args=[str(read)])


def test_close_gives_waiting_system_calls_efault(act):
    """And later ones."""

    def code():
        memory = flagged(2)
        it = mman.userfaultfd()
        it.register(memory)
        results, writer = [], os.pipe()[1]
        view = memoryview(memory)[:8]
        thread = threading.Thread(target=lambda: results.append(errno_of(os.write, writer, view)), daemon=True)
        thread.start()
        eventually(lambda: it.pending == 1)
        it.close()
        thread.join(5)
        assert results == [errno.EFAULT]
        assert errno_of(os.write, writer, view) == errno.EFAULT

    act(code)


def test_close_leaves_present_pages_and_unflagged_ranges_alone(act):
    """What was resolved stays; registered without the flag goes on filling with zeros."""

    def code():
        memory, plain = flagged(2), mman.anonymous(PAGE)
        with mman.userfaultfd() as it:
            it.register(memory)
            it.register(plain)
            table(7, 0, memory)
        assert memory[0] == 7
        assert touch(at(plain)) == 0
        raised(UserFault, lambda: touch(at(memory, 1)))

    act(code)


def test_close_lets_another_descriptor_register(act):
    """The ranges belong to nobody."""

    def code():
        memory = flagged(1)
        first, second = mman.userfaultfd(), mman.userfaultfd()
        first.register(memory)
        assert errno_of(second.register, memory) == errno.EBUSY
        first.close()
        second.register(memory)
        thread = waiting(second, at(memory))
        second.close()
        assert thread.ended() == "UserFault"

    act(code)


def test_use_after_close_is_an_error(act):
    """Not another file's number; closing twice is fine."""

    def code():
        it = mman.userfaultfd()
        it.close()
        it.close()
        for call in (
            it.fileno,
            lambda: it.read(8),
            it.read_fault,
            lambda: it.write(command(PAGE, 2 * PAGE)),
            lambda: it.wake(PAGE),
        ):
            raised((ValueError, OSError), call)

    act(code)


def test_close_beside_a_blocked_read_ends_the_read(act):
    """A thread in read_fault is not left there for ever."""

    def code():
        it = mman.userfaultfd()
        ended = []

        def read():
            try:
                it.read_fault()
            except (OSError, ValueError) as error:
                ended.append(error)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        thread.join(0.1)
        it.close()
        thread.join(5)
        assert len(ended) == 1, ended

    act(code)


def test_a_descriptor_that_is_dropped_is_closed(act):
    """Waiting threads get their answer all the same."""

    def code():
        memory = flagged(1)
        it = mman.userfaultfd()
        it.register(memory)
        thread = waiting(it, at(memory))
        del it
        gc.collect()
        assert thread.ended() == "UserFault"

    act(code, warnings=None)


def test_six_threads_close_and_touch_at_once_and_nobody_sees_zeros(act):
    """Registrations come and go while threads touch; a descriptor that closes leaves SIGBUS behind."""

    def code():
        memory, until = flagged(6), time.monotonic() + 1.5

        def serve():
            while time.monotonic() < until:
                with mman.userfaultfd() as it:
                    it.register(memory)
                    time.sleep(0.001)

        def look(page):
            while time.monotonic() < until:
                try:
                    value = touch(at(memory, page))
                    raise AssertionError(f"page {page} gave {value}")
                except UserFault:
                    pass

        in_threads(serve, *[lambda page=page: look(page) for page in range(5)])

    act(code, timeout=30)


@pytest.mark.parametrize("kind", ["file", "private_file", "shared", "memfd"])
def test_registration_of_memory_that_cannot_fault_follows_it(act, kind):
    """mremap(2) takes it along, munmap(2) ends it; the bytes stay what they are."""
    act(
        f"""
start = other_memory({kind!r})
it, second = mman.userfaultfd(), mman.userfaultfd()
it.register((start, 4 * PAGE))
store(start + PAGE, 7)
there = mapped(4 * PAGE)
move_mapping(start, 4 * PAGE, there)
assert [(one.start, one.length, one.owner) for one in mman.ranges()] == [(there, 4 * PAGE, it.ident)]
assert errno_of(second.register, (there, 4 * PAGE)) == errno.EBUSY
assert load(there + PAGE) == 7 and load(there) == 0
libc.munmap(ctypes.c_void_p(there), 4 * PAGE)
assert not mman.ranges()
it.close()
os._exit(0)
"""
    )
