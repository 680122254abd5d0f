"""The model of the 2014 rules, by itself: it needs no kernel."""

from __future__ import annotations

import doctest
import errno

import pytest

from userfault.testing import model2014
from userfault.testing.model2014 import PAGE, PROTOCOL, TASK_SIZE, Outcome, Space

BASE = 64 * PAGE


def page(number):
    return BASE + number * PAGE


@pytest.fixture
def space():
    """Eight private pages, four holes, and a page far above."""
    it = Space()
    it.mmap(BASE, 8 * PAGE)
    it.mmap(page(100), PAGE)
    return it


def flagged(policy="madvise", pages=8):
    it = Space(policy)
    it.mmap(BASE, pages * PAGE)
    it.mmap(page(100), PAGE)
    if policy == "madvise":
        it.madvise(BASE, pages * PAGE, "userfault")
    elif policy == "mprotect":
        it.mprotect(BASE, pages * PAGE, "rw", userfault=True)
    return it


def kinds(space, *numbers):
    return [space.touch(page(number)).kind for number in numbers]


def test_docstring_of_the_model_is_true():
    """The example at its top."""
    assert doctest.testmod(model2014).failed == 0


def test_touch_of_ordinary_memory_is_zero_then_data(space):
    """And a hole in the mappings is SEGV."""
    assert kinds(space, 0, 0, 9) == ["zero", "data", "segv"]
    assert space.write(page(1), 7).kind == "zero"
    assert space.touch(page(1) + 5) == Outcome("data", 7)


@pytest.mark.parametrize("policy", ["madvise", "mprotect"])
def test_joining_rule_takes_both(policy):
    """Flagged and registered: descriptor; flagged: sigbus; registered: zero."""
    it = flagged(policy, 2)
    it.mmap(page(2), 2 * PAGE)
    number = it.userfaultfd()
    assert it.register(number, page(1), page(3)) == 16
    assert kinds(it, 0, 1, 2, 3) == ["sigbus", "descriptor", "zero", "zero"]


def test_register_only_engages_and_close_leaves_sigbus():
    """Unregister gives zeros, close does not."""
    it = flagged("register-only")
    number = it.userfaultfd()
    it.register(number, BASE, page(4))
    it.unregister(number, page(0), page(1))
    assert kinds(it, 0, 1, 5) == ["zero", "descriptor", "zero"]
    assert [fault.address for fault in it.close(number)] == [page(1)]
    assert kinds(it, 1, 2, 5) == ["sigbus", "sigbus", "data"]


def test_register_of_what_cannot_fault_is_einval_under_register_only_alone():
    """Under the others it is remembered, and without effect."""
    for policy, wanted in (("madvise", 16), ("register-only", -errno.EINVAL)):
        it = Space(policy)
        it.mmap(BASE, PAGE, "shared")
        assert it.register(it.userfaultfd(), BASE, page(1)) == wanted
        assert kinds(it, 0) == ["zero"]


def test_madvise_stops_at_a_bad_mapping_and_passes_over_holes(space):
    """EINVAL, ENOMEM, and what was done by then."""
    space.mmap(page(2), PAGE, "shared")
    assert space.madvise(BASE, 4 * PAGE, "userfault") == -errno.EINVAL
    assert kinds(space, 0, 1, 2, 3) == ["sigbus", "sigbus", "zero", "zero"]
    space.munmap(page(2), PAGE)
    assert space.madvise(BASE, 5 * PAGE, "userfault") == -errno.ENOMEM
    assert kinds(space, 1, 4) == ["sigbus", "sigbus"]


def test_madvise_checks_alignment_rounds_up_and_takes_nothing(space):
    """Start, length, zero."""
    assert space.madvise(BASE + 16, PAGE, "userfault") == -errno.EINVAL
    assert space.madvise(BASE, 0, "userfault") == 0
    assert space.madvise(BASE, PAGE + 1, "userfault") == 0
    assert kinds(space, 0, 1, 2) == ["sigbus", "sigbus", "zero"]


def test_dontneed_drops_private_pages_only(space):
    """What is shared is still in the shared object."""
    space.mmap(page(1), PAGE, "shared")
    space.write(page(0), 7), space.write(page(1), 8)
    assert space.madvise(BASE, 2 * PAGE, "dontneed") == 0
    assert [space.touch(page(number)).value for number in (0, 1)] == [0, 8]


@pytest.mark.parametrize("policy", ["madvise", "mprotect", "register-only"])
def test_flag_calls_of_other_policies_are_einval(policy):
    """Each policy knows its own."""
    it = Space(policy)
    it.mmap(BASE, PAGE)
    assert it.madvise(BASE, PAGE, "userfault") == (0 if policy == "madvise" else -errno.EINVAL)
    assert it.madvise(BASE, PAGE, "nouserfault") == (0 if policy == "madvise" else -errno.EINVAL)
    assert it.mprotect(BASE, PAGE, "rw", userfault=True) == (0 if policy == "mprotect" else -errno.EINVAL)
    assert it.mprotect(BASE, PAGE) == 0


def test_mprotect_without_the_flag_takes_it_away():
    """Under its policy; the protection decides before the flag."""
    it = flagged("mprotect")
    assert it.mprotect(page(1), PAGE, "r") == 0
    assert kinds(it, 0, 1) == ["sigbus", "zero"]
    assert it.write(page(1), 7).kind == "segv"
    it.munmap(page(3), PAGE)
    assert it.mprotect(page(2), 3 * PAGE) == -errno.ENOMEM
    assert kinds(it, 2, 4) == ["zero", "sigbus"]


def test_handshake_goes_through_its_states():
    """ask, ack, running; unknown leads back to ask."""
    it = Space()
    number = it.userfaultfd(handshake=False)
    one = it.descriptors[number]
    assert it.read(number, 8) == -errno.EINVAL
    assert it.write_command(number, b"1234567") == -errno.EINVAL
    assert it.write_command(number, (5).to_bytes(8, "little")) == 8
    assert (one.state, one.readable, one.writable) == ("unknown", True, False)
    assert it.write_command(number, PROTOCOL.to_bytes(8, "little")) == -errno.EINVAL
    assert it.read(number, 8) == b"\xff" * 8
    it.write_command(number, PROTOCOL.to_bytes(8, "little"))
    assert it.read(number, 7) == -errno.EINVAL
    assert it.read(number, 8) == PROTOCOL.to_bytes(8, "little")
    assert (one.state, one.readable, one.writable) == ("running", False, False)


def test_faults_are_read_newest_first_and_woken_once():
    """Poll follows; a wake needs a read fault."""
    it = flagged()
    number = it.userfaultfd()
    it.register(number, BASE, page(8))
    for thread, where in (("a", page(1)), ("b", page(2)), ("c", page(2) + 9)):
        assert it.touch(where, thread) == Outcome("descriptor", number)
    one = it.descriptors[number]
    assert (one.readable, one.writable) == (True, False)
    assert it.wake(number, page(1), page(2)) == -errno.ENOENT
    assert it.read(number, 8) == (page(2) + 9).to_bytes(8, "little")
    assert (one.readable, one.writable) == (True, True)
    assert [it.read_fault(number) for _ in range(3)] == [page(2), page(1), -errno.EAGAIN]
    assert it.wake(number, page(2), page(3)) == 16
    assert [fault.thread for fault in one.unwoken] == ["a"]
    assert it.wake(number, page(2), page(3)) == -errno.ENOENT


def test_commands_check_their_range(space):
    """In the order of the proposal."""
    number = space.userfaultfd()

    def command(start, end, which=1):
        return space.write_command(number, (start | which).to_bytes(8, "little") + end.to_bytes(8, "little"))

    assert command(BASE + 16, page(1)) == command(BASE, page(1) + 16) == -errno.EINVAL
    assert command(BASE, BASE) == command(page(1), BASE) == -errno.ERANGE
    assert command(BASE, TASK_SIZE + PAGE) == -errno.ENOMEM
    assert command(BASE, page(1), 3) == -errno.EINVAL
    assert space.write_command(number, b"short") == -errno.EINVAL
    assert command(page(9), page(10)) == -errno.EINVAL
    assert command(page(101), page(102)) == -errno.ENOMEM
    assert command(BASE, page(12)) == 16


def test_register_stops_at_the_range_of_another(space):
    """What was before it stays registered."""
    first, second = space.userfaultfd(), space.userfaultfd()
    space.register(first, page(2), page(3))
    assert space.register(second, BASE, page(5)) == -errno.EBUSY
    assert [space.pages[page(n) // PAGE].owner for n in range(4)] == [second, second, first, None]


def test_remap_moves_and_says_how_far(space):
    """Success, short count, and the errno at once."""
    for number in (0, 1, 3):
        space.write(page(number), number + 1)
    assert space.remap_anon_pages(page(4), page(0), 4 * PAGE) == 2 * PAGE
    assert space.remap_anon_pages(page(6), page(2), 2 * PAGE) == -errno.ENOENT
    assert space.remap_anon_pages(page(6), page(2), 2 * PAGE, 1) == 2 * PAGE
    assert [space.touch(page(n)) for n in (4, 5, 7)] == [Outcome("data", 1), Outcome("data", 2), Outcome("data", 4)]
    assert space.pages[page(0) // PAGE].content is None
    assert space.remap_anon_pages(page(4), page(5), PAGE) == -errno.EEXIST


def test_remap_refuses_what_it_cannot_take(space):
    """Alignment, length, flags, holes, kinds, more than one mapping."""
    space.write(page(0), 7)
    space.mmap(page(5), PAGE, "shared")
    space.mprotect(page(6), PAGE, "r")
    space.madvise(page(2), PAGE, "userfault")
    bad = [(page(1) + 16, page(0), PAGE, 0), (page(1), page(0), 16, 0), (page(1), page(0), 0, 0), (page(1), page(0), PAGE, 2)]
    bad += [
        (page(9), page(0), PAGE, 0),
        (page(5), page(0), PAGE, 0),
        (page(6), page(0), PAGE, 0),
        (page(1), page(0), 2 * PAGE, 0),
    ]
    assert {space.remap_anon_pages(*one) for one in bad} == {-errno.EINVAL}
    assert space.remap_anon_pages(page(2), page(0), PAGE) == PAGE


def test_mremap_takes_flag_content_and_registration_along():
    """The old place is a hole."""
    it = flagged()
    number = it.userfaultfd()
    it.register(number, BASE, page(8))
    assert it.mremap(page(1), PAGE, page(20)) == 0
    assert kinds(it, 1, 20) == ["segv", "descriptor"]
    assert it.mremap(page(1), PAGE, page(30)) == -errno.EFAULT


def test_mmap_over_a_range_ends_flag_and_registration():
    """Fresh memory."""
    it = flagged()
    it.register(it.userfaultfd(), BASE, page(8))
    it.mmap(page(3), PAGE)
    assert kinds(it, 2, 3) == ["descriptor", "zero"]
