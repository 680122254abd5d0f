"""The side of userfault: the same rounds, over the same loop, as the programs of `bench/floor`.

``python -m bench.ours TOUCHER.so DELIVERY UNIT ORDER UNITS CPU REPEATS``
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

import numpy as np

import userfault as uf
from bench.data import numbered_bytes
from bench.scenarios import UNITS_OF


def positions(units: int, step: int, order: str) -> np.ndarray:
    """Where to touch."""
    numbers = np.arange(units, dtype=np.uint64)
    if order == "random":
        np.random.default_rng(1).shuffle(numbers)
    return numbers * np.uint64(step)


def toucher(path: str, *, gil: bool = False):
    """The timed loop, called without the GIL, or holding it all the time."""
    function = (ctypes.PyDLL if gil else ctypes.CDLL)(path).timed_touch
    function.restype = ctypes.c_uint64
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_uint64)]
    return function


def main(library: str, delivery: str, unit: str, order: str, units: str, cpu: str, repeats: str) -> None:
    """Map, then play a round per line of input."""
    step, count, rounds = UNITS_OF[unit], int(units), int(repeats)
    touch, where, total = toucher(library), positions(count, step, order), ctypes.c_uint64()
    source = numbered_bytes(count * step)
    with uf.map(uf.Bytes(source), delivery=delivery, unit=unit, huge=unit == "2MiB") as region:
        os.sched_setaffinity(0, {int(cpu)})  # this thread only: where the handlers run is userfault's own business
        print(json.dumps({"ready": True}), flush=True)
        for _ in sys.stdin:
            spent = 0
            for _ in range(rounds):
                spent += touch(region.address, where.ctypes.data, count, total)
                region.evict()
            touches = count * rounds
            print(json.dumps({"ns_per_touch": spent / touches, "touches": touches, "sum": total.value}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
