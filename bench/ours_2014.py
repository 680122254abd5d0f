"""The side of userfault for the calls of 2014: one `userfault.mman` program for each C program.

``python -m bench.ours_2014 TOUCHER.so CASE BYTES CPU CALLS HUGE``

The thread that touches or calls runs on CPU. The others are left to the scheduler, as in `bench.ours`.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import userfault as uf
from bench.data import numbered_bytes
from bench.ours import positions, toucher
from userfault import mman

PAGE = mman.PAGE_SIZE
HUGE_PAGE = 2 << 20
Round = Callable[[], dict[str, Any]]


class Given(NamedTuple):
    """What the command line says."""

    toucher: str
    length: int
    cpu: int
    calls: int
    huge: bool


def memory(length: int, *, huge: bool = False) -> tuple[Any, int]:
    """Memory at a multiple of 2 MiB, as floor.h has it: a view of it, and its address."""
    whole = memoryview(mman.anonymous(length + HUGE_PAGE))
    skipped = -mman.address_of(whole) % HUGE_PAGE
    view = whole[skipped : skipped + length]
    mman.madvise(view, mman.MADV_HUGEPAGE if huge else mman.MADV_NOHUGEPAGE)
    return view, mman.address_of(view)


def touching(given: Given, *, gil: bool) -> tuple[Any, int, Round]:
    """Flagged memory, its address, and a round that touches each page of it in random order and then empties it."""
    view, address = memory(given.length)
    mman.madvise(view, mman.MADV_USERFAULT)
    touch = toucher(given.toucher, gil=gil)
    count = given.length // PAGE
    where, total = positions(count, PAGE, "random"), ctypes.c_uint64()

    def play() -> dict[str, Any]:
        spent = touch(address, where.ctypes.data, count, total)
        mman.madvise(view, mman.MADV_DONTNEED)
        return {"ns_per_touch": spent / count, "touches": count, "sum": total.value}

    return view, address, play


def flagged_source(given: Given) -> Round:
    """The engine's handler fills from memory: no Python."""
    view, _, play = touching(given, gil=False)
    source = uf.Bytes(numbered_bytes(given.length))

    def play_first_touches() -> dict[str, Any]:
        mman.on_sigbus(view, source)  # anew: a page that the last round brought would be looked for once more
        return play()

    return play_first_touches


def filler(length: int, address: int) -> Callable[[int], None]:
    """What a program would write: prepare the page elsewhere, move it into the hole."""
    source, staging = memoryview(numbered_bytes(length)), memoryview(mman.anonymous(PAGE))
    place = mman.address_of(staging)

    def fill(touched: int) -> None:
        page = touched & -PAGE
        offset = page - address
        staging[:] = source[offset : offset + PAGE]
        mman.remap_anon_pages(page, place, PAGE)

    return fill


def flagged_callable(given: Given) -> Round:
    """A Python function in the touching thread, which holds the GIL."""
    view, address, play = touching(given, gil=True)
    mman.on_sigbus(view, filler(given.length, address))
    return play


def descriptor_thread(given: Given) -> Round:
    """A Python thread reads, fills and wakes; the touching thread holds the GIL for the whole round."""
    view, address, play = touching(given, gil=True)
    fill, descriptor = filler(given.length, address), mman.userfaultfd()
    descriptor.register(view)

    def serve() -> None:
        while True:
            touched = descriptor.read_fault()
            with suppress(FileExistsError):  # a thread that gives up the GIL may ask for its page a second time
                fill(touched)
            descriptor.wake(touched & -PAGE)

    threading.Thread(target=serve, daemon=True).start()
    return play


def remap(given: Given) -> Round:
    """Move pages to another flagged range and back, so that nothing has to be filled again."""
    length, calls = given.length, given.calls
    (here, first), (there, second), (staging, place) = (memory(length, huge=given.huge) for _ in range(3))
    mman.madvise(here, mman.MADV_USERFAULT)
    mman.madvise(there, mman.MADV_USERFAULT)
    staging[:] = numbered_bytes(length)
    mman.remap_anon_pages(first, place, length)

    def play() -> dict[str, Any]:
        start = time.perf_counter_ns()
        for _ in range(calls // 2):
            mman.remap_anon_pages(second, first, length)
            mman.remap_anon_pages(first, second, length)
        spent = time.perf_counter_ns() - start
        assert len(there) == length  # the name keeps that memory mapped
        return {"ns_per_call": spent / calls, "calls": calls, "sum": sum(here[::PAGE])}

    return play


def flag(given: Given) -> Round:
    """Set the flag of memory whose pages are all there, and clear it."""
    length, calls = given.length, given.calls
    view, _ = memory(length)
    mman.madvise(view, mman.MADV_POPULATE_WRITE)

    def play() -> dict[str, Any]:
        start = time.perf_counter_ns()
        for _ in range(calls // 2):
            mman.madvise(view, mman.MADV_USERFAULT)
            mman.madvise(view, mman.MADV_NOUSERFAULT)
        return {"ns_per_call": (time.perf_counter_ns() - start) / calls, "calls": calls, "sum": length}

    return play


def switch(given: Given) -> Round:
    """Register a flagged range of holes with a descriptor and unregister it: each time another has its faults."""
    length, calls = given.length, given.calls
    view, _ = memory(length)
    mman.madvise(view, mman.MADV_USERFAULT)
    descriptor = mman.userfaultfd()

    def play() -> dict[str, Any]:
        start = time.perf_counter_ns()
        for _ in range(calls // 2):
            descriptor.register(view)
            descriptor.unregister(view)
        return {"ns_per_call": (time.perf_counter_ns() - start) / calls, "calls": calls, "sum": length}

    return play


CASES: dict[str, Callable[[Given], Round]] = {
    "flagged-source": flagged_source,
    "flagged-callable": flagged_callable,
    "descriptor-thread": descriptor_thread,
    "remap": remap,
    "flag": flag,
    "switch": switch,
}


def main(toucher_file: str, case: str, length: str, cpu: str, calls: str, huge: str) -> None:
    """Prepare, then play a round per line of input."""
    given = Given(toucher_file, int(length), int(cpu), int(calls), huge == "1")
    play = CASES[case](given)
    os.sched_setaffinity(0, {given.cpu})  # this thread only
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(play()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
