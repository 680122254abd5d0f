"""For children of test_accesses: lazy memory of every kind, and a process that answers its faults.

The answers come from another process: whoever touches may hold the GIL meanwhile, as buffered files and `mmap.madvise` do.
"""

from __future__ import annotations

import mmap
import os
import struct

from kernel.touching import PAGE, private
from userfault import kernel as uk

PAGES = 4
PRESENT = 1 << 63


class Lacking(Exception):
    """This machine, or this user, cannot try the access; the reason."""


def pattern(page: int) -> bytes:
    """What a page holds that was not asked for anything else; no byte is zero."""
    return bytes(1 + (page * 31 + at * 7) % 251 for at in range(PAGE))


class Ground:
    """Four absent pages under a descriptor of some kind, and the process that answers the faults they make.

    Args:
        kind: "normal", "user_mode_only" or "sigbus".
        first: what the first page begins with; the rest is `pattern`.
        answered: whether anybody answers faults; otherwise fill and poison with `fd`.
    """

    def __init__(self, kind: str, first: bytes = b"", answered: bool = True) -> None:
        self.held = [first + pattern(0)[len(first) :], *(pattern(page) for page in range(1, PAGES))]
        self.memory = private(PAGES)
        self.memory.madvise(mmap.MADV_DONTFORK)
        self.fd = descriptor(kind)
        self.fd.register(self.memory)
        self.address, _ = uk.range_of(self.memory)
        self.counter = mmap.mmap(-1, PAGE)  # shared with the process that answers
        if answered and kind != "sigbus":
            self.answer_in_another_process()

    def answer_in_another_process(self) -> None:
        """Fork; the descriptor is bound to this process's memory wherever it is used."""
        if os.fork():
            return
        try:
            while True:
                for fault in self.fd.read_events():
                    struct.pack_into("Q", self.counter, 0, self.faults() + 1)
                    self.fd.copy(fault.address, self.held[(fault.address - self.address) // PAGE])
        finally:
            os._exit(1)

    def faults(self) -> int:
        """How many messages came so far."""
        return struct.unpack_from("Q", self.counter)[0]

    def view(self, start: int = 0, stop: int = PAGE) -> memoryview:
        """A part of the memory; taking it touches nothing."""
        return memoryview(self.memory)[start:stop]

    def present(self) -> int:
        """How many of the pages are there, seen without touching them."""
        return present_pages(self.address, PAGES)

    def check_first(self, start: int, stop: int) -> None:
        """The first page holds what it should but for `start` to `stop`, which a call wrote."""
        found = bytes(self.memory[:PAGE])
        assert found[:start] == self.held[0][:start], found[:start]
        assert found[stop:] == self.held[0][stop:], found[stop:]


def descriptor(kind: str) -> uk.Userfaultfd:
    """A descriptor of this kind, or `Lacking`."""
    allowed = uk.capabilities().kernel_faults
    if kind == "normal" and not allowed:
        raise Lacking("this process may not serve faults of system calls")
    if kind == "sigbus":
        # Not user_mode_only, where it can be helped: that alone would explain an EFAULT.
        return uk.Userfaultfd(uk.Features.SIGBUS, user_mode_only=not allowed)
    return uk.Userfaultfd(user_mode_only=kind == "user_mode_only")


def present_pages(address: int, pages: int) -> int:
    """Count the pages from `address` on that are in memory, by /proc/self/pagemap."""
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        entries = struct.unpack(f"{pages}Q", os.pread(file.fileno(), 8 * pages, address // PAGE * 8))
    return sum(bool(entry & PRESENT) for entry in entries)
