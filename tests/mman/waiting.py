"""For children of these tests: threads that wait at a descriptor, what poll says of it, and raw commands."""

from __future__ import annotations

import select
import struct
import threading

from mman.kit import PAGE, at, eventually, mman, touch

__all__ = ["Touching", "bits", "command", "owner_of_pages", "waiting"]


class Touching(threading.Thread):
    """Touches one address; `ended` gives the byte, or the name of the exception."""

    def __init__(self, address, call=touch):
        super().__init__(daemon=True)
        self.address, self.call, self.result = address, call, None
        self.start()

    def run(self):
        try:
            self.result = self.call(self.address)
        except BaseException as error:
            self.result = type(error).__name__

    def ended(self, seconds=5):
        self.join(seconds)
        assert not self.is_alive(), "it still waits"
        return self.result


def waiting(descriptor, address):
    """A thread that waits at the descriptor, its fault unread."""
    before = descriptor.pending
    thread = Touching(address)
    eventually(lambda: descriptor.pending == before + 1, what="the fault")
    return thread


def bits(descriptor):
    """What poll says now: "", "in", "out" or "in out", and nothing else may be said."""
    poll = select.poll()
    poll.register(descriptor.fileno(), select.POLLIN | select.POLLOUT)
    found = dict(poll.poll(0)).get(descriptor.fileno(), 0)
    names = {select.POLLIN: "in", select.POLLOUT: "out"}
    assert not found & ~(select.POLLIN | select.POLLOUT), found
    return " ".join(name for bit, name in names.items() if found & bit)


def command(start, end, number=0):
    """Sixteen bytes for write(2): 0 wakes, 1 registers, 2 unregisters."""
    return struct.pack("=QQ", start | number, end)


def owner_of_pages(memory):
    """Which descriptor owns each page of some memory, None for nobody."""
    return [
        next((one.owner for one in mman.ranges() if one.start <= at(memory, page) < one.start + one.length), None)
        for page in range(len(memory) // PAGE)
    ]
