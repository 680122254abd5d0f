"""What a refused call tells: the errno of the proposal, which of its rules was broken, where, and what to do."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import sys
from pathlib import Path

import pytest
from support.child import source_of

from mman.kit import PAGE, at, filled, flagged, libc, mapped, mman, other_memory, raised, touch
from userfault.kernel import Userfaultfd

pytestmark = pytest.mark.kernel

# In front of the code of a test: `told` says that a call fails so, and that its text holds all these words.
TOLD = """
from userfault.kernel import Userfaultfd
def told(code, call, *words):
    error = raised(OSError, call)
    assert error.errno == code, error
    for word in words:
        assert (hex(word) if isinstance(word, int) else word) in error.strerror, (word, error)
"""


@pytest.fixture
def refused(act):
    """Run a function in a child that knows `told`."""
    return lambda code, **options: act(TOLD + source_of(code), **options)


def told(code, call, *words):
    """The children have their own."""
    raise NotImplementedError


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("file", "shared memory (/"),
        ("private_file", "a private mapping of a file (/"),
        ("shared", "shared anonymous"),
        ("memfd", "memfd:test"),
        ("hugetlb", "hugetlbfs"),
        ("vdso", "the kernel's own ([vdso])"),
    ],
)
def test_madvise_says_what_the_mapping_is_that_cannot_fault(refused, kind, word):
    """Which one of the range, what it is, and what to use instead; register under "register-only" and mprotect likewise."""

    def code():
        kind, word = sys.argv[1:]
        if not (address := other_memory(kind)):
            print("none")
            return
        words = (word, address, "only private anonymous memory can", "mman.anonymous")
        told(errno.EINVAL, lambda: mman.madvise((address, PAGE), mman.MADV_USERFAULT), "MADV_USERFAULT", *words)
        mman.set_policy("mprotect")
        protection = mman.PROT_READ | mman.PROT_WRITE | mman.PROT_USERFAULT
        told(errno.EINVAL, lambda: mman.mprotect((address, PAGE), protection), "mprotect", *words)
        mman.set_policy("register-only")
        descriptor = mman.userfaultfd(user_mode_only=True)
        told(errno.EINVAL, lambda: descriptor.register((address, PAGE)), "register", *words)

    if refused(code, args=[kind, word]).stdout:
        pytest.skip(f"this machine has no {kind}")


def test_madvise_of_droppable_memory_says_that_it_is_that(refused):
    """It is private and anonymous, so the usual reason would be wrong."""

    def code():
        address = libc.mmap(None, PAGE, 3, 0x20 | 0x08, -1, 0)
        if address in (None, 2**64 - 1):
            print("none")
            return
        told(errno.EINVAL, lambda: mman.madvise((address, PAGE), mman.MADV_USERFAULT), "MAP_DROPPABLE", address)

    if refused(code).stdout:
        pytest.skip("this kernel has no MAP_DROPPABLE")


def test_holes_are_named(refused):
    """ENOMEM says where nothing is mapped, and what was done all the same."""

    def code():
        start = mapped(3 * PAGE)
        libc.munmap(start + PAGE, PAGE)
        whole = (start, 3 * PAGE)
        for advice in (mman.MADV_USERFAULT, mman.MADV_DONTNEED):
            told(errno.ENOMEM, lambda advice=advice: mman.madvise(whole, advice), start + PAGE, "nothing is mapped", "rest")
        told(errno.ENOMEM, lambda: mman.mprotect(whole, mman.PROT_READ), start + PAGE, "below it was done")
        told(errno.ENOMEM, lambda: mman.mprotect((start + PAGE, PAGE), mman.PROT_READ), start + PAGE, "map it first")
        descriptor = mman.userfaultfd(user_mode_only=True)
        told(errno.EINVAL, lambda: descriptor.register((start + PAGE, PAGE)), start + PAGE, "nothing is mapped")

    refused(code)


def test_other_advice_and_protection_name_the_mapping(refused):
    """The kernel's EINVAL and EACCES have many reasons: the message says which mapping it was, and of what kind."""

    def code():
        shared = other_memory("shared")
        told(errno.EINVAL, lambda: mman.madvise((shared, PAGE), mman.MADV_FREE), "MADV_FREE", "shared anonymous", shared)
        with open("/proc/self/exe", "rb") as file:
            only_read = libc.mmap(None, PAGE, 1, 1, file.fileno(), 0)
        told(errno.EACCES, lambda: mman.mprotect((only_read, PAGE), mman.PROT_WRITE), "protection", only_read)
        denied = flagged(1)
        told(errno.EFAULT, lambda: mman.madvise(denied, mman.MADV_POPULATE_READ), at(denied), "flagged", "no descriptor")
        told(errno.EINVAL, lambda: mman.madvise(denied, mman.MADV_DOFORK), "MADV_NOUSERFAULT first", at(denied))

    refused(code)


def test_what_another_userfaultfd_has_is_ebusy_and_says_whose(refused):
    """A descriptor of 2014 by its number, memory of `kernel.Userfaultfd` by its mapping."""

    def code():
        memory, other = mman.anonymous(2 * PAGE), mapped(PAGE)
        first, second = mman.userfaultfd(user_mode_only=True), mman.userfaultfd(user_mode_only=True)
        first.register((at(memory, 1), PAGE))
        told(errno.EBUSY, lambda: second.register(memory), f"descriptor {first.ident}:", at(memory, 1), "unregister")
        with Userfaultfd(user_mode_only=True) as kernels:
            kernels.register((other, PAGE))
            words = (other, "another userfaultfd", "end that")
            told(errno.EBUSY, lambda: mman.madvise((other, PAGE), mman.MADV_USERFAULT), *words)
            told(errno.EBUSY, lambda: mman.remap_anon_pages(other, filled(1)), *words[:2])

    refused(code)


def test_remap_says_which_rule_of_the_arguments_was_broken(refused):
    """Flags, lengths, starts and ends."""

    def code():
        memory, staging = mman.anonymous(4 * PAGE), filled(7, 4)
        dst, src = at(memory), at(staging)
        move, page = mman.remap_anon_pages, f"{PAGE}"
        told(errno.EINVAL, lambda: move(dst, src, PAGE, 6), "flags 0x6", "RAP_ALLOW_SRC_HOLES")
        told(errno.EINVAL, lambda: move(dst, src, PAGE + 5), f"length of {PAGE + 5}", "whole pages", page)
        told(errno.EINVAL, lambda: move(dst, src, 0), "length of 0", "whole pages")
        told(errno.EINVAL, lambda: move(dst + 8, src, PAGE), "destination", dst + 8, "start on a page")
        told(errno.EINVAL, lambda: move(dst, src + 8, PAGE), "source", src + 8, "start on a page")
        told(errno.EINVAL, lambda: move(dst, -PAGE % 2**64, PAGE), "source", "wraps")

    refused(code)


def test_remap_says_which_rule_of_the_mappings_was_broken(refused):
    """Nothing there, two mappings, the wrong kind, protections, mlock."""

    def code():
        dst, staging, move = mapped(4 * PAGE), filled(7, 4), mman.remap_anon_pages
        src = at(staging)
        libc.munmap(dst + 3 * PAGE, PAGE)
        told(errno.EINVAL, lambda: move(dst + 3 * PAGE, src, PAGE), "nothing is mapped at the destination", dst + 3 * PAGE)
        told(
            errno.EINVAL, lambda: move(dst, src, 4 * PAGE), "destination leaves its mapping", dst + 3 * PAGE, "call once for each"
        )
        shared = other_memory("shared")
        told(errno.EINVAL, lambda: move(dst, shared, PAGE), "source", shared, "shared anonymous", "mman.anonymous")
        mman.mprotect((src + PAGE, PAGE), mman.PROT_READ)
        told(errno.EINVAL, lambda: move(dst, src + PAGE, PAGE), src + PAGE, "may not be written", "mman.mprotect")
        mman.mprotect((src + PAGE, PAGE), mman.PROT_READ | mman.PROT_WRITE | mman.PROT_EXEC)
        told(errno.EINVAL, lambda: move(dst, src + PAGE, PAGE), "differ in protection", "mman.mprotect")
        libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        if libc.mlock(src + 2 * PAGE, PAGE) == 0:
            told(errno.EINVAL, lambda: move(dst, src + 2 * PAGE, PAGE), "locked in memory", "lock both or none")

    refused(code)


def test_remap_says_which_page_was_in_the_way(refused):
    """EEXIST at the destination, ENOENT at the source; EBUSY while a forked child shares the page."""

    def code():
        memory, src, hole = mman.anonymous(2 * PAGE), filled(7), mman.anonymous(PAGE)
        memory[0] = 1
        told(errno.EEXIST, lambda: mman.remap_anon_pages(at(memory), src), at(memory), "ever replaced", "MADV_DONTNEED")
        told(errno.ENOENT, lambda: mman.remap_anon_pages(at(memory, 1), hole), at(hole), "RAP_ALLOW_SRC_HOLES")
        reader, writer = os.pipe()
        if not (child := os.fork()):
            os.read(reader, 1)
            os._exit(0)
        told(errno.EBUSY, lambda: mman.remap_anon_pages(at(memory, 1), src), at(src), "forked child", "MADV_DONTFORK")
        os.write(writer, b".")
        os.waitpid(child, 0)

    refused(code)


def test_a_failing_write_says_which_rule_of_the_protocol_was_broken(refused):
    """Its length, its command, its bounds; and the methods that write for you say the same."""

    def code():
        memory = flagged(2)
        start, descriptor = at(memory), mman.userfaultfd(user_mode_only=True)
        write = lambda first, last: lambda: descriptor.write(struct.pack("=QQ", first, last))  # noqa: E731
        told(errno.EINVAL, lambda: descriptor.write(bytes(15)), "15 bytes", "16")
        told(errno.EINVAL, write(start | 3, start + PAGE), "command 3", "0 (wake), 1 (register) and 2 (unregister)")
        told(errno.EINVAL, write(start + 8, start + PAGE), "starts at", start + 8)
        told(errno.EINVAL, write(start | 1, start + PAGE + 8), "ends at", start + PAGE + 8)
        told(errno.ERANGE, write(start | 1, start), "is empty", start)
        told(errno.ENOMEM, write(start | 1, 1 << 62), "outside of user memory", 1 << 62)
        told(errno.EINVAL, lambda: descriptor.register((start, PAGE + 8)), "register", "ends at", start + PAGE + 8)
        told(errno.ERANGE, lambda: descriptor.unregister((start, 0)), "unregister", "is empty")
        told(errno.ENOENT, lambda: descriptor.wake(start), "wake", start, "no fault in the range was read")

    refused(code)


def test_the_handshake_is_asked_for(refused):
    """Reading, writing and registering out of turn say what comes first."""

    def code():
        memory = flagged(1)
        descriptor = mman.userfaultfd(os.O_NONBLOCK, handshake=False, user_mode_only=True)
        told(errno.EINVAL, lambda: descriptor.write(b"short"), "5 bytes", "mman.PROTOCOL")
        told(errno.EINVAL, lambda: descriptor.read(8), "handshake", "write 8 bytes")
        told(errno.EINVAL, descriptor.read_fault, "handshake")
        told(errno.EINVAL, lambda: descriptor.register(memory), "handshake")
        descriptor.write(struct.pack("=Q", mman.PROTOCOL))
        told(errno.EINVAL, lambda: descriptor.write(struct.pack("=QQ", at(memory), at(memory, 1))), "read 8 bytes")
        told(errno.EINVAL, lambda: descriptor.read(7), "room for 7", "an address has 8")
        descriptor.read(8)
        told(errno.EAGAIN, lambda: descriptor.read(8), "no fault is unread", "O_NONBLOCK")

    refused(code)


def test_on_sigbus_and_set_policy_say_what_stands_in_the_way(refused):
    """The first address that is not flagged; the first range that is still marked."""

    def code():
        memory = mman.anonymous(3 * PAGE)
        mman.madvise((at(memory), PAGE), mman.MADV_USERFAULT)
        told(errno.EINVAL, lambda: mman.on_sigbus(memory, None), at(memory, 1), "not flagged", "MADV_USERFAULT")
        error = raised(RuntimeError, lambda: mman.set_policy("mprotect"))
        for word in (hex(at(memory)), f"{PAGE} bytes", "mman.ranges()", "clear flags, close descriptors, or unmap it"):
            assert word in str(error), error
        mman.madvise(memory, mman.MADV_NOUSERFAULT)
        mman.set_policy("mprotect")
        told(errno.EINVAL, lambda: mman.madvise(memory, mman.MADV_USERFAULT), "policy", at(memory), "PROT_USERFAULT")
        mman.set_policy("register-only")
        told(errno.EINVAL, lambda: mman.on_sigbus(memory, None), "register-only", at(memory))
        protection = mman.PROT_READ | mman.PROT_USERFAULT
        told(errno.EINVAL, lambda: mman.mprotect(memory, protection), 'set_policy("mprotect")', at(memory))

    refused(code)


@pytest.mark.parametrize("length", [1 << 62, 1 << 70])
def test_anonymous_without_room_says_how_much_was_wanted(length):
    """Lengths that no machine has, those that C has no number for too."""
    error = raised(OSError, lambda: mman.anonymous(length))
    assert error.errno == errno.ENOMEM
    assert str(length) in error.strerror


def test_want_of_descriptors_is_called_by_its_name(act):
    """EMFILE wherever one more descriptor is needed: no missing privilege, no closed userfaultfd, no unmapped memory."""
    act(
        """
import resource
memory, staging, plain = flagged(4), filled(1, 2), mman.anonymous(4 * PAGE)
it = mman.userfaultfd(user_mode_only=True)
shared = mmap.mmap(-1, PAGE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
used = []
while errno_of(lambda: used.append(os.dup(0))) == 0:
    pass
for call in (
    it.fileno,
    lambda: mman.userfaultfd(user_mode_only=True),
    lambda: mman.userfaultfd(),
    lambda: mman.remap_anon_pages(at(plain), staging, PAGE),
):
    assert errno_of(call) == errno.EMFILE
try:
    mman.madvise(shared, mman.MADV_USERFAULT)
    raise AssertionError("it was flagged")
except OSError as error:
    assert error.errno == errno.EINVAL and "refuses" not in str(error) and "mapped" not in str(error), error
assert mman.remap_anon_pages(at(memory), staging, PAGE) == PAGE  # needs none
os.close(used.pop())
os.close(used.pop())
assert it.fileno() > 0
os._exit(0)
"""
    )


def test_bytes_of_flagged_memory_are_no_source(act):
    """Only as long as it is flagged, and only where: a tail that was given back is ordinary memory, and may be a source again."""

    def code():
        import ctypes

        import userfault as uf

        memory = flagged(16)
        whole, tail = (ctypes.c_char * (16 * PAGE)).from_address(at(memory)), at(memory, 8)
        assert "flagged" in str(raised(uf.OptionError, uf.Bytes(whole).open))
        libc.munmap(tail, 8 * PAGE)
        fixed = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10
        assert libc.mmap(tail, 8 * PAGE, 3, fixed, -1, 0) == tail
        again = (ctypes.c_char * (8 * PAGE)).from_address(tail)
        again[5] = b"5"
        with uf.map(again) as region:
            assert region.read(5, 1) == b"5"
        assert "flagged" in str(raised(uf.OptionError, uf.Bytes((ctypes.c_char * PAGE).from_address(at(memory))).open))
        mman.madvise((at(memory), 8 * PAGE), mman.MADV_NOUSERFAULT)
        uf.Bytes((ctypes.c_char * PAGE).from_address(at(memory))).open()

    act(code)


def test_no_room_for_another_mapping_is_enomem(act):
    """vm.max_map_count: with its name, the pages before it are flagged, and later ones are once there is room."""
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    if limit > 100_000:
        pytest.skip(f"max_map_count is {limit}: too many mappings to try")

    def code():
        memory, count = mman.anonymous(400 * PAGE), 200_000
        mman.madvise((at(memory), PAGE), mman.MADV_USERFAULT)
        base = libc.mmap(None, count * PAGE, 1, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        used = 0
        while libc.mprotect(base + (2 * used + 1) * PAGE, PAGE, 3) == 0:
            used += 1
        for last in range(used - 8, used):
            libc.mprotect(base + (2 * last + 1) * PAGE, PAGE, 1)
        done = []

        def flag_more():
            for page in range(2, 100, 2):
                mman.madvise((at(memory, page), PAGE), mman.MADV_USERFAULT)
                done.append(at(memory, page))

        error = raised(OSError, flag_more)
        libc.munmap(base, count * PAGE)
        assert error.errno == errno.ENOMEM, error
        assert "vm.max_map_count" in str(error), error
        assert [one.start for one in mman.ranges() if one.start > at(memory)] == done
        assert touch(at(memory, 2 * len(done) + 2)) == 0
        flag_more()

    act(code)
