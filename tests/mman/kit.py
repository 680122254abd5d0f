"""For children of these tests: memory of every kind, touches, and a look at what the kernel has there."""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kernel.touching import PAGE, PRIVATE, load, store
from support.lazy import in_threads, known_bytes, libc, raised, resident_bytes

from userfault import mman
from userfault.errors import UserFault

__all__ = [
    "PAGE",
    "PRIVATE",
    "UserFault",
    "at",
    "errno_of",
    "eventually",
    "filled",
    "flagged",
    "in_threads",
    "known_bytes",
    "libc",
    "load",
    "mapped",
    "mman",
    "move_mapping",
    "other_memory",
    "raised",
    "resident_bytes",
    "served",
    "store",
    "table",
    "touch",
    "vm_flags",
]

MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
MAP_FIXED, MAP_HUGETLB, MAP_FAILED = 0x10, 0x40000, ctypes.c_void_p(-1).value
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
libc.memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
libc.process_vm_readv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]


def errno_of(call: Callable[..., object], *arguments: object, **options: object) -> int:
    """0 if the call works, else the errno of its OSError."""
    try:
        call(*arguments, **options)
    except OSError as error:
        return error.errno or -1
    return 0


#: Where `mapped` puts things: far below the kernel's own choices, so that no thread's stack falls into a hole that a test makes.
FREE = itertools.count(1 << 43, 1 << 41)


def mapped(length: int, protection: int = 3, flags: int = PRIVATE, address: int | None = None) -> int:
    """Address of a new mapping; with `address` exactly there, over whatever was mapped (MAP_FIXED)."""
    got = libc.mmap(address or next(FREE), length, protection, flags | MAP_FIXED, -1, 0)
    assert got != MAP_FAILED, os.strerror(ctypes.get_errno())
    return got


def flagged(pages: int) -> mmap.mmap:
    """Fresh private memory with the flag on all of it."""
    memory = mman.anonymous(pages * PAGE)
    mman.madvise(memory, mman.MADV_USERFAULT)
    return memory


def filled(content: int | bytes, pages: int = 1) -> mmap.mmap:
    """Fresh private memory without the flag, with every page present: staging."""
    memory = mman.anonymous(pages * PAGE)
    memory[:] = content if isinstance(content, bytes) else bytes([content]) * len(memory)
    return memory


def at(memory, page: int = 0) -> int:
    """Address of a page of some memory."""
    return mman.address_of(memory) + page * PAGE


def table(content: int, page: int, memory) -> int:
    """Move a page of `content` into page `page` of `memory`: what everybody does who resolves a fault."""
    return mman.remap_anon_pages(at(memory, page), filled(content), PAGE)


def touch(address: int) -> int:
    """Read one byte with the GIL held; an exception of the touch is raised in here."""
    return ctypes.string_at(address, 1)[0]


def eventually(true: Callable[[], object], seconds: float = 5, what: str = "it") -> None:
    """Wait until `true` is."""
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, f"{what} did not come about"
        time.sleep(0.0005)


def vm_flags(address: int) -> set[str]:
    """The kernel's two-letter flags of the mapping that holds an address."""
    inside = False
    with open("/proc/self/smaps") as file:
        for line in file:
            first = line.split()[0]
            if "-" in first and not first.endswith(":"):
                low, high = (int(part, 16) for part in first.split("-"))
                inside = low <= address < high
            elif inside and first == "VmFlags:":
                return set(line.split()[1:])
    raise AssertionError(f"nothing is mapped at {address:#x}")


def move_mapping(start: int, length: int, to: int) -> None:
    """mremap(2) of a mapping to another place."""
    got = libc.mremap(start, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, to)
    assert got == to, os.strerror(ctypes.get_errno())


def other_memory(kind: str, pages: int = 4) -> int:
    """Address of memory that is not private anonymous; 0 for kinds that this machine does not have.

    "file", "private_file" (a private mapping of a file), "shared" (anonymous), "memfd", "private_memfd", "hugetlb", "vdso".
    """
    length = pages * PAGE
    if kind == "shared":
        return mapped(length, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    if kind == "hugetlb":
        address = libc.mmap(None, 2 << 20, 3, PRIVATE | MAP_HUGETLB, -1, 0)
        return 0 if address == MAP_FAILED else address
    if kind == "vdso":
        with open("/proc/self/maps") as file:
            found = [line for line in file if "[vdso]" in line]
        return int(found[0].split("-")[0], 16) if found else 0
    if "memfd" in kind:
        descriptor = os.memfd_create("test")
    else:
        descriptor, path = tempfile.mkstemp(dir=os.getcwd())
        os.unlink(path)
    os.ftruncate(descriptor, length)
    address = libc.mmap(None, length, 3, mmap.MAP_PRIVATE if "private" in kind else mmap.MAP_SHARED, descriptor, 0)
    os.close(descriptor)
    assert address != MAP_FAILED
    return address


@contextmanager
def served(memory, content: Callable[[int], int | bytes], *, timeout: float | str | None = "30s") -> Iterator[list[int]]:
    """Flag and register `memory`, and let a Python thread serve it: the program of 2014, word for word.

    `content` gives the bytes of a page by its number, as one value for all or as bytes. Yields the addresses that were read.
    """
    base, seen, staging = at(memory), [], mman.anonymous(PAGE)
    mman.madvise(staging, mman.MADV_DONTFORK)  # a page that a fork shares does not move: EBUSY, by the rules
    mman.madvise(memory, mman.MADV_USERFAULT)
    descriptor = mman.userfaultfd(os.O_CLOEXEC, timeout=timeout)
    descriptor.register(memory)

    def serve() -> None:
        while True:
            address = descriptor.read_fault()
            page = address // PAGE * PAGE
            seen.append(address)
            given = content((page - base) // PAGE)
            staging[:] = given if isinstance(given, bytes) else bytes([given]) * PAGE
            code = errno_of(mman.remap_anon_pages, page, staging)
            if code not in (0, errno.EEXIST):  # another fault on that page was faster
                os.write(2, f"the server cannot go on: {os.strerror(code)}\n".encode())
                os._exit(77)
            errno_of(descriptor.wake, page)  # nobody waits any more where one move served two threads

    threading.Thread(target=serve, daemon=True).start()
    yield seen
