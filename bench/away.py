"""Cases of `bench.cases` in which another process fills the pages; one process plays both sides."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import userfault as uf
from bench.data import numbered_bytes
from bench.ours import positions
from userfault.rivals.child import handler

PAGE = 4096


class Numbered:
    """What both sides call: a page that begins with its number, and nothing else."""

    def __init__(self, unit: int) -> None:
        self.rest = bytes(unit - 8)

    def page(self, offset: int) -> bytes:
        """The bytes at `offset`."""
        return (offset // PAGE + 1).to_bytes(8, "little") + self.rest


def called(given: Any) -> Callable[[], dict[str, Any]]:
    """A Python function fills 4 KiB: in the pager, and in a process with a loop around ctypes and nothing else."""
    length, make = given.count * PAGE, Numbered(PAGE)

    def read_into(offset: int, buffer: memoryview) -> None:
        buffer[:] = make.page(offset)

    def fetch(offset: int, buffer: mmap.mmap, size: int) -> None:
        buffer[:size] = make.page(offset)

    rival, _, _ = handler.serve(length, PAGE, fetch)
    ours = uf.map(uf.Function(read_into, length, unit=PAGE), delivery="process")
    return in_turn(given, ours, (memory_address(rival), lambda: rival.madvise(mmap.MADV_DONTNEED)), PAGE)


def start(given: Any) -> Callable[[], dict[str, Any]]:
    """From nothing to the first byte of a region of a pager of its own; and an interpreter that does nothing."""
    text = numbered_bytes(PAGE)
    source = uf.Bytes(text)

    def ours() -> None:
        with uf.pager.Pager() as pager, uf.map(source, delivery="process", pager=pager) as region:
            if region.read(0, 8) != text[:8]:
                raise SystemExit("another byte than that of the source")

    def empty() -> None:
        subprocess.run([sys.executable, "-I", "-c", ""], check=True)

    def play() -> dict[str, Any]:
        return {"ns_per_call": timed(ours, given.count), "floor": timed(empty, given.count)}

    return play


def timed(work: Callable[[], None], times: int) -> float:
    """Nanoseconds of one call."""
    began = time.perf_counter_ns()
    for _ in range(times):
        work()
    return (time.perf_counter_ns() - began) / times


def away(given: Any) -> Callable[[], dict[str, Any]]:
    """A native source: in the pager, and in this process by thread delivery."""
    (unit,) = given.numbers
    source = uf.Bytes(numbered_bytes(given.count * unit))
    here = uf.map(source, delivery="thread", unit=unit)
    return in_turn(given, uf.map(source, delivery="process", unit=unit), (here.address, here.evict), unit)


def in_turn(given: Any, ours: uf.Region, other: tuple[int, Callable[[], Any]], unit: int) -> Callable[[], dict[str, Any]]:
    """Touch every unit of ours and of the other in random order; who begins changes with every round."""
    touch, where = given.loop("timed_touch"), positions(given.count, unit, "random")
    touch.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t, ctypes.POINTER(ctypes.c_uint64)]
    sides = {"ns_per_call": (ours.address, ours.evict), "floor": other}
    rounds = 0

    def play() -> dict[str, Any]:
        nonlocal rounds
        rounds += 1
        spent, sums = {}, set()
        for name in sorted(sides, reverse=bool(rounds % 2)):
            address, evict = sides[name]
            total = ctypes.c_uint64()
            spent[name] = touch(address, where.ctypes.data, given.count, ctypes.byref(total)) / given.count
            sums.add(total.value)
            evict()
            time.sleep(0.01)  # the other side's threads fall asleep
        if len(sums) != 1:
            raise SystemExit("the two sides hold different bytes")
        return spent

    return play


def memory_address(memory: mmap.mmap) -> int:
    """Where it is."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


CASES = {"away_called": called, "away": away, "away_start": start}
