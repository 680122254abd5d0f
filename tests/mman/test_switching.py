"""B3, the joining rule, while a range changes its owner: nobody sees zeros, and no system call on present pages fails."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from mman.kit import (
    PAGE,
    PRIVATE,
    UserFault,
    at,
    errno_of,
    flagged,
    in_threads,
    mapped,
    mman,
    raised,
    resident_bytes,
    table,
    touch,
)
from mman.waiting import waiting

#: The rules here are those of options 3 and 1 alike.
UNDER = ("madvise", "mprotect")
pytestmark = pytest.mark.kernel


@pytest.mark.timeout(120)
def test_touches_and_writes_through_many_switches_see_their_bytes(act):
    """Register, unregister, close, flag off and on: 200,000 touches, 500 switches."""
    act("from mman.hammering import Hammer\nHammer(200_000, 500).run(80)\nos._exit(0)", timeout=100)


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_touches_and_writes_through_very_many_switches_see_their_bytes(act):
    """The long form: 10 million touches, 10,000 switches."""
    act("from mman.hammering import Hammer\nHammer(10_000_000, 10_000).run(1700)\nos._exit(0)", timeout=1800)


def test_empty_range_of_64_gib_is_switched_and_costs_no_memory(act):
    """Registered, unregistered, closed, unflagged: the right answer on each page each time."""

    def code():
        length = 64 << 30
        start = mapped(length, flags=PRIVATE | 0x4000)
        before = resident_bytes()
        mman.madvise((start, length), mman.MADV_USERFAULT)
        places = [start, start + length // 2 + 5 * PAGE, start + length - PAGE]
        for _ in range(20):
            it = mman.userfaultfd()
            it.register((start, length))
            threads = [waiting(it, place) for place in places]
            it.unregister((start, length))
            assert [thread.ended() for thread in threads] == ["UserFault"] * 3
            for place in places:
                raised(UserFault, lambda place=place: touch(place))
            it.register((start, length))
            it.close()
            for place in places:
                raised(UserFault, lambda place=place: touch(place))
        assert resident_bytes() - before < 16 << 20, resident_bytes() - before
        mman.madvise((start, length), mman.MADV_NOUSERFAULT)
        assert touch(places[1]) == 0

    act(code, timeout=50)


def test_switch_of_a_range_with_few_present_pages_keeps_them(act):
    """Sparse: one page in a thousand is there, and has its bytes after every switch."""

    def code():
        memory = flagged(16_000)
        present = range(0, 16_000, 1000)
        for page in present:
            table(page // 1000 + 1, page, memory)
        it = mman.userfaultfd()
        for _ in range(20):
            it.register(memory)
            assert [memory[page * PAGE] for page in present] == list(range(1, 17))
            it.unregister(memory)
            assert [memory[page * PAGE] for page in present] == list(range(1, 17))
            raised(UserFault, lambda: touch(at(memory, 7)))
        mman.madvise(memory, mman.MADV_NOUSERFAULT)
        assert sum(memory[page * PAGE] for page in range(16_000)) == sum(range(1, 17))

    act(code, timeout=40)


@pytest.mark.parametrize("end", ["unregister", "close", "nouserfault"])
def test_waiting_thread_gets_the_answer_of_the_new_state(act, end):
    """After unregister and close SIGBUS, after the flag is gone a page of zeros."""

    def code():
        memory = flagged(4)
        it = mman.userfaultfd()
        it.register(memory)
        thread = waiting(it, at(memory, 1))
        if sys.argv[1] == "unregister":
            it.unregister(memory)
        elif sys.argv[1] == "close":
            it.close()
        else:
            it.read_fault()
            mman.madvise(memory, mman.MADV_NOUSERFAULT)
            errno_of(it.wake, at(memory, 1))  # 2014 wakes nobody here; where the thread goes on by itself, that is ENOENT
        assert thread.ended() == (0 if sys.argv[1] == "nouserfault" else "UserFault")

    act(code, args=[end])


def test_switch_leaves_no_mark_on_pages(act):
    """After many switches and no flag every page is zeros and the resident size is that of the pages touched."""

    def code():
        memory = flagged(2048)
        table(7, 1000, memory)
        it = mman.userfaultfd()
        for _ in range(50):
            it.register(memory)
            it.unregister(memory)
        mman.madvise(memory, mman.MADV_NOUSERFAULT)
        before = resident_bytes()
        assert sum(memory[page * PAGE] for page in range(2048)) == 7
        assert memory[:PAGE] == bytes(PAGE)
        memory[:] = b"\1" * len(memory)
        assert resident_bytes() - before > 2000 * PAGE

    act(code)


@pytest.mark.parametrize("calls", ["register", "register unregister"])
def test_range_that_is_emptied_while_its_owner_changes_never_gives_zeros(act, calls):
    """One thread touches and drops, both sides resolve, a descriptor comes and goes: every touch gives the bytes."""

    def code():
        memory, wrong, until = flagged(16), {}, time.monotonic() + 3

        def resolve(address):
            errno_of(table, 7, (address - at(memory)) // PAGE, memory)  # the other side may have been faster

        def serve(it):
            try:
                while True:
                    address = it.read_fault()
                    resolve(address)
                    errno_of(it.wake, address // PAGE * PAGE)
            except (OSError, ValueError):
                return

        def look():
            while time.monotonic() < until:
                for page in range(16):
                    try:
                        seen = touch(at(memory, page))
                    except UserFault as error:
                        seen = str(error)
                    if seen != 7:
                        wrong[seen] = wrong.get(seen, 0) + 1
                mman.madvise(memory, mman.MADV_DONTNEED)

        def change():
            while time.monotonic() < until:
                with mman.userfaultfd() as it:
                    server = threading.Thread(target=serve, args=(it,))
                    server.start()
                    for call in sys.argv[1].split():
                        getattr(it, call)(memory)
                server.join()

        mman.on_sigbus(memory, resolve)
        in_threads(look, change, seconds=15)
        assert not wrong, wrong

    act(code, args=[calls], timeout=30)


def test_pages_that_showed_an_error_during_a_switch_become_holes_again(act):
    """Failed touches beside changes of owner: each touch fails anew, and no pattern stays behind as if it were data."""
    act(
        """
memory, done, rounds = flagged(64), [], []
table(7, 63, memory)
def change():
    with mman.userfaultfd() as it:
        while not done:
            it.register(memory)
            it.unregister(memory)
def fail(page):
    try:
        for round in range(4000):
            try:
                value = touch(at(memory, page))
                raise AssertionError(f"page {page} gave {value} in round {round}")
            except UserFault:
                rounds.append(1)
    finally:
        done.append(1)
in_threads(change, lambda: fail(3), lambda: fail(40), seconds=30)
""",
        timeout=40,
    )
