"""One way to answer the question of `userfault demo`, in a process of its own: its peak memory is its own too.

``python -m userfault.cli.demo_contender lazy|eager|memmap FILE [PICTURE]`` prints JSON.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import userfault as uf
from userfault.cli.common import guarded
from userfault.cli.demo_archive import in_the_middle, read_contents
from userfault.report.heatmap import Watch, save_picture

Opened = tuple[memoryview, Callable[[], dict[str, int]]]


def open_lazily(path: str, stack: ExitStack) -> Opened:
    """Map the image."""
    region = stack.enter_context(uf.map(path))

    def counted() -> dict[str, int]:
        statistics = settled(region)
        filled = statistics.copied_bytes + statistics.moved_bytes + statistics.zero_bytes
        return {"faults": statistics.faults, "filled_bytes": filled}

    return memoryview(region), counted


def settled(region: uf.Region) -> uf.Statistics:
    """The statistics once no fault is being counted: a touch returns before its fault's last counter is written."""
    for _ in range(100):
        if not region.statistics().in_flight:
            break
        time.sleep(0.001)
    return region.statistics()


def open_eagerly(path: str, stack: ExitStack) -> Opened:
    """Decompress all of the image into ordinary memory, by zstd's own program where there is one."""
    if shutil.which("zstd"):
        data = subprocess.run(["zstd", "-dcq", path], stdout=subprocess.PIPE, check=True).stdout
    else:
        with uf.map(path) as region:
            data = region.read(0, len(region))
    return memoryview(data), lambda: {"filled_bytes": len(data)}


def open_memmap(path: str, stack: ExitStack) -> Opened:
    """Let the kernel map the unpacked file."""
    return np.memmap(path, dtype="u1", mode="r").data, lambda: {}


WAYS: dict[str, Callable[[str, ExitStack], Opened]] = {
    "lazy": open_lazily,
    "eager": open_eagerly,
    "memmap": open_memmap,
}


def run(way: str, path: str, picture: str | None = None) -> dict[str, Any]:
    """Open, answer, scan; measure after each."""
    at_start = peak_rss()
    with ExitStack() as stack:
        start = time.perf_counter()
        view, counted = WAYS[way](path, stack)
        watch = watched(view, stack) if picture else None
        answer = answer_of(view)
        result = {"answer": answer, "answer_seconds": time.perf_counter() - start, "length": len(view)}
        result["start_rss_bytes"] = at_start
        result.update({f"answer_{name}": value for name, value in counted().items()}, answer_rss_bytes=peak_rss())
        start = time.perf_counter()
        result["sum"] = scan(view)
        result["scan_seconds"] = time.perf_counter() - start
        result.update({f"scan_{name}": value for name, value in counted().items()}, scan_rss_bytes=peak_rss())
        if watch and picture:
            watch.look()
            result.update(draw(watch, result, picture))
        view.release()
    return result


def answer_of(view: memoryview) -> dict[str, Any]:
    """List the archive, then read one file from the middle of it."""
    lines = read_contents(view)
    member = in_the_middle(lines, len(view))
    data = bytes(view[member.offset : member.offset + member.length])
    return {
        "files": len(lines),
        "file": member.name,
        "offset": member.offset,
        "length": member.length,
        "lines": data.count(b"\n"),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def scan(view: memoryview) -> int:
    """Read every byte, as 64-bit words."""
    return int(np.frombuffer(view, "u8", count=len(view) // 8).sum())


def watched(view: memoryview, stack: ExitStack) -> Watch:
    """Begin to watch pages arrive."""
    address = np.frombuffer(view, "u1").ctypes.data
    return stack.enter_context(Watch(address, len(view), every_seconds=0.001))


def draw(watch: Watch, result: dict[str, Any], picture: str) -> dict[str, str | None]:
    """Save the picture, or say why not."""
    moments = {"answer": result["answer_seconds"]}
    try:
        save_picture(watch.arrivals(), picture, title="when each page of the image arrived", moments=moments)
    except ImportError:
        return {"picture": None, "why": "matplotlib is missing\n\nhint: pip install 'userfault[plot]'"}
    except OSError as error:
        return {"picture": None, "why": f"{picture}: {error.strerror}\n\nhint: --picture says where to save it"}
    return {"picture": picture, "why": None}


def peak_rss() -> int:
    """The most memory that this process had so far, in bytes; getrusage would count our parent's from before exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    guarded(lambda: print(json.dumps(run(*sys.argv[1:]))))
