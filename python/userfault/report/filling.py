"""Which way of filling is cheaper here: what the engine's own policy finds when it is given something to do."""

from __future__ import annotations

import threading
import zlib
from dataclasses import dataclass

from userfault.mapping import map as map_source
from userfault.sources import Bytes

__all__ = ["Costs", "filling_costs"]

SPAN = 16 << 20


@dataclass(frozen=True, slots=True)
class Costs:
    """What one unit costs, filled and released again, in nanoseconds; 0: could not be measured.

    Attributes:
        copy: by UFFDIO_COPY, released in batches.
        move: by UFFDIO_MOVE of recycled pages.
        reason: what decides, in words.
    """

    copy: int
    move: int
    reason: str = ""

    def __str__(self) -> str:
        known = sorted((cost, name) for cost, name in ((self.copy, "COPY"), (self.move, "MOVE")) if cost)
        if len(known) < 2:
            return f"not compared: {self.reason}"
        (cost, name), (more, other) = known
        return f"by {name}, {cost / 1000:.1f} us ({other} {more / 1000:.1f} us)"


def filling_costs(unit: int, threads: int = 1) -> Costs:
    """Let threads scan a region of which a quarter may stay, and read what the fill policy measured.

    Args:
        unit: Bytes filled per fault.
        threads: How many scan, each its part.

    Returns:
        The costs per unit.

    Raises:
        RefusedError: This process may not have a userfaultfd.

    Blocks: some 100 ms. GIL: released while it scans.
    """
    with map_source(Bytes(bytes(SPAN)), unit=unit, resident=SPAN // 4) as region:
        parts = [memoryview(region)[SPAN * part // threads : SPAN * (part + 1) // threads] for part in range(threads)]
        scans = [threading.Thread(target=zlib.crc32, args=(part,)) for part in parts]
        for scan in scans:
            scan.start()
        for scan in scans:
            scan.join()
        found = region.statistics()
        del parts, scans
    return Costs(found.copy_nanoseconds, found.move_nanoseconds, found.fill_reason)
