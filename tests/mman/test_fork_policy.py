"""B1, where today differs: a child inherited the flag; with fork="deny" it never sees zeros in a flagged range.

The caller's own wish about forks comes back.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import warnings

import pytest

from mman.kit import (
    PAGE,
    PRIVATE,
    UserFault,
    at,
    errno_of,
    filled,
    flagged,
    mapped,
    mman,
    raised,
    served,
    table,
    touch,
    vm_flags,
)
from mman.waiting import waiting

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]


@pytest.mark.parametrize("present", [False, True], ids=["absent", "present"])
@pytest.mark.parametrize("registered", [False, True], ids=["flagged", "registered"])
def test_touch_in_a_forked_child_dies_by_sigsegv_with_a_line(act, present, registered):
    """Present pages too; the parent goes on."""

    def code():
        from support.lazy import killed_by

        warnings.simplefilter("ignore", DeprecationWarning)
        memory = flagged(4)
        if sys.argv[1] == "True":
            table(7, 1, memory)
        it = mman.userfaultfd()
        if sys.argv[2] == "True":
            it.register(memory)
        process = os.fork()
        if process == 0:
            touch(at(memory, 1))
            os._exit(9)
        _, status = os.waitpid(process, 0)
        assert killed_by(status) == signal.SIGSEGV, status
        if sys.argv[1] == "True":
            assert memory[PAGE] == 7
        it.close()
        raised(UserFault, lambda: touch(at(memory, 2)))

    result = act(code, args=[str(present), str(registered)], silent=False)
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "fork" in result.stderr


def test_mappings_of_a_forked_child_never_land_on_a_flagged_range(act):
    """The range is occupied there, by memory that nobody can use."""

    def code():
        from support.lazy import maps

        warnings.simplefilter("ignore", DeprecationWarning)
        memory = flagged(1024)
        start, end = at(memory), at(memory, 1024)
        process = os.fork()
        if process == 0:
            signal.alarm(10)
            for _ in range(50):
                fresh = mapped(1024 * PAGE)
                assert fresh >= end or fresh + 1024 * PAGE <= start
            assert {rights for low, high, rights in maps() if low < end and start < high} == {"---p"}
            os._exit(0)
        assert os.waitpid(process, 0)[1] == 0

    act(code)


def test_subprocess_works_with_a_flagged_range_larger_than_memory(act):
    """1 TiB, not copied: fork and exec, and fork alone."""

    def code():
        import subprocess

        warnings.simplefilter("ignore", DeprecationWarning)
        start = mapped(1 << 40, flags=PRIVATE | 0x4000)
        mman.madvise((start, 1 << 40), mman.MADV_USERFAULT)
        mman.remap_anon_pages(start + (1 << 30), filled(7), PAGE)
        assert subprocess.run(["echo", "fine"], capture_output=True, check=True).stdout == b"fine\n"
        assert subprocess.run(["true"], preexec_fn=lambda: None, check=True).returncode == 0
        process = os.fork()
        if process == 0:
            os._exit(0)
        assert os.waitpid(process, 0)[1] == 0
        assert touch(start + (1 << 30)) == 7
        raised(UserFault, lambda: touch(start))

    act(code)


def test_forked_child_flags_and_serves_ranges_of_its_own(act):
    """Nothing it does reaches its parent's memory."""

    def code():
        warnings.simplefilter("ignore", DeprecationWarning)
        memory = flagged(4)
        outer = mman.userfaultfd()
        outer.register((at(memory, 2), 2 * PAGE))
        process = os.fork()
        if process == 0:
            signal.alarm(10)
            own = mman.anonymous(8 * PAGE)
            with served(own, lambda page: page + 1):
                assert [own[page * PAGE] for page in range(8)] == list(range(1, 9))
            mine = flagged(2)
            mman.on_sigbus(mine, lambda address: table(9, (address - at(mine)) // PAGE, mine))
            assert mine[0] == 9
            os._exit(0)
        assert os.waitpid(process, 0)[1] == 0
        raised(UserFault, lambda: touch(at(memory)))
        thread = waiting(outer, at(memory, 2))
        outer.read_fault()
        table(7, 2, memory)
        outer.wake(at(memory, 2))
        assert thread.ended() == 7

    act(code)


@pytest.mark.parametrize("wish", ["none", "dontfork", "dontfork_meanwhile"])
def test_nouserfault_restores_what_the_caller_had_about_forks(act, wish):
    """The kernel's flag «dc» of the mapping: absent, or there because the caller wanted it."""

    def code():
        memory = mman.anonymous(2 * PAGE)
        if sys.argv[1] == "dontfork":
            mman.madvise(memory, mman.MADV_DONTFORK)
        mman.madvise(memory, mman.MADV_USERFAULT)
        assert "dc" in vm_flags(at(memory))
        if sys.argv[1] == "dontfork_meanwhile":
            mman.madvise(memory, mman.MADV_DONTFORK)
        mman.madvise(memory, mman.MADV_NOUSERFAULT)
        assert ("dc" in vm_flags(at(memory))) == (sys.argv[1] != "none")

    act(code, args=[wish])


def test_nouserfault_restores_each_part_of_a_range(act):
    """Half of it was the caller's DONTFORK."""

    def code():
        memory = mman.anonymous(4 * PAGE)
        mman.madvise((at(memory), 2 * PAGE), mman.MADV_DONTFORK)
        mman.madvise(memory, mman.MADV_USERFAULT)
        mman.madvise((at(memory, 1), 2 * PAGE), mman.MADV_NOUSERFAULT)
        assert ["dc" in vm_flags(at(memory, page)) for page in range(4)] == [True, True, False, True]
        mman.madvise(memory, mman.MADV_NOUSERFAULT)
        assert ["dc" in vm_flags(at(memory, page)) for page in range(4)] == [True, True, False, False]

    act(code)


def test_dofork_on_a_denied_range_is_einval(act):
    """It would give a child zeros; without the flag it works."""

    def code():
        memory = flagged(2)
        assert errno_of(mman.madvise, memory, mman.MADV_DOFORK) == errno.EINVAL
        assert "dc" in vm_flags(at(memory))
        mman.madvise(memory, mman.MADV_NOUSERFAULT)
        mman.madvise(memory, mman.MADV_DONTFORK)
        mman.madvise(memory, mman.MADV_DOFORK)
        assert "dc" not in vm_flags(at(memory))

    act(code)


def test_unflagged_range_is_inherited_as_ever(act):
    """Registered only, and unflagged again: the child has its own copy."""

    def code():
        warnings.simplefilter("ignore", DeprecationWarning)
        plain, formerly = mman.anonymous(2 * PAGE), filled(7, 2)
        it = mman.userfaultfd()
        it.register(plain)
        mman.madvise(formerly, mman.MADV_USERFAULT)
        mman.madvise(formerly, mman.MADV_NOUSERFAULT)
        process = os.fork()
        if process == 0:
            signal.alarm(10)
            os._exit(0 if (touch(at(plain)), touch(at(formerly))) == (0, 7) else 9)
        assert os.waitpid(process, 0)[1] == 0

    act(code)


def test_unknown_fork_policy_is_a_value_error(act):
    """And the range stays without a flag."""

    def code():
        memory = mman.anonymous(PAGE)
        raised(ValueError, lambda: mman.madvise(memory, mman.MADV_USERFAULT, fork="maybe"))
        assert touch(at(memory)) == 0

    act(code)
