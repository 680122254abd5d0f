"""The table of accesses again, over regions: the engine answers, in threads or in the touching thread's signal handler."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict

import userfault as uf
from kernel.accesses_ground import PAGES, Lacking, pattern, present_pages
from kernel.accesses_table import KILLED, TABLE, Access, Seen, expected, seen
from kernel.touching import PAGE


class RegionGround:
    """What `Ground` is, with a region for memory."""

    def __init__(self, delivery: str, first: bytes) -> None:
        self.held = [first + pattern(0)[len(first) :], *(pattern(page) for page in range(1, PAGES))]
        self.region = uf.map(b"".join(self.held), delivery=delivery, mode="c", unit=PAGE)
        if delivery == "thread" and not self.region.kernel_faults:
            raise Lacking("this process may not serve faults of system calls")
        self.memory = memoryview(self.region)
        self.address = self.region.address

    def faults(self) -> int:
        limit = time.monotonic() + 5
        while (counted := self.region.statistics()).in_flight and time.monotonic() < limit:
            time.sleep(0.001)  # the toucher goes on a moment before its fault is counted
        return counted.faults

    def view(self, start: int = 0, stop: int = PAGE) -> memoryview:
        return self.memory[start:stop]

    def present(self) -> int:
        return present_pages(self.address, PAGES)

    def check_first(self, start: int, stop: int) -> None:
        found = bytes(self.memory[:PAGE])
        assert (found[:start], found[stop:]) == (self.held[0][:start], self.held[0][stop:]), found


def expected_of(access: Access, delivery: str) -> Seen:
    """Threads serve all that a normal descriptor can; signals what the CPU touches, and there is no SIGBUS left over."""
    kind = "normal" if delivery == "thread" else "sigbus"
    if access.ending(kind) == KILLED:
        kind = "user_mode_only"
    return expected(access, kind)


def report(delivery: str) -> None:
    """What a child runs: print what was seen of each access as a line of JSON, so that a hang shows where."""
    for access in TABLE:
        print(access.name, end=" ", flush=True)
        try:
            ground = RegionGround(delivery, access.first)
            found = seen(access, ground)
            del ground
        except Lacking as reason:
            found = Seen("", 0, 0, str(reason))
        print(json.dumps(asdict(found)), flush=True)
    os._exit(0)
