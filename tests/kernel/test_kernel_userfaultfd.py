"""`userfault.kernel.Userfaultfd` against the running kernel. Touches of lazy pages happen in children."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import threading
import warnings

import pytest

from userfault import kernel as uk

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]
PAGE = mmap.PAGESIZE


@pytest.fixture
def memory():
    """Eight private pages that nobody has touched."""
    return mmap.mmap(-1, 8 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


@pytest.fixture
def fd():
    """A descriptor that every user may have."""
    with uk.Userfaultfd(user_mode_only=True) as made:
        yield made


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_copy_fills_absent_pages_only(fd, memory):
    """A page that is there is never changed: the outcome says where the copy stopped."""
    fd.register(memory)
    address, _ = uk.range_of(memory)
    assert fd.copy(address + 2 * PAGE, b"a" * PAGE).done
    outcome = fd.copy(memory, b"b" * 4 * PAGE)
    assert (outcome.partial, outcome.bytes) == (True, 2 * PAGE)
    assert fd.copy((address + 2 * PAGE, PAGE), b"b" * PAGE).exists
    assert memory[: 3 * PAGE] == b"b" * 2 * PAGE + b"a" * PAGE


def test_copy_takes_its_length_from_the_source(fd, memory):
    """The source decides unless a length is given, and neither side is left."""
    fd.register(memory)
    address, _ = uk.range_of(memory)
    assert fd.copy(address, bytearray(2 * PAGE)).bytes == 2 * PAGE
    assert fd.copy(address + 2 * PAGE, b"c" * 4 * PAGE, PAGE).bytes == PAGE
    with pytest.raises(ValueError, match="do not fit the source"):
        fd.copy(memory, b"d" * PAGE, 2 * PAGE)
    with pytest.raises(ValueError, match="do not fit the destination"):
        fd.copy((address, PAGE), b"d" * 2 * PAGE)
    with pytest.raises(TypeError, match="need a length"):
        fd.copy(address, address)


def test_copy_from_an_unaligned_source_works(fd, memory):
    """Bytes objects lie anywhere; only the destination is pages."""
    fd.register(memory)
    assert fd.copy(memory, memoryview(b"x" + bytes(range(256)) * 16)[1:]).done
    assert memory[:256] == bytes(range(256))


def test_zeropage_and_move_bring_pages(fd, memory, kernel):
    """Zeros cost nothing; a moved page leaves its source."""
    kernel.need("move")
    fd.register(memory)
    address, _ = uk.range_of(memory)
    source = mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    source[:4] = b"page"
    assert fd.zeropage((address, PAGE)).done
    assert fd.move((address + PAGE, PAGE), source).done
    assert (memory[0], memory[PAGE : PAGE + 4], source[:4]) == (0, b"page", b"\0" * 4)
    hole = fd.move((address + 2 * PAGE, PAGE), source)
    assert hole.done or hole.failed  # reading the source above may have put the zero page there
    assert fd.move(address + 3 * PAGE, (uk.range_of(memory)[0], PAGE), mode=uk.MoveMode.ALLOW_SRC_HOLES).done


def test_move_of_shared_memory_fails_with_the_errno(fd, memory, kernel):
    """mmap.mmap without flags is shared memory, which cannot be moved."""
    kernel.need("move")
    fd.register(memory)
    outcome = fd.move(memory, mmap.mmap(-1, PAGE))
    assert outcome.failed
    with pytest.raises(OSError, match="failed after 0 bytes: Invalid argument") as raised:
        outcome.check()
    assert raised.value.errno == 22


def test_poison_makes_a_touch_die_and_copy_lifts_it(child, kernel):
    """A poisoned page is SIGBUS for the CPU and EFAULT for a system call."""
    kernel.need("poison")

    def code():
        import os

        from kernel.touching import PAGE, private
        from userfault import kernel as uk

        fd, memory = uk.Userfaultfd(user_mode_only=True), private(2)
        fd.register(memory)
        address, _ = uk.range_of(memory)
        assert fd.poison(memory).done
        assert fd.poison(memory).exists
        assert fd.copy((address, PAGE), b"x" * PAGE).done
        assert memory[0] == ord("x")
        view, null = memoryview(memory)[PAGE:], os.open("/dev/zero", os.O_RDONLY)
        try:
            os.readv(null, [view])
        except OSError as error:
            print(error.errno, flush=True)
        memory[PAGE]

    result = child(code)
    assert result.stdout == "14\n"
    assert result.signal is not None
    assert result.signal.name == "SIGBUS"


def test_register_of_a_part_of_a_page_says_why(fd):
    """numpy and bytearray memory start inside a page: the error tells it."""
    with pytest.raises(OSError, match="whole pages") as raised:
        fd.register((PAGE + 16, PAGE))
    assert raised.value.errno == 22
    assert "whole pages" in raised.value.hint


def test_register_keeps_the_buffer_from_being_closed(fd, memory):
    """Memory under a registration cannot be unmapped by accident, and can be after it."""
    fd.register(memory)
    with pytest.raises(BufferError):
        memory.close()
    fd.unregister(memory)
    memory.close()


def test_unregister_of_a_part_keeps_the_buffer(fd, memory):
    """The export goes when the whole registration has gone."""
    fd.register(memory)
    address, length = uk.range_of(memory)
    fd.unregister((address, PAGE))
    with pytest.raises(BufferError):
        memory.close()
    fd.unregister((address, length))
    memory.close()


def test_bare_address_without_length_is_refused(fd):
    """A range must say how long it is."""
    with pytest.raises(TypeError, match="no length"):
        fd.register(PAGE)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="bytes-like"):
        fd.register("text")  # type: ignore[arg-type]


def test_place_accepts_numpy_scalars_as_addresses(fd, memory):
    """A numpy integer has a buffer of its own, which nobody means."""
    numpy = pytest.importorskip("numpy")
    fd.register(memory)
    address, _ = uk.range_of(memory)
    assert fd.copy(numpy.uint64(address), numpy.full(PAGE, 7, "u1")).done
    assert memory[0] == 7


def test_noncontiguous_buffer_is_refused():
    """A range of addresses cannot have gaps."""
    numpy = pytest.importorskip("numpy")
    with pytest.raises(ValueError, match="contiguous"):
        uk.range_of(numpy.zeros((4, 4))[:, ::2])


def test_closed_descriptor_raises_value_error_everywhere(memory):
    """No call reaches a number that may belong to somebody else by now."""
    fd = uk.Userfaultfd(user_mode_only=True)
    fd.close()
    fd.close()
    where = uk.range_of(memory)
    calls = [
        fd.fileno,
        fd.counts,
        lambda: fd.features,
        fd.read_events,
        lambda: fd.register(where),
        lambda: fd.unregister(where),
        lambda: fd.wake(where),
        lambda: fd.copy(where, b"x" * PAGE),
        lambda: fd.move(where, where),
        lambda: fd.zeropage(where),
        lambda: fd.poison(where),
        lambda: fd.continue_(where),
        lambda: fd.write_protect(where),
        lambda: fd.rw_protect(where),
        lambda: fd.set_mode(),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="closed"):
            call()
    assert fd.closed
    assert repr(fd) == "<Userfaultfd closed>"


def test_dropped_open_descriptor_warns_and_closes():
    """An open descriptor that nobody holds is a mistake, but not a leak."""
    before = open_files()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        uk.Userfaultfd(user_mode_only=True)
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    assert "unclosed <Userfaultfd" in str(caught[0].message)
    assert open_files() == before


def test_close_leaks_no_descriptor():
    """Opening and closing a thousand times leaves the table as it was."""
    before = open_files()
    for _ in range(1000):
        uk.Userfaultfd(user_mode_only=True).close()
    assert open_files() == before


@pytest.mark.parametrize("readers", [1, 4])
def test_close_beside_blocked_readers_ends_them(readers):
    """Each reader gets ValueError, soon, and the descriptor is gone afterwards."""
    before = open_files()
    fd = uk.Userfaultfd(user_mode_only=True)
    ended = []

    def read():
        try:
            fd.read_events()
        except ValueError as error:
            ended.append(str(error))

    threads = [threading.Thread(target=read, daemon=True) for _ in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(0.02)
    fd.close()
    for thread in threads:
        thread.join(5)
    assert ended == ["operation on a closed userfaultfd"] * readers
    assert open_files() == before


def test_features_are_those_asked_for(kernel):
    """The descriptor tells what is in force, with what that implies."""
    wanted = uk.Features.THREAD_ID | uk.Features.EXACT_ADDRESS
    with uk.Userfaultfd(wanted, user_mode_only=True) as fd:
        assert fd.features == wanted
        assert "THREAD_ID|EXACT_ADDRESS" in repr(fd)


def test_unknown_feature_is_named():
    """EINVAL alone would not say which."""
    with pytest.raises(OSError, match="no userfaultfd feature"):
        uk.Userfaultfd(uk.Features(1 << 50), user_mode_only=True)


def test_from_fd_takes_over_a_userfaultfd_and_nothing_else():
    """Another descriptor is refused, and stays with the caller."""
    with uk.Userfaultfd(uk.Features.THREAD_ID, user_mode_only=True) as fd:
        with uk.Userfaultfd.from_fd(os.dup(fd.fileno())) as copy:
            assert copy.features == uk.Features.THREAD_ID
    with open("/dev/null") as other:
        with pytest.raises(OSError, match="Invalid argument"):
            uk.Userfaultfd.from_fd(other.fileno())
        other.read()
    with pytest.raises(OSError, match="No such file"):
        uk.Userfaultfd.from_fd(10_000_000)


def test_operations_of_newer_kernels_fail_politely(fd, memory):
    """Where there is no RWP the outcome says so."""
    if uk.Features.RWP in uk.capabilities().features:
        pytest.skip("this kernel has RWP")
    fd.register(memory)
    assert fd.rw_protect(memory).failed
    with pytest.raises(OSError):
        fd.set_mode(enable=uk.Features.RWP_ASYNC)


@pytest.mark.parametrize("kind", ["bytes", "words", "rows"])
def test_range_of_a_ctypes_array_is_its_memory(kind):
    """They export no strides; whatever is in one piece will do."""
    kinds = {"bytes": ctypes.c_char * 100, "words": ctypes.c_uint32 * 16, "rows": (ctypes.c_double * 4) * 4}
    made = kinds[kind]()
    assert uk.range_of(made) == (ctypes.addressof(made), ctypes.sizeof(made))
