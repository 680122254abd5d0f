"""What a reader must know to judge the numbers."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("userfault", "numpy", "zarr", "numcodecs", "h5py", "blosc2", "zstandard", "ratarmount", "indexed_zstd")


def describe_machine() -> dict[str, Any]:
    """The machine and its settings, as JSON takes them."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    thp = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "cpu": model[0].split(":")[1].strip() if model else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "transparent_hugepages": thp.read_text().strip() if thp.exists() else None,
        "load": os.getloadavg()[0],
    }


def versions() -> dict[str, str | None]:
    """Of all contenders; None if one is not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
