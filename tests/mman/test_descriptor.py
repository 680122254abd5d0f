"""B3, the descriptor, rule by rule: the handshake and its four states, reads newest first, poll bits, and the wake.

Reads have 8 bytes, writes 16, with their errno; command 0, the wake, is ENOENT when nobody waits.
"""

from __future__ import annotations

import errno
import os
import select
import struct
import sys

import pytest

from mman.kit import PAGE, UserFault, at, errno_of, flagged, mman, raised, served, table, touch
from mman.waiting import Touching, bits, command, waiting

pytestmark = pytest.mark.kernel

# The handshake


def test_write_of_the_protocol_leads_to_a_running_descriptor(act):
    """ask, ack, running; eight bytes each way."""

    def code():
        with mman.userfaultfd(handshake=False) as it:
            assert (it.state, bits(it)) == ("ask", "out")
            assert it.write(struct.pack("=Q", 0xAA)) == 8
            assert (it.state, bits(it)) == ("ack", "in")
            assert it.read(8) == struct.pack("=Q", 0xAA)
            assert (it.state, bits(it)) == ("running", "")
        assert mman.userfaultfd().state == "running"

    act(code)


def test_write_of_another_protocol_is_answered_and_asked_again(act):
    """unknown, the answer 2**64-1, and ask once more."""

    def code():
        with mman.userfaultfd(handshake=False) as it:
            assert it.write(struct.pack("=Q", 0xAB)) == 8
            assert (it.state, bits(it)) == ("unknown", "in")
            assert errno_of(it.write, struct.pack("=Q", 0xAA)) == errno.EINVAL
            assert it.read(8) == b"\xff" * 8
            assert (it.state, bits(it)) == ("ask", "out")
            it.write(struct.pack("=Q", 0xAA))
            assert it.read(64) == struct.pack("=Q", 0xAA)

    act(code)


def test_calls_in_the_wrong_state_are_einval(act):
    """A read before the protocol, a write before the answer, a protocol of seven bytes."""

    def code():
        with mman.userfaultfd(handshake=False) as it:
            assert errno_of(it.read, 8) == errno.EINVAL
            assert errno_of(it.write, b"\xaa" + bytes(6)) == errno.EINVAL
            assert it.state == "ask"
            it.write(struct.pack("=Q", 0xAA))
            assert errno_of(it.write, command(PAGE, 2 * PAGE)) == errno.EINVAL
            assert errno_of(it.read, 7) == errno.EINVAL
            assert it.state == "ack"

    act(code)


def test_userfaultfd_takes_two_flags_and_no_others(act):
    """O_CLOEXEC and O_NONBLOCK."""

    def code():
        for flags in (os.O_APPEND, 1, os.O_CLOEXEC | os.O_DIRECT):
            assert errno_of(mman.userfaultfd, flags) == errno.EINVAL, flags
        for flags in (0, os.O_CLOEXEC, os.O_NONBLOCK, os.O_CLOEXEC | os.O_NONBLOCK):
            with mman.userfaultfd(flags) as it:
                assert not (flags & os.O_CLOEXEC and os.get_inheritable(it.fileno()))

    act(code)


# Reading


def test_fault_of_a_flagged_and_registered_range_is_read_as_an_address(act):
    """As touched, not rounded; the thread waits until it is woken."""

    def code():
        memory = flagged(4)
        with mman.userfaultfd() as it:
            it.register(memory)
            thread = Touching(at(memory, 2) + 123)
            assert struct.unpack("=Q", it.read(8)) == (at(memory, 2) + 123,)
            table(7, 2, memory)
            it.wake(at(memory, 2))
            assert thread.ended() == 7

    act(code)


def test_read_of_fewer_than_eight_bytes_is_einval(act):
    """The fault stays unread."""

    def code():
        memory = flagged(1)
        with mman.userfaultfd() as it:
            it.register(memory)
            thread = waiting(it, at(memory))
            for size in (0, 7):
                assert errno_of(it.read, size) == errno.EINVAL
            assert it.pending == 1
            assert len(it.read(4096)) == 8
        assert thread.ended() == "UserFault"

    act(code)


def test_read_without_a_fault_is_eagain_where_it_may_not_wait(act):
    """BlockingIOError, as for any descriptor."""

    def code():
        with mman.userfaultfd(os.O_NONBLOCK) as it:
            assert raised(BlockingIOError, lambda: it.read(8)).errno == errno.EAGAIN
            raised(BlockingIOError, it.read_fault)

    act(code)


def test_reads_give_the_newest_fault_first(act):
    """The proposal's lists were last in, first out."""

    def code():
        memory = flagged(5)
        with mman.userfaultfd() as it:
            it.register(memory)
            threads = [waiting(it, at(memory, page)) for page in range(5)]
            assert [(it.read_fault() - at(memory)) // PAGE for _ in range(5)] == [4, 3, 2, 1, 0]
            for page in range(5):
                table(page + 1, page, memory)
            assert it.write(command(at(memory), at(memory, 5))) == 16
            assert [thread.ended() for thread in threads] == [1, 2, 3, 4, 5]

    act(code)


def test_two_threads_on_one_page_are_two_faults(act):
    """One wake lets both go on."""

    def code():
        memory = flagged(1)
        with mman.userfaultfd() as it:
            it.register(memory)
            threads = [waiting(it, at(memory) + offset) for offset in (0, 9)]
            assert [it.read_fault() - at(memory) for _ in range(2)] == [9, 0]
            table(7, 0, memory)
            it.wake(at(memory))
            assert [thread.ended() for thread in threads] == [7, 7]

    act(code)


def test_system_call_on_a_page_of_a_registered_range_waits_like_a_touch(act):
    """read(2) into it and process_vm_readv; the address is read, the page moved, the call ends well."""

    def code():
        memory = mman.anonymous(4 * PAGE)
        with served(memory, lambda page: page + 1) as seen:
            reader, writer = os.pipe()
            os.write(writer, memoryview(memory)[2 * PAGE : 2 * PAGE + 8])
            assert os.read(reader, 99) == b"\3" * 8
            os.write(writer, b"news")
            assert os.readv(reader, [memoryview(memory)[PAGE : PAGE + 4]]) == 4
            assert memory[PAGE : PAGE + 5] == b"news\2"
            assert {address // PAGE - at(memory) // PAGE for address in seen} == {1, 2}

    act(code)


# Polls


def test_poll_says_in_for_unread_and_out_for_unwoken_faults(act):
    """Each bit by itself, both, and neither."""

    def code():
        memory = flagged(2)
        with mman.userfaultfd() as it:
            it.register(memory)
            assert bits(it) == ""
            first = waiting(it, at(memory))
            assert (bits(it), it.pending, it.unwoken) == ("in", 1, 0)
            it.read_fault()
            assert (bits(it), it.pending, it.unwoken) == ("out", 0, 1)
            second = waiting(it, at(memory, 1))
            assert (bits(it), it.pending, it.unwoken) == ("in out", 1, 1)
            table(7, 0, memory)
            it.wake(at(memory))
            assert first.ended() == 7
            assert (bits(it), it.pending, it.unwoken) == ("in", 1, 0)
            it.read_fault()
            table(8, 1, memory)
            it.wake(at(memory, 1))
            assert (second.ended(), bits(it)) == (8, "")

    act(code)


def test_poll_that_waits_ends_with_a_fault(act):
    """So that one loop can serve many descriptors."""

    def code():
        memory = flagged(1)
        with mman.userfaultfd() as it:
            it.register(memory)
            thread = Touching(at(memory))
            assert select.select([it], [], [], 5)[0] == [it]
            assert it.read_fault() == at(memory)
        assert thread.ended() == "UserFault"

    act(code)


def test_fdinfo_tells_pending_total_and_protocols(act):
    """`total` counts waiting faults, read or not."""

    def code():
        memory = flagged(2)
        with mman.userfaultfd() as it:
            it.register(memory)
            threads = [waiting(it, at(memory)), waiting(it, at(memory, 1))]
            it.read_fault()
            found = it.fdinfo()
            assert (found.pending, found.total) == (1, 2), found
            assert found.protocols
        assert [thread.ended() for thread in threads] == ["UserFault"] * 2

    act(code)


# Wake


def test_wake_where_no_read_fault_waits_is_enoent(act):
    """Also while an unread one does; and it goes on waiting."""

    def code():
        memory = flagged(2)
        with mman.userfaultfd() as it:
            it.register(memory)
            assert errno_of(it.wake, at(memory)) == errno.ENOENT
            thread = waiting(it, at(memory))
            assert errno_of(it.wake, at(memory)) == errno.ENOENT
            assert it.read_fault() == at(memory)
            assert errno_of(it.wake, at(memory, 1)) == errno.ENOENT
            table(7, 0, memory)
            assert it.write(command(at(memory), at(memory, 1))) == 16
            assert errno_of(it.wake, at(memory)) == errno.ENOENT
            assert thread.ended() == 7

    act(code)


def test_wake_without_a_page_is_another_fault(act):
    """The instruction starts again and meets the same hole."""

    def code():
        memory = flagged(1)
        with mman.userfaultfd() as it:
            it.register(memory)
            thread = waiting(it, at(memory))
            for _ in range(3):
                assert it.read_fault() == at(memory)
                it.wake(at(memory))
            it.read_fault()
            table(7, 0, memory)
            it.wake(at(memory))
            assert thread.ended() == 7

    act(code)


@pytest.mark.parametrize("number", [0, 1, 2], ids=["wake", "register", "unregister"])
def test_write_of_a_bad_range_gets_the_errno_of_its_fault(act, number):
    """Unaligned EINVAL, empty or backwards ERANGE, beyond all tasks ENOMEM, too short EINVAL."""

    def code():
        number, memory = int(sys.argv[1]), flagged(2)
        low, high = at(memory), at(memory, 2)
        with mman.userfaultfd() as it:
            for start, end, wanted in (
                (low + 16, high, errno.EINVAL),
                (low, high - 16, errno.EINVAL),
                (low, low, errno.ERANGE),
                (high, low, errno.ERANGE),
                (low, 1 << 56, errno.ENOMEM),
            ):
                assert errno_of(it.write, command(start, end, number)) == wanted, (hex(start), hex(end))
            for size in (0, 8, 15):
                assert errno_of(it.write, command(low, high, number)[:size]) == errno.EINVAL
        assert raised(UserFault, lambda: touch(low))

    act(code, args=[number])


def test_write_of_the_fourth_command_is_einval(act):
    """Two bits, three commands."""

    def code():
        memory = flagged(1)
        with mman.userfaultfd() as it:
            assert errno_of(it.write, command(at(memory), at(memory, 1), 3)) == errno.EINVAL

    act(code)


def test_write_takes_any_buffer(act):
    """As the write of a file does; what is no buffer is a TypeError, and what has gaps too."""

    def code():
        import array
        import ctypes
        import mmap

        memory = flagged(1)
        for made in (bytes, bytearray, memoryview, lambda data: array.array("Q", data)):
            with mman.userfaultfd() as it:
                for number in (1, 2):
                    assert it.write(made(command(at(memory), at(memory, 1), number))) == 16
                assert errno_of(it.write, made(bytes(8))) == errno.EINVAL
        with mman.userfaultfd() as it:

            class Command(ctypes.Structure):
                _fields_ = (("start", ctypes.c_uint64), ("end", ctypes.c_uint64))

            assert it.write(Command(at(memory) | 1, at(memory, 1))) == 16
            huge = mmap.mmap(-1, 1 << 40, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
            assert errno_of(it.write, huge) == errno.ERANGE
        with mman.userfaultfd() as it:
            for wrong in ("text", 5, None):
                raised(TypeError, lambda wrong=wrong: it.write(wrong))
            raised(BufferError, lambda: it.write(memoryview(bytes(64))[::2]))

    act(code)


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), -1.0])
def test_a_timeout_that_is_none_is_refused(act, timeout):
    """By the class as by the function."""

    def code():
        timeout = float(sys.argv[1])
        for make in (
            lambda: mman.userfaultfd(timeout=timeout),
            lambda: mman.Userfaultfd2014(nonblocking=False, user_mode_only=True, timeout_seconds=timeout),
        ):
            assert "timeout" in str(raised(ValueError, make))

    act(code, args=[timeout])
