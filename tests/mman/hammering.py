"""For children of these tests: threads that hammer a range while its owner changes all the time."""

from __future__ import annotations

import os
import threading
import time

import numpy as np

from mman.kit import PAGE, at, errno_of, flagged, mman, table

PAGES = 64
CONTENT = 7


class Hammer:
    """The lower half of a range stays present, the upper half is dropped again and again; each byte is 7, whoever resolves."""

    def __init__(self, touches: int, switches: int) -> None:
        self.wanted_touches, self.wanted_switches = touches, switches
        self.touches = self.switches = self.writes = self.asked = 0
        self.failure: BaseException | None = None
        self.memory = flagged(PAGES)
        for page in range(PAGES // 2):
            table(CONTENT, page, self.memory)
        mman.on_sigbus(self.memory, self.resolve)

    def resolve(self, address: int) -> None:
        """Both sides end here: the callable in the touching thread, and the server."""
        self.asked += 1
        errno_of(table, CONTENT, (address - at(self.memory)) // PAGE, self.memory)  # another may have been faster

    def serve(self, descriptor) -> None:
        try:
            while True:
                address = descriptor.read_fault()
                self.resolve(address)
                errno_of(descriptor.wake, address // PAGE * PAGE)
        except (OSError, ValueError):
            return  # closed

    def served(self):
        descriptor = mman.userfaultfd()
        threading.Thread(target=self.serve, args=(descriptor,), daemon=True).start()
        return descriptor

    @property
    def done(self) -> bool:
        return self.failure is not None or (self.touches >= self.wanted_touches and self.switches >= self.wanted_switches)

    def switch(self) -> None:
        """Register, unregister, close, and take the flag from the present half and give it back."""
        low, high = (at(self.memory), PAGES // 2 * PAGE), (at(self.memory, PAGES // 2), PAGES // 2 * PAGE)
        parts = [self.memory, low, high, (at(self.memory, PAGES // 4), PAGES // 2 * PAGE)]
        while not self.done:
            for part in parts:
                with self.served() as descriptor:
                    descriptor.register(part)
                    descriptor.unregister(part)
                    descriptor.register(part)
                    mman.madvise(low, mman.MADV_NOUSERFAULT)
                    mman.madvise(low, mman.MADV_USERFAULT)
                    mman.on_sigbus(self.memory, self.resolve)
                self.switches += 6

    def touch(self, seed: int) -> None:
        """Touch the present half, and every second page of the other, which nobody else touches or drops; then drop those."""
        array, random = np.frombuffer(self.memory, "u1"), np.random.default_rng(seed)
        view, mine = memoryview(self.memory), np.arange(PAGES // 2 + seed - 1, PAGES, 2)
        pages = np.concatenate([np.arange(PAGES // 2), mine])
        while not self.done:
            for page in random.permutation(pages):
                value = view[int(page) * PAGE + seed]
                assert value == CONTENT, f"page {page} held {value}"
            for page in mine:
                mman.madvise((at(self.memory, int(page)), PAGE), mman.MADV_DONTNEED)
            seen = array[::PAGE][pages]
            assert (seen == CONTENT).all(), seen
            self.touches += 2 * len(pages)

    def write(self) -> None:
        """write(2) from present pages: no EFAULT, and no other bytes."""
        with open(os.devnull, "wb", buffering=0) as null:
            reader, writer = os.pipe()
            view = memoryview(self.memory)
            while not self.done:
                for page in range(PAGES // 2):
                    assert null.write(view[page * PAGE : (page + 1) * PAGE]) == PAGE
                    assert os.write(writer, view[page * PAGE : (page + 1) * PAGE]) == PAGE
                    assert os.read(reader, PAGE) == bytes([CONTENT]) * PAGE
                    self.writes += 1

    def guarded(self, work) -> None:
        try:
            work()
        except BaseException as error:
            self.failure = self.failure or error

    def run(self, seconds: float) -> None:
        works = [self.switch, self.write, lambda: self.touch(1), lambda: self.touch(2)]
        threads = [threading.Thread(target=self.guarded, args=(work,), daemon=True) for work in works]
        for thread in threads:
            thread.start()
        limit = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0.0, limit - time.monotonic()))
        if self.failure:
            raise self.failure
        counts = f"{self.touches} touches, {self.switches} switches, {self.writes} writes, {self.asked} faults"
        assert not any(thread.is_alive() for thread in threads), f"not ended: {counts}"
        assert self.asked > 100, counts
        print(counts)
