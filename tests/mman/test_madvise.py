"""B1, the flag: MADV_USERFAULT and MADV_NOUSERFAULT, rule by rule.

EINVAL for every mapping that cannot raise userfaults, for a start inside a page; the length rounded up, 0 fine; ENOMEM after the
rest for holes; a hole faults instead of costing a page, a page that is there or swapped out never does; NOUSERFAULT: zeros again.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys

import numpy as np
import pytest

from mman.kit import (
    PAGE,
    PRIVATE,
    UserFault,
    at,
    errno_of,
    filled,
    flagged,
    libc,
    load,
    mapped,
    mman,
    other_memory,
    raised,
    resident_bytes,
    touch,
    vm_flags,
)

pytestmark = pytest.mark.kernel

KINDS = ["file", "private_file", "shared", "memfd", "private_memfd", "hugetlb", "vdso"]


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
def test_touch_of_an_absent_page_of_a_flagged_range_is_a_user_fault(act, write):
    """Read and write alike; the address is that of the page; the next touch faults again."""

    def code():
        memory = flagged(4)

        def put():
            memory[2 * PAGE + 5] = 1
            len("")

        for _ in range(3):
            error = raised(UserFault, put if sys.argv[1] == "True" else lambda: touch(at(memory, 2) + 5))
            assert error.address // PAGE * PAGE == at(memory, 2), hex(error.address)
            assert isinstance(error, OSError)

    act(code, args=[str(write)])


def test_touch_without_the_flag_is_a_page_of_zeros(act):
    """Memory beside a flagged range is ordinary."""

    def code():
        memory = mman.anonymous(3 * PAGE)
        mman.madvise((at(memory, 1), PAGE), mman.MADV_USERFAULT)
        assert touch(at(memory, 0)) == 0
        assert touch(at(memory, 2)) == 0
        raised(UserFault, lambda: touch(at(memory, 1)))

    act(code)


def test_touch_of_a_present_page_never_raises(act):
    """Pages that were there before the flag keep their bytes and can be written."""

    def code():
        memory = filled(7, 3)
        mman.madvise(memory, mman.MADV_USERFAULT)
        assert bytes(memory) == b"\7" * len(memory)
        memory[5] = 9
        assert memory[5] == 9

    act(code)


def test_touch_of_a_page_of_zeros_that_is_present_never_raises(act):
    """A page that was only read is the kernel's page of zeros: it is there."""

    def code():
        memory = mman.anonymous(2 * PAGE)
        assert memory[0] == 0
        mman.madvise(memory, mman.MADV_USERFAULT)
        assert memory[0] == 0
        raised(UserFault, lambda: touch(at(memory, 1)))

    act(code)


def test_touch_of_a_swapped_out_page_never_raises(act):
    """It is read back from swap; skipped where there is no swap."""
    with open("/proc/swaps") as file:
        if len(file.readlines()) < 2:
            pytest.skip("there is no swap here")

    def code():
        memory = filled(7, 64)
        mman.madvise(memory, mman.MADV_USERFAULT)
        mman.madvise(memory, mman.MADV_PAGEOUT)
        assert bytes(memory) == b"\7" * len(memory)

    act(code)


def test_unresolved_touch_leaves_the_resident_size_as_it_was(act):
    """No page is left behind by a touch that raised."""

    def code():
        memory = flagged(4096)
        for page in range(0, 64, 8):
            raised(UserFault, lambda page=page: touch(at(memory, page)))
        before = resident_bytes()
        for page in range(0, 4096, 8):
            raised(UserFault, lambda page=page: touch(at(memory, page)))
        assert resident_bytes() - before < 128 * PAGE, resident_bytes() - before

    act(code, timeout=40)


def test_system_call_on_an_absent_page_of_a_flagged_range_is_efault(act):
    """read(2) into it and write(2) from it."""

    def code():
        memory, (reader, writer) = flagged(2), os.pipe()
        assert errno_of(os.write, writer, memoryview(memory)[:10]) == errno.EFAULT
        os.write(writer, b"x" * 10)
        assert errno_of(os.readv, reader, [memoryview(memory)[:10]]) == errno.EFAULT
        raised(UserFault, lambda: touch(at(memory)))

    act(code)


def test_nouserfault_makes_later_touches_fill_with_zeros(act):
    """And only in the range it was given."""

    def code():
        memory = flagged(4)
        mman.madvise((at(memory, 1), PAGE), mman.MADV_NOUSERFAULT)
        assert touch(at(memory, 1)) == 0
        for page in (0, 2, 3):
            raised(UserFault, lambda page=page: touch(at(memory, page)))
        mman.madvise(memory, mman.MADV_NOUSERFAULT)
        assert bytes(memory) == bytes(len(memory))

    act(code)


def test_nouserfault_on_memory_without_the_flag_is_fine(act):
    """As is a flag that is set twice."""

    def code():
        memory = mman.anonymous(2 * PAGE)
        mman.madvise(memory, mman.MADV_NOUSERFAULT)
        mman.madvise(memory, mman.MADV_USERFAULT)
        mman.madvise(memory, mman.MADV_USERFAULT)
        raised(UserFault, lambda: touch(at(memory)))

    act(code)


@pytest.mark.parametrize("kind", KINDS)
def test_madvise_of_a_mapping_that_is_not_private_anonymous_is_einval(act, kind):
    """For both advices: a promise of 2014, so that these kinds could be added later."""

    def code():
        address = other_memory(sys.argv[1])
        if not address:
            print("none")
            return
        for advice in (mman.MADV_USERFAULT, mman.MADV_NOUSERFAULT):
            assert errno_of(mman.madvise, (address, PAGE), advice) == errno.EINVAL, advice
        if sys.argv[1] not in ("vdso", "hugetlb"):
            assert touch(address) == 0

    if act(code, args=[kind]).stdout == "none\n":
        pytest.skip(f"no {kind} memory to be had here")


def test_madvise_of_droppable_memory_is_einval(act):
    """MAP_DROPPABLE is private and anonymous, and the kernel's userfaultfd does not take it."""

    def code():
        address = libc.mmap(None, PAGE, 3, 0x20 | 0x08, -1, 0)
        if address in (None, 2**64 - 1):
            print("none")
            return
        assert errno_of(mman.madvise, (address, PAGE), mman.MADV_USERFAULT) == errno.EINVAL

    if act(code).stdout == "none\n":
        pytest.skip("this kernel has no MAP_DROPPABLE")


def test_madvise_from_an_unaligned_start_is_einval(act):
    """The length may be anything."""

    def code():
        memory = mman.anonymous(2 * PAGE)
        for advice in (mman.MADV_USERFAULT, mman.MADV_NOUSERFAULT, mman.MADV_DONTNEED):
            assert errno_of(mman.madvise, (at(memory) + 16, PAGE), advice) == errno.EINVAL
        assert touch(at(memory)) == 0

    act(code)


def test_madvise_rounds_the_length_up(act):
    """One byte is one page."""

    def code():
        memory = mman.anonymous(3 * PAGE)
        mman.madvise((at(memory), PAGE + 1), mman.MADV_USERFAULT)
        raised(UserFault, lambda: touch(at(memory, 0)))
        raised(UserFault, lambda: touch(at(memory, 1)))
        assert touch(at(memory, 2)) == 0

    act(code)


def test_madvise_of_no_length_does_nothing(act):
    """And is no error."""

    def code():
        memory = mman.anonymous(PAGE)
        mman.madvise((at(memory), 0), mman.MADV_USERFAULT)
        assert touch(at(memory)) == 0

    act(code)


@pytest.mark.parametrize("advice", ["USERFAULT", "NOUSERFAULT"])
def test_madvise_over_a_hole_does_the_rest_and_is_enomem(act, advice):
    """Before the hole and after it."""

    def code():
        start, advice = mapped(5 * PAGE), mman.Advice[sys.argv[1]]
        if advice is mman.MADV_NOUSERFAULT:
            mman.madvise((start, 5 * PAGE), mman.MADV_USERFAULT)
        libc.munmap(start + PAGE, PAGE)
        libc.munmap(start + 3 * PAGE, PAGE)
        assert errno_of(mman.madvise, (start, 5 * PAGE), advice) == errno.ENOMEM
        for page in (0, 2, 4):
            if advice is mman.MADV_USERFAULT:
                raised(UserFault, lambda page=page: touch(start + page * PAGE))
            else:
                assert touch(start + page * PAGE) == 0

    act(code, args=[advice])


def test_madvise_of_nothing_but_a_hole_is_enomem(act):
    """Nothing is flagged: what is mapped there later is ordinary."""

    def code():
        start = mapped(PAGE)
        libc.munmap(start, PAGE)
        assert errno_of(mman.madvise, (start, PAGE), mman.MADV_USERFAULT) == errno.ENOMEM
        assert mapped(PAGE, address=start) == start
        assert touch(start) == 0

    act(code)


def test_madvise_over_a_bad_mapping_flags_those_before_it_and_none_after(act):
    """EINVAL at the shared mapping in the middle, and no further."""

    def code():
        start = mapped(5 * PAGE)
        mapped(PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, address=start + 2 * PAGE)
        assert errno_of(mman.madvise, (start, 5 * PAGE), mman.MADV_USERFAULT) == errno.EINVAL
        for page in (0, 1):
            raised(UserFault, lambda page=page: touch(start + page * PAGE))
        for page in (2, 3, 4):
            assert touch(start + page * PAGE) == 0

    act(code)


def test_madvise_through_mmap_with_our_constant_is_a_type_error(act):
    """18 is WIPEONFORK to today's kernel: the constant must not get there as a number."""

    def code():
        memory = mman.anonymous(PAGE)
        raised(TypeError, lambda: memory.madvise(mman.MADV_USERFAULT))
        raised(TypeError, lambda: memory.madvise(mman.MADV_NOUSERFAULT))
        assert not isinstance(mman.PROT_USERFAULT, int)
        for name, advice in vars(mman).items():
            assert not (name.startswith("MADV_") and isinstance(advice, int)), name
        assert not {"MADV_WIPEONFORK", "MADV_KEEPONFORK"} & set(dir(mman))
        assert "wf" not in vm_flags(at(memory))

    act(code)


def test_madvise_with_a_number_is_a_type_error(act):
    """A number could mean the proposal's or today's kernel's."""

    def code():
        memory = mman.anonymous(PAGE)
        for number in (18, 19, 4):
            raised((TypeError, ValueError), lambda number=number: mman.madvise(memory, number))
        assert "wf" not in vm_flags(at(memory))

    act(code)


@pytest.mark.parametrize("kind", ["mmap", "bytearray", "numpy"])
def test_madvise_of_memory_of_the_wrong_kind_says_why_and_what_to_use(act, kind):
    """The three first tries that everybody makes are EINVAL, and the message helps."""

    def code():
        memory = {
            "mmap": lambda: mmap.mmap(-1, 4 * PAGE),
            "bytearray": lambda: bytearray(9 * PAGE),
            "numpy": lambda: np.ones(5000),
        }
        error = raised(OSError, lambda: mman.madvise(memory[sys.argv[1]](), mman.MADV_USERFAULT))
        assert error.errno == errno.EINVAL
        assert "mman.anonymous" in str(error), error
        assert ("shared" if sys.argv[1] == "mmap" else "start of a page") in str(error), error

    act(code, args=[kind])


def test_madvise_of_a_read_only_buffer_is_a_type_error(act):
    """Bytes objects are nobody's to take away."""

    def code():
        raised((TypeError, BufferError), lambda: mman.madvise(b"x" * PAGE, mman.MADV_USERFAULT))

    act(code)


def test_madvise_takes_every_private_anonymous_mapping(act):
    """Read-only, inaccessible, without reserve, and memory that numpy looks at."""

    def code():
        for protection in (0, 1, 3):
            start = mapped(2 * PAGE, protection)
            mman.madvise((start, 2 * PAGE), mman.MADV_USERFAULT)
            if protection:
                raised(UserFault, lambda start=start: touch(start))
        start = mapped(2 * PAGE, flags=PRIVATE | 0x4000)
        mman.madvise((start, 2 * PAGE), mman.MADV_USERFAULT)
        raised(UserFault, lambda: touch(start))
        array = np.frombuffer(mman.anonymous(4 * PAGE), "u1")
        mman.madvise(array[PAGE : 2 * PAGE], mman.MADV_USERFAULT)
        assert int(array[0]) == 0
        raised(UserFault, lambda: int(array[PAGE]))

    act(code)


def test_madvise_of_a_private_mapping_of_dev_zero_is_einval(act):
    """To the kernel it is anonymous, and yet it puts no page there: UFFDIO_COPY and _POISON are EFAULT (its file is empty)."""

    def code():
        descriptor = os.open("/dev/zero", os.O_RDWR)
        start = libc.mmap(None, PAGE, 3, mmap.MAP_PRIVATE, descriptor, 0)
        assert errno_of(mman.madvise, (start, PAGE), mman.MADV_USERFAULT) == errno.EINVAL
        assert touch(start) == 0

    act(code)


def test_madvise_of_other_advice_reaches_the_kernel(act):
    """MADV_DONTNEED drops pages, MADV_DONTDUMP shows in the mapping's flags."""

    def code():
        memory = filled(7, 4)
        mman.madvise((at(memory, 1), PAGE), mman.MADV_DONTNEED)
        assert (memory[0], memory[PAGE]) == (7, 0)
        mman.madvise(memory, mman.MADV_DONTDUMP)
        assert "dd" in vm_flags(at(memory))
        mman.madvise(memory, mman.MADV_DODUMP)
        assert "dd" not in vm_flags(at(memory))

    act(code)


def test_dontneed_on_a_flagged_range_gives_the_memory_back_and_its_pages_fault_again(act):
    """The resident size falls, and the next touch is a fault and no page of zeros."""

    def code():
        memory = filled(7, 2048)
        mman.madvise(memory, mman.MADV_USERFAULT)
        before = resident_bytes()
        mman.madvise(memory, mman.MADV_DONTNEED)
        assert before - resident_bytes() > 1900 * PAGE
        for page in (0, 1, 1000, 2047):
            raised(UserFault, lambda page=page: touch(at(memory, page)))
            raised(UserFault, lambda page=page: load(at(memory, page)) + len(""))

    act(code)


def test_ranges_tell_what_is_flagged(act):
    """Start, length and state of each range; nothing once the flag is gone."""

    def code():
        memory = mman.anonymous(8 * PAGE)
        assert mman.ranges() == []
        mman.madvise((at(memory, 2), 3 * PAGE), mman.MADV_USERFAULT)
        (one,) = mman.ranges()
        assert (one.start, one.length, one.flagged, one.owner) == (at(memory, 2), 3 * PAGE, True, None)
        assert (one.fork, one.resolver) == ("deny", "raise")
        mman.madvise(memory, mman.MADV_NOUSERFAULT)
        assert mman.ranges() == []

    act(code)


def test_thousands_of_single_pages_are_flagged_soon(act):
    """Every other page of a range, one call each: what a call looks at does not grow with them."""
    act(
        """
memory = mman.anonymous(6000 * PAGE)
began = time.monotonic()
for page in range(0, 6000, 2):
    mman.madvise((at(memory, page), PAGE), mman.MADV_USERFAULT)
assert time.monotonic() - began < 10
assert len(mman.ranges()) == 3000
raised(UserFault, lambda: touch(at(memory, 4000)))
assert touch(at(memory, 4001)) == 0
""",
        timeout=90,
    )
