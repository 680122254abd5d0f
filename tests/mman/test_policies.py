"""The other two options of 2014: the flag through mprotect, and registration alone."""

from __future__ import annotations

import errno
import mmap
import os
import sys

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
)
from mman.waiting import waiting

pytestmark = pytest.mark.kernel

POLICIES = ["madvise", "mprotect", "register-only"]


@pytest.mark.parametrize("policy", POLICIES)
def test_set_policy_is_told_by_policy(act, policy):
    """The default is the one that was built in 2014."""

    def code():
        assert mman.policy() == "madvise"
        mman.set_policy(sys.argv[1])
        assert mman.policy() == sys.argv[1]

    act(code, args=[policy])


def test_set_policy_to_an_unknown_one_is_a_value_error(act):
    """The policy stays."""

    def code():
        raised(ValueError, lambda: mman.set_policy("mmap"))
        assert mman.policy() == "madvise"

    act(code)


def test_set_policy_while_a_range_is_flagged_or_registered_is_a_runtime_error(act):
    """It works again once nothing is, also where the mapping simply went away."""

    def code():
        memory = flagged(2)
        raised(RuntimeError, lambda: mman.set_policy("mprotect"))
        mman.madvise(memory, mman.MADV_NOUSERFAULT)
        with mman.userfaultfd() as it:
            it.register(memory)
            raised(RuntimeError, lambda: mman.set_policy("mprotect"))
            it.unregister(memory)
            mman.set_policy("mprotect")
            mman.set_policy("madvise")
            it.register(memory)
        mman.madvise(memory, mman.MADV_USERFAULT)
        memory.close()
        mman.set_policy("register-only")
        assert mman.policy() == "register-only"

    act(code)


# The default


def test_mprotect_with_prot_userfault_is_einval_under_madvise(act):
    """An unknown protection; and a plain mprotect leaves the flag alone."""

    def code():
        memory = flagged(2)
        both = mman.PROT_READ | mman.PROT_WRITE
        assert errno_of(mman.mprotect, memory, both | mman.PROT_USERFAULT) == errno.EINVAL
        mman.mprotect(memory, both)
        raised(UserFault, lambda: touch(at(memory)))

    act(code)


# Option 1


def test_madvise_of_either_flag_is_einval_under_mprotect(act):
    """Other advice works as ever."""

    def code():
        mman.set_policy("mprotect")
        memory = filled(7, 2)
        for advice in (mman.MADV_USERFAULT, mman.MADV_NOUSERFAULT):
            assert errno_of(mman.madvise, memory, advice) == errno.EINVAL
        mman.madvise(memory, mman.MADV_DONTNEED)
        assert memory[0] == 0

    act(code)


def test_mprotect_with_prot_userfault_flags(act):
    """Absent pages fault, present ones keep their bytes; sigbus and descriptors join as under the default."""

    def code():
        mman.set_policy("mprotect")
        memory = mman.anonymous(4 * PAGE)
        memory[0] = 9
        mman.mprotect(memory, mman.PROT_READ | mman.PROT_WRITE | mman.PROT_USERFAULT)
        assert memory[0] == 9
        raised(UserFault, lambda: touch(at(memory, 1)))
        mman.on_sigbus(memory, lambda address: table(7, (address - at(memory)) // PAGE, memory))
        assert memory[PAGE] == 7
        with mman.userfaultfd() as it:
            it.register(memory)
            thread = waiting(it, at(memory, 2))
            it.read_fault()
            table(8, 2, memory)
            it.wake(at(memory, 2))
            assert thread.ended() == 8

    act(code)


def test_mprotect_without_prot_userfault_takes_the_flag_away(act):
    """Any mprotect does, of the part it is given; that is what an interface of this kind costs."""

    def code():
        mman.set_policy("mprotect")
        both = mman.PROT_READ | mman.PROT_WRITE
        memory = filled(7, 4)
        mman.madvise((at(memory, 1), 3 * PAGE), mman.MADV_DONTNEED)
        mman.mprotect(memory, both | mman.PROT_USERFAULT)
        mman.mprotect((at(memory, 1), PAGE), both)
        assert (memory[0], touch(at(memory, 1))) == (7, 0)
        raised(UserFault, lambda: touch(at(memory, 2)))
        mman.mprotect(memory, mman.PROT_READ)
        assert touch(at(memory, 2)) == 0

    act(code)


def test_mprotect_with_prot_userfault_sets_the_protection_as_well(act):
    """Readable only: a read is a fault, and the protection shows in the mappings."""

    def code():
        from support.lazy import maps

        mman.set_policy("mprotect")
        memory = mman.anonymous(2 * PAGE)
        mman.mprotect(memory, mman.PROT_READ | mman.PROT_USERFAULT)
        assert [rights[:2] for low, high, rights in maps() if low <= at(memory) < high] == ["r-"]
        raised(UserFault, lambda: touch(at(memory)))

    act(code)


def test_mprotect_of_what_cannot_fault_is_einval(act):
    """As with madvise: an ignored flag would be a wrong one. Those before it are flagged, a hole is ENOMEM, unaligned EINVAL."""

    def code():
        mman.set_policy("mprotect")
        flags = mman.PROT_READ | mman.PROT_WRITE | mman.PROT_USERFAULT
        for kind in ("shared", "memfd", "file", "private_file"):
            assert errno_of(mman.mprotect, (other_memory(kind), PAGE), flags) == errno.EINVAL, kind
        start = mapped(4 * PAGE)
        mapped(PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, address=start + PAGE)
        assert errno_of(mman.mprotect, (start, 3 * PAGE), flags) == errno.EINVAL
        raised(UserFault, lambda: touch(start))
        assert touch(start + 2 * PAGE) == 0
        libc.munmap(start + PAGE, PAGE)
        assert errno_of(mman.mprotect, (start, 4 * PAGE), flags) == errno.ENOMEM
        assert errno_of(mman.mprotect, (start + 16, PAGE), flags) == errno.EINVAL

    act(code)


def test_mprotect_with_a_number_is_a_type_error(act):
    """As with advice."""

    def code():
        raised((TypeError, ValueError), lambda: mman.mprotect(mman.anonymous(PAGE), 3))

    act(code)


# Option 2


def test_both_flags_are_einval_under_register_only(act):
    """And so is a resolver: there is no SIGBUS without a descriptor."""

    def code():
        mman.set_policy("register-only")
        memory = mman.anonymous(2 * PAGE)
        for advice in (mman.MADV_USERFAULT, mman.MADV_NOUSERFAULT):
            assert errno_of(mman.madvise, memory, advice) == errno.EINVAL
        assert errno_of(mman.mprotect, memory, mman.PROT_READ | mman.PROT_WRITE | mman.PROT_USERFAULT) == errno.EINVAL
        raised((OSError, RuntimeError), lambda: mman.on_sigbus(memory, None))

    act(code)


def test_register_engages_at_once_under_register_only(act):
    """The next touch of an absent page goes to the descriptor; present pages never."""

    def code():
        mman.set_policy("register-only")
        memory = mman.anonymous(3 * PAGE)
        memory[0] = 9
        with mman.userfaultfd() as it:
            it.register(memory)
            assert memory[0] == 9
            thread = waiting(it, at(memory, 1))
            it.read_fault()
            table(7, 1, memory)
            it.wake(at(memory, 1))
            assert thread.ended() == 7

    act(code)


@pytest.mark.parametrize("kind", ["shared", "memfd", "file", "private_file"])
def test_register_of_what_cannot_fault_is_einval_under_register_only(act, kind):
    """Registration alone says that faults will come: it must not be ignored."""

    def code():
        mman.set_policy("register-only")
        with mman.userfaultfd() as it:
            assert errno_of(it.register, (other_memory(sys.argv[1]), PAGE)) == errno.EINVAL

    act(code, args=[kind])


def test_unregister_fills_with_zeros_under_register_only(act):
    """There is no flag that would be left."""

    def code():
        mman.set_policy("register-only")
        memory = mman.anonymous(2 * PAGE)
        with mman.userfaultfd() as it:
            it.register(memory)
            it.unregister((at(memory), PAGE))
            assert touch(at(memory)) == 0
            thread = waiting(it, at(memory, 1))
        assert thread.ended() == "UserFault"

    act(code)


def test_close_gives_sigbus_under_register_only(act):
    """To threads that wait, to later touches, to system calls; and a new descriptor may take over."""

    def code():
        mman.set_policy("register-only")
        memory = mman.anonymous(3 * PAGE)
        it = mman.userfaultfd()
        it.register(memory)
        thread = waiting(it, at(memory))
        it.close()
        assert thread.ended() == "UserFault"
        raised(UserFault, lambda: touch(at(memory, 1)))
        assert errno_of(os.write, os.pipe()[1], memoryview(memory)[:4]) == errno.EFAULT
        with mman.userfaultfd() as second:
            second.register(memory)
            thread = waiting(second, at(memory, 2))
            second.read_fault()
            table(7, 2, memory)
            second.wake(at(memory, 2))
            assert thread.ended() == 7

    act(code)


def test_flag_stays_where_mprotect_fails(act):
    """The kernel refuses the protection (RLIMIT_DATA), so the call has done nothing: the range is still flagged."""
    act(
        """
import resource
mman.set_policy("mprotect")
memory = mman.anonymous(64 << 30)
mman.mprotect(memory, mman.PROT_READ | mman.PROT_USERFAULT)
resource.setrlimit(resource.RLIMIT_DATA, (32 << 30, resource.RLIM_INFINITY))
assert errno_of(mman.mprotect, memory, mman.PROT_READ | mman.PROT_WRITE) == errno.ENOMEM
assert [one.flagged for one in mman.ranges()] == [True]
raised(UserFault, lambda: touch(at(memory, 5)))
resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
mman.mprotect(memory, mman.PROT_READ | mman.PROT_WRITE)
assert touch(at(memory, 5)) == 0
os._exit(0)
"""
    )


def test_protection_that_is_refused_leaves_flag_and_resolver_alone(act):
    """mprotect(2) without the flag would clear it; where the kernel refuses, everything is as before, the resolver too."""
    act(
        """
mman.set_policy("mprotect")
memory = mman.anonymous(4 * PAGE)
mman.mprotect(memory, mman.PROT_READ | mman.PROT_WRITE | mman.PROT_USERFAULT)
mman.on_sigbus(memory, lambda address: table(5, (address - at(memory)) // PAGE, memory))
before = mman.ranges()
for flag in (mman.PROT_NONE, mman.PROT_USERFAULT):
    assert errno_of(_core.mman_protect, memory, 1 << 20, bool(flag)) == errno.EINVAL  # a protection that does not exist
    assert mman.ranges() == before
assert memory[PAGE] == 5
""".replace("mman.set_policy", "from userfault import _core\nmman.set_policy", 1)
    )


def test_what_keeps_the_policy_can_be_ended_as_the_error_says(act):
    """Under "register-only" close() leaves ranges behind, which must not become zeros: another descriptor lets go of them."""

    def code():
        mman.set_policy("register-only")
        memory = mman.anonymous(2 * PAGE)
        with mman.userfaultfd() as it:
            it.register(memory)
        assert "once more" in str(raised(RuntimeError, lambda: mman.set_policy("madvise")))
        with mman.userfaultfd() as it:
            it.register(memory)
            it.unregister(memory)
        mman.set_policy("madvise")
        assert touch(at(memory)) == 0

    act(code)
