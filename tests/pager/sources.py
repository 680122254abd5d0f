"""Sources for pagers: what they give is known, so that every byte can be compared. They import without userfault's own tests."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

import userfault as uf


def known(offset: int, length: int, seed: int = 1) -> np.ndarray:
    """The bytes from `offset` on, both multiples of 8: no word is zero, and each is another one."""
    words = np.arange(offset // 8, (offset + length) // 8, dtype="u8")
    return ((words + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15) | np.uint64(0x0101010101010101)).view("u1")


class Known(uf.Source):
    """`known` bytes; `delay` seconds a read."""

    def __init__(self, length, seed=1, unit="64KiB", delay=0.0, preferred_size=None):
        self.length, self.seed, self.unit, self.delay = length, seed, unit, delay
        self.preferred_size = preferred_size

    def read_into(self, offset, buffer):
        if self.delay:
            time.sleep(self.delay)
        whole = -(-len(buffer) // 8) * 8
        buffer[:] = known(offset, whole, self.seed)[: len(buffer)].tobytes()


class Failing(Known):
    """Raises for the pages in `bad`."""

    def __init__(self, length, bad, **options):
        super().__init__(length, unit=4096, **options)
        self.bad = set(bad)

    def read_into(self, offset, buffer):
        if offset // 4096 in self.bad:
            raise LookupError(f"page {offset // 4096} is not to be had")
        super().read_into(offset, buffer)


class Hanging(Known):
    """Hangs on the pages in `bad` until the file `until` exists; with `held` it keeps Python's lock meanwhile.

    The file `begun` tells that it does.
    """

    def __init__(self, length, bad, until, held=False, begun=None):
        super().__init__(length, unit=4096)
        self.bad, self.until, self.held, self.begun = set(bad), until, held, begun

    def read_into(self, offset, buffer):
        if self.begun is not None and offset // 4096 in self.bad:
            Path(self.begun).touch()
        while offset // 4096 in self.bad and not Path(self.until).exists():
            if self.held:
                os.environ.get
                _sleep_with_lock(0.05)
            else:
                time.sleep(0.01)
        super().read_into(offset, buffer)


def _sleep_with_lock(seconds):
    import ctypes

    ctypes.PyDLL(None).usleep(int(seconds * 1e6))
