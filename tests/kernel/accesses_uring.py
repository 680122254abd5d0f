"""A small io_uring, by system calls alone: one request at a time, waited for."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct

from kernel.accesses_ground import Lacking
from kernel.touching import libc
from userfault.kernel import range_of

# The numbers are the same on every architecture.
SETUP, ENTER, REGISTER = 425, 426, 427
OP_READ, OP_WRITE = 22, 23
WORKER = 1 << 4  # IOSQE_ASYNC: let a kernel thread do it, never the caller
GETEVENTS = 1
REGISTER_BUFFERS = 0
RING_AT, ENTRIES_AT = 0, 0x10000000  # what to mmap
PARAMETERS = struct.Struct("10I 8IQ 8IQ")
ENTRY = struct.Struct("BBHiQQIIQ24x")  # operation, flags, priority, file, offset, address, bytes, its flags, our number
COMPLETION = struct.Struct("QiI")  # our number, result, flags


class Ring:
    """An io_uring; `Lacking` where there is none to be had."""

    def __init__(self) -> None:
        parameters = bytearray(PARAMETERS.size)
        given = (ctypes.c_char * len(parameters)).from_buffer(parameters)
        self.fd = libc.syscall(SETUP, 1, given)
        if self.fd < 0:
            raise Lacking(f"io_uring_setup: {os.strerror(ctypes.get_errno())}")
        found = PARAMETERS.unpack(parameters)
        entries, completions = found[0], found[1]
        self.sent, self.done = found[10:19], found[19:28]  # where head, tail, mask … are in the ring
        length = max(self.sent[6] + 4 * entries, self.done[5] + COMPLETION.size * completions)
        self.ring = mmap.mmap(self.fd, length, offset=RING_AT)
        self.entries = mmap.mmap(self.fd, entries * ENTRY.size, offset=ENTRIES_AT)

    def request(self, operation: int, file: int, address: int, length: int, offset: int = 0, flags: int = 0) -> int:
        """Send one request and wait for its end; its result, or OSError."""
        ENTRY.pack_into(self.entries, 0, operation, flags, 0, file, offset, address, length, 0, 1)
        tail = self.number(self.sent[1])
        struct.pack_into("I", self.ring, self.sent[6] + 4 * (tail & self.number(self.sent[2])), 0)
        struct.pack_into("I", self.ring, self.sent[1], tail + 1)
        if libc.syscall(ENTER, self.fd, 1, 1, GETEVENTS, None, 0) != 1:
            raise OSError(ctypes.get_errno(), "io_uring_enter")
        head = self.number(self.done[0])
        place = self.done[5] + COMPLETION.size * (head & self.number(self.done[2]))
        _, result, _ = COMPLETION.unpack_from(self.ring, place)
        struct.pack_into("I", self.ring, self.done[0], head + 1)
        if result in (-errno.EINVAL, -errno.EOPNOTSUPP):
            raise Lacking(f"io_uring: {os.strerror(-result)}")
        if result < 0:
            raise OSError(-result, "io_uring request")
        return result

    def register(self, address: int, length: int) -> None:
        """Pin memory as a fixed buffer."""
        vector = bytearray(struct.pack("QQ", address, length))
        if libc.syscall(REGISTER, self.fd, REGISTER_BUFFERS, ctypes.c_void_p(range_of(vector)[0]), 1):
            raise OSError(ctypes.get_errno(), "io_uring_register")

    def number(self, offset: int) -> int:
        return struct.unpack_from("I", self.ring, offset)[0]
