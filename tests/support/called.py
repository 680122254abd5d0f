"""Python sources for the tests of `tests/called`, as children use them."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np

import userfault as uf
from support.lazy import known_bytes

PAGE = 4096


class Known(uf.Source):
    """Known bytes, none of them zero; counts who reads."""

    unit = "4KiB"

    def __init__(self, length: int = 1 << 20, seed: int = 0) -> None:
        self.length = length
        self.data = known_bytes(length, seed)
        self.bytes = self.data.tobytes()
        self.readers: Counter[str] = Counter()

    def read_into(self, offset, buffer):
        self.readers[threading.current_thread().name] += 1
        buffer[:] = self.bytes[offset : offset + len(buffer)]


def mapped(length: int = 1 << 20, **options) -> tuple[Known, uf.Region, memoryview, np.ndarray]:
    """A region of known bytes, and what touches it."""
    source = Known(length)
    region = uf.map(source, **options)
    return source, region, memoryview(region), region.numpy()
