"""The side of userfault for volatile memory: unpin and pin, nothing taken in between.

``python -m bench.volatile PAGES CPU REPEATS``
"""

from __future__ import annotations

import json
import os
import sys
import time

import userfault as uf


def main(pages: str, cpu: str, repeats: str) -> None:
    """Fill a buffer, then play a round per line of input."""
    count, rounds = int(pages), int(repeats)
    os.sched_setaffinity(0, {int(cpu)})
    with uf.VolatileBuffer(count * 4096) as buffer:
        buffer.numpy()[:] = 1
        print(json.dumps({"ready": True}), flush=True)
        for _ in sys.stdin:
            spent = 0
            for _ in range(rounds):
                start = time.perf_counter_ns()
                buffer.unpin()
                lost = buffer.pin()
                spent += time.perf_counter_ns() - start
                if lost:
                    raise SystemExit("there is too little memory to measure this")
            seen = int(buffer.numpy()[::4096].sum(dtype="u8"))
            print(json.dumps({"ns_per_touch": spent / count / rounds, "touches": count * rounds, "sum": seen}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
