"""``python measure.py JSON``: one measure of one contender, as a line of JSON.

The argument has the keys way, chunk, options, folder, raw, seed, threads and run (make, elements, column, scan, first or
touches). The answer is what was measured, the sum of what was seen (the parent knows the true one), and the peak memory of all
processes concerned; or a reason why there is no answer.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

ELEMENT_STEP_ROWS = 64
"""One element is read in each stretch of so many rows, 2 MiB: nobody has a piece of it yet."""
BLOCK_ROWS = 256
"""A scan asks for 8 MiB at a time."""
PAGE_WORDS = 1024
PR_SET_PDEATHSIG = 1
MOST_TOUCHES = 8192


def peak_bytes(pid: int | str) -> int:
    """The most memory that a process had so far; getrusage would count its parent's from before exec."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def words(values: Any) -> Any:
    """The bits of floats, as whole numbers: their sum is exact in any order."""
    return np.ascontiguousarray(values).view("u4")


def places(shape: tuple[int, int], seed: int) -> list[tuple[int, int]]:
    """One element of each stretch in random order; the first stretch comes first, it is for warming up."""
    rows, columns = shape
    random = np.random.default_rng(seed)
    stretches = np.arange(ELEMENT_STEP_ROWS, rows, ELEMENT_STEP_ROWS)
    random.shuffle(stretches)
    within = random.integers(ELEMENT_STEP_ROWS, size=len(stretches))
    across = random.integers(columns, size=len(stretches))
    return [(0, 0), *((int(row), int(column)) for row, column in zip(stretches + within, across, strict=True))]


def elements(array: Any, seed: int, threads: int) -> dict[str, Any]:
    """Read elements one by one, each where nothing was read yet; then the same ones twice more, of which the last time counts.

    The second time still meets the processor's caches as the first one left them.
    """
    first, *rest = places(array.shape, seed)
    array[first]
    spent = []
    for _ in range(3):
        start = time.perf_counter()
        values = [array[place] for place in rest]
        spent.append((time.perf_counter() - start) / len(rest))
    return {"element": spent[0], "again": spent[2], "answer": int(words(np.array(values, "f4")).sum(dtype="u8"))}


def column(array: Any, seed: int, threads: int) -> dict[str, Any]:
    """Read one column: an element of each row."""
    number = seed % array.shape[1]
    start = time.perf_counter()
    answer = int(words(array[:, number]).sum(dtype="u8"))
    return {"column": time.perf_counter() - start, "answer": answer}


def scan(array: Any, seed: int, threads: int) -> dict[str, Any]:
    """Read everything, block by block."""
    start = time.perf_counter()
    answer = 0
    for row in range(0, array.shape[0], BLOCK_ROWS):
        answer += int(words(array[row : row + BLOCK_ROWS]).sum(dtype="u8"))
    return {"scan": time.perf_counter() - start, "answer": answer}


def first(array: Any, seed: int, threads: int) -> dict[str, Any]:
    """Read one element; the parent knows when it started us."""
    answer = int(words(np.array([array[places(array.shape, seed)[-1]]], "f4"))[0])
    return {"at": time.monotonic(), "answer": answer}


def touched_pages(pages: int) -> Any:
    """Which pages of a sparse file have data, and are touched: the same ones every time, in random order."""
    chosen = np.random.default_rng(pages).choice(pages, min(MOST_TOUCHES, pages // 2), replace=False)
    return chosen.astype(np.intp)


def touches(array: Any, seed: int, threads: int) -> dict[str, Any]:
    """Touch pages at random, each thread its share; NumPy gives up the GIL meanwhile."""
    flat = array.reshape(-1).view("u4")
    shares = np.array_split(touched_pages(len(flat) // PAGE_WORDS) * PAGE_WORDS, threads)
    seen = [np.zeros(len(share), "u4") for share in shares]
    times: list[tuple[float, float]] = []
    barrier = threading.Barrier(threads)

    def touch(number: int) -> None:
        barrier.wait()
        start = time.perf_counter()
        flat.take(shares[number], out=seen[number], mode="clip")
        times.append((start, time.perf_counter()))

    workers = [threading.Thread(target=touch, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    spent = max(end for _, end in times) - min(start for start, _ in times)
    answer = sum(int(one.sum(dtype="u8")) for one in seen)
    return {"touches": spent / sum(len(share) for share in shares), "answer": answer}


RUNS: dict[str, Callable[[Any, int, int], dict[str, Any]]] = {
    "elements": elements,
    "column": column,
    "scan": scan,
    "first": first,
    "touches": touches,
}


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Do what was asked for."""
    ways = import_module("ways")
    way = ways.WAYS[request["way"]](Path(request["folder"]), request["chunk"], request["options"], request["raw"])
    try:
        if request["run"] == "make":
            if not way.file.exists():
                way.make()
            else:
                way.open().close()
            return {"stored": stored_bytes(way.file)}
        opened = way.open()
    except ImportError as error:
        return {"reason": f"{error.name or error} is not installed: pip install 'userfault[bench]'"}
    except (ways.NotHere, PermissionError) as error:
        return {"reason": str(error)}
    try:
        result = RUNS[request["run"]](opened.array, request["seed"], request["threads"])
        result["peak"] = sum(peak_bytes(pid) for pid in ("self", *opened.helpers))
    finally:
        opened.close()
    return result


def stored_bytes(path: Path) -> int:
    """Size of a file, or of all files of a folder."""
    return sum(one.stat().st_size for one in ([path] if path.is_file() else path.rglob("*")) if one.is_file())


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # whoever measures may be killed
    print(json.dumps(main(json.loads(sys.argv[1]))), flush=True)
    os._exit(0)  # what ends slowly is not measured, and must not hold up the others
