"""The side of userfault for `bench.pairs`: a case is prepared, then plays a round per line of input.

``python -m bench.cases CASE '{"toucher": ..., "count": ..., "cpu": ..., "numbers": [...], "words": [...], "path": ...}'``
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import userfault as uf
from bench import away
from bench.data import numbered_bytes, warm
from bench.ours import positions
from bench.stores import store

PAGE = 4096
HUGE_PAGE = 2 << 20
Round = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Given:
    """What the row says."""

    toucher: str
    count: int
    cpu: int
    numbers: list[int]
    words: list[str]
    path: str

    @property
    def delivery(self) -> Any:
        """The first word, where a case has one."""
        return self.words[0]

    def loop(self, name: str) -> Any:
        """A timed loop of toucher.h, called without the GIL."""
        function = getattr(ctypes.CDLL(self.toucher), name)
        function.restype = ctypes.c_uint64
        return function

    def answer(self, spent: int, total: ctypes.c_uint64 | int, calls: int | None = None) -> dict[str, Any]:
        """A round's result, as the C programs print it."""
        calls = self.count if calls is None else calls
        return {"ns_per_call": spent / calls, "calls": calls, "sum": getattr(total, "value", total)}


def size(number: int) -> ctypes.c_size_t:
    """A number as C takes it."""
    return ctypes.c_size_t(number)


def pages(given: Given) -> tuple[uf.Region, np.ndarray]:
    """A region of as many 4 KiB units, and where to touch it."""
    source = uf.Bytes(numbered_bytes(given.count * PAGE))
    return uf.map(source, delivery=given.delivery, unit=PAGE), positions(given.count, PAGE, "random")


def think(given: Given) -> Round:
    """Work between touches."""
    (region, where), (think_ns,), touch = pages(given), given.numbers, given.loop("timed_thinking")
    total = ctypes.c_uint64()

    def play() -> dict[str, Any]:
        numbers = (size(region.address), size(where.ctypes.data), size(given.count), size(think_ns))
        spent = touch(*numbers, ctypes.byref(total))
        region.evict()
        return given.answer(spent, total)

    return play


def called(given: Given) -> Round:
    """A Python function makes each page; the thread that touches holds the interpreter's lock for the whole round."""
    data = memoryview(numbered_bytes(given.count * PAGE))

    def copy(offset: int, buffer: memoryview) -> None:
        buffer[:] = data[offset : offset + len(buffer)]

    region = uf.map(uf.Function(copy, len(data), unit=PAGE), delivery=given.delivery)
    where, total = positions(given.count, PAGE, "random"), ctypes.c_uint64()
    touch = ctypes.PyDLL(given.toucher).timed_touch
    touch.restype = ctypes.c_uint64

    def play() -> dict[str, Any]:
        spent = touch(size(region.address), size(where.ctypes.data), size(given.count), ctypes.byref(total))
        region.evict()
        return given.answer(spent, total)

    return play


def once(given: Given) -> Round:
    """Each round touches pages that were never touched: nothing is done but that. All rounds see the same bytes."""
    (rounds,), touch, total = given.numbers, given.loop("timed_touch"), ctypes.c_uint64()
    length, where = given.count * PAGE, positions(given.count, PAGE, "random")
    region = uf.map(uf.Bytes(numbered_bytes(length) * rounds), delivery=given.delivery, unit=PAGE)
    starts = iter(range(0, len(region), length))

    def play() -> dict[str, Any]:
        spent = touch(size(region.address + next(starts)), size(where.ctypes.data), size(given.count), ctypes.byref(total))
        return given.answer(spent, total)

    return play


def several(given: Given) -> Round:
    """Threads with a region each."""
    touchers, touch = given.numbers[0], given.loop("timed_several")
    source = uf.Bytes(numbered_bytes(given.count * PAGE))
    regions = [uf.map(source, delivery=given.delivery, unit=PAGE) for _ in range(touchers)]
    where, total = positions(given.count, PAGE, "random"), ctypes.c_uint64()
    bases = (ctypes.c_size_t * touchers)(*(region.address for region in regions))

    def play() -> dict[str, Any]:
        orders = (ctypes.c_size_t * touchers)(*[where.ctypes.data] * touchers)
        spent = touch(size(touchers), bases, orders, size(given.count), ctypes.byref(total))
        for region in regions:
            region.evict()
        return given.answer(spent, total, given.count * touchers)

    return play


def quarter(given: Given, unit: int, *, huge: bool = False) -> uf.Region:
    """A region of which a quarter may be there."""
    length = given.count * unit
    source = uf.Bytes(numbered_bytes(length))
    return uf.map(source, delivery=given.delivery, unit=unit, huge=huge, resident=length // 4)


def recycle(given: Given) -> Round:
    """Units leave as others come; the order is the same each time, so that none is there that is touched."""
    unit, huge, _ = given.numbers
    region, touch, total = quarter(given, unit, huge=bool(huge)), given.loop("timed_touch"), ctypes.c_uint64()
    where = positions(given.count, unit, "sequential" if huge else "random")

    def play() -> dict[str, Any]:
        spent = touch(size(region.address), size(where.ctypes.data), size(given.count), ctypes.byref(total))
        return given.answer(spent, total)

    return play


def together(given: Given) -> Round:
    """Threads that share a region, each with its part of the order, while units leave."""
    unit, touchers = given.numbers
    region, touch, total = quarter(given, unit), given.loop("timed_several"), ctypes.c_uint64()
    where, each = positions(given.count, unit, "random"), given.count // touchers

    def play() -> dict[str, Any]:
        bases = (ctypes.c_size_t * touchers)(*[region.address] * touchers)
        orders = (ctypes.c_size_t * touchers)(*(where[i * each :].ctypes.data for i in range(touchers)))
        spent = touch(size(touchers), bases, orders, size(each), ctypes.byref(total))
        return given.answer(spent, total, each * touchers)

    return play


def prefetch(given: Given) -> Round:
    """A hot file, brought in by 2 MiB units without a touch."""
    (repeats,) = given.numbers
    region = uf.map(uf.File(given.path), huge=True)
    view = region.numpy("u1")

    def play() -> dict[str, Any]:
        warm(given.path)
        spent = 0
        for _ in range(repeats):
            region.evict()
            start = time.perf_counter_ns()
            region.prefetch()
            region.populate()
            spent += time.perf_counter_ns() - start
        return given.answer(spent, int(view[::HUGE_PAGE].sum(dtype="u8")), given.count * repeats)

    return play


def scan(given: Given) -> Round:
    """All words of an image, a quarter of which may be there; in huge pages, as the docs say for scans, or not."""
    (frame,) = given.numbers
    length = given.count * frame
    region = uf.map(given.path, huge="units" not in given.words, resident=length // 4)
    touch, total = given.loop("timed_all"), ctypes.c_uint64()

    def play() -> dict[str, Any]:
        warm(given.path)
        spent = touch(size(region.address), size(length), ctypes.byref(total))
        return given.answer(spent, total)

    return play


def image_touch(given: Given) -> Round:
    """A page of each frame, in random order."""
    frame, _ = given.numbers
    region, touch, total = uf.map(given.path, delivery=given.delivery), given.loop("timed_touch"), ctypes.c_uint64()
    where = positions(given.count, frame, "random")
    where += where // np.uint64(frame) * np.uint64(7) % np.uint64(frame // PAGE) * np.uint64(PAGE)

    def play() -> dict[str, Any]:
        warm(given.path)
        spent = touch(size(region.address), size(where.ctypes.data), size(given.count), ctypes.byref(total))
        region.evict()
        return given.answer(spent, total)

    return play


def zeros(given: Given) -> Round:
    """All words of an image of zeros; nothing may be decoded for them."""
    unit, _ = given.numbers
    length = given.count * unit
    region, touch, total = uf.map(given.path, delivery=given.delivery), given.loop("timed_all"), ctypes.c_uint64()

    def play() -> dict[str, Any]:
        spent = touch(size(region.address), size(length), ctypes.byref(total))
        counted = region.statistics()
        if counted.copied_bytes or counted.moved_bytes or not counted.zero_bytes:
            raise SystemExit(f"zeros were decoded: {counted}")
        region.evict()
        return given.answer(spent, total)

    return play


def idle(given: Given) -> Round:
    """CPU time of all threads while nobody touches any region, in percent of one CPU."""
    (milliseconds,) = given.numbers
    regions = [uf.map(uf.Bytes(b"idle")) for _ in range(given.count)]

    def play() -> dict[str, Any]:
        start, used = time.perf_counter_ns(), time.process_time_ns()
        time.sleep(milliseconds / 1000)
        used = time.process_time_ns() - used
        spent = time.perf_counter_ns() - start
        return {"value": 100 * used / spent, "regions": len(regions)}

    return play


def crowd(given: Given) -> Round:
    """Touch one region of many; the others stay open, and it is the middle one."""
    (number,) = given.numbers
    others = [uf.map(uf.Bytes(b"other")) for _ in range(number // 2)]
    region, where = pages(given)
    others += [uf.map(uf.Bytes(b"other")) for _ in range(number - number // 2 - 1)]
    touch, total = given.loop("timed_touch"), ctypes.c_uint64()

    def play() -> dict[str, Any]:
        spent = touch(size(region.address), size(where.ctypes.data), size(given.count), ctypes.byref(total))
        region.evict()
        return {**given.answer(spent, total), "regions": len(others) + 1}

    return play


def present(given: Given) -> Round:
    """Pages that are there are ordinary memory: the same sum over a region and over an array, both of huge pages."""
    (repeats,) = given.numbers
    length = given.count * HUGE_PAGE
    data = np.frombuffer(numbered_bytes(length), "u8")
    region = uf.map(uf.Bytes(data), huge=True)
    region.populate()
    ordinary = aligned_huge(length)
    ordinary[:] = data
    arrays = {"ns_per_call": region.numpy("u8"), "floor": ordinary}

    def play() -> dict[str, Any]:
        spent, sums = dict.fromkeys(arrays, 0), set()
        for number in range(repeats):
            for name in sorted(arrays, reverse=bool(number % 2)):
                start = time.perf_counter_ns()
                sums.add(int(arrays[name].sum()))
                spent[name] += time.perf_counter_ns() - start
        if len(sums) != 1:
            raise SystemExit("the region and the array hold different bytes")
        return {name: each / repeats / given.count for name, each in spent.items()}

    return play


def aligned_huge(length: int) -> np.ndarray:
    """Fresh memory that the kernel makes of huge pages."""
    import mmap

    memory = mmap.mmap(-1, length + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, "u1")
    start = -whole.ctypes.data % HUGE_PAGE
    return whole[start : start + length].view("u8")


CASES: dict[str, Callable[[Given], Round]] = {
    "think": think,
    "called": called,
    "once": once,
    "several": several,
    "recycle": recycle,
    "together": together,
    "prefetch": prefetch,
    "scan": scan,
    "image_touch": image_touch,
    "zeros": zeros,
    "idle": idle,
    "crowd": crowd,
    "present": present,
    "store": store,
    **away.CASES,
}


def main(case: str, given_text: str) -> None:
    """Prepare, then play a round per line of input."""
    given = Given(**json.loads(given_text))
    if "one-cpu" in given.words:
        os.sched_setaffinity(0, {given.cpu})  # userfault's threads inherit it
    play = CASES[case](given)
    if "unpinned" not in given.words:
        os.sched_setaffinity(0, {given.cpu})  # this thread only: where the handlers run is userfault's own business
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(play()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
