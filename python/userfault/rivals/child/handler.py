"""A fault handler as one writes it in an afternoon: ctypes, a child process, UFFDIO_COPY. The rival, not ours.

It is in another process because a handler thread in Python stops for ever at the first touch that holds the GIL.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import signal
import struct
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

NUMBER = {"x86_64": 323, "aarch64": 282}
API, REGISTER, WAKE, COPY = 0xC018AA3F, 0xC020AA00, 0x8010AA02, 0xC028AA03
API_VERSION = 0xAA
MISSING = 1
MAP_NORESERVE = 0x4000
PR_SET_PDEATHSIG = 1
FOOTER_BYTES = 9

Fetch = Callable[[int, "mmap.mmap", int], object]
"""Called with an offset, a buffer, and how many bytes to put into it."""

libc = ctypes.CDLL(None, use_errno=True)


def raw_file(path: Path) -> Fetch:
    """Pages of a plain file."""
    file = os.open(path, os.O_RDONLY)

    def fetch(offset: int, buffer: mmap.mmap, length: int) -> None:
        os.preadv(file, [memoryview(buffer)[:length]], offset)

    return fetch


def seekable_file(path: Path) -> Fetch:
    """Frames of seekable zstd, all of one length but the last: the unit is that length."""
    decompressor = import_module("zstandard").ZstdDecompressor()
    file = os.open(path, os.O_RDONLY)
    size = os.fstat(file).st_size
    count, description, _ = struct.unpack("<IBI", os.pread(file, FOOTER_BYTES, size - FOOTER_BYTES))
    entry = 12 if description & 0x80 else 8
    table = os.pread(file, count * entry, size - FOOTER_BYTES - count * entry)
    starts = [0]
    for number in range(count):
        starts.append(starts[-1] + struct.unpack_from("<I", table, number * entry)[0])

    def fetch(offset: int, buffer: mmap.mmap, length: int) -> None:
        number = offset // length
        frame = os.pread(file, starts[number + 1] - starts[number], starts[number])
        buffer[:length] = decompressor.decompress(frame, max_output_size=length)

    return fetch


def serve(length: int, unit: int, fetch: Fetch) -> tuple[mmap.mmap, int, Callable[[], object]]:
    """Map `length` bytes whose units another process fills when they are touched.

    Returns:
        The memory, the process, and what ends it.

    Raises:
        OSError: userfaultfd is refused, or is not there.
    """
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    view = ctypes.c_char.from_buffer(memory)
    base = ctypes.addressof(view)
    descriptor = libc.syscall(NUMBER[platform.machine()], os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    fcntl.ioctl(descriptor, API, bytearray(struct.pack("QQQ", API_VERSION, 0, 0)))
    fcntl.ioctl(descriptor, REGISTER, bytearray(struct.pack("QQQQ", base, length, MISSING, 0)))
    pid = os.fork()
    if pid == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            answer(descriptor, base, unit, fetch)
        finally:
            os._exit(1)

    def close() -> None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    return memory, pid, close


def answer(descriptor: int, base: int, unit: int, fetch: Fetch) -> None:
    """Read a fault, fill its unit, for ever."""
    buffer = mmap.mmap(-1, unit)
    source = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    while True:
        address = struct.unpack_from("Q", os.read(descriptor, 32), 16)[0]
        start = (address - base) // unit * unit
        fetch(start, buffer, unit)
        try:
            fcntl.ioctl(descriptor, COPY, bytearray(struct.pack("QQQQq", base + start, source, unit, 0, 0)))
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
            fcntl.ioctl(descriptor, WAKE, bytearray(struct.pack("QQ", base + start, unit)))
