"""Which pages of a region arrived when: watching, and a picture of it.

The watcher reads the kernel's page table through /proc/self/pagemap, so it costs the touching threads nothing and sees
pages however they came: by a touch, by prefetch, or with their unit.
"""

from __future__ import annotations

import math
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ENTRY_BYTES = 8
PRESENT = np.uint64(1 << 63)
CELLS = 8192
ABSENT_COLOUR = "#e8e8e8"


@dataclass(frozen=True)
class Arrivals:
    """When each page of a region was first seen present.

    Attributes:
        page_bytes: bytes in a page.
        seconds: float64[pages], since the watch began; NaN for a page that never came.
    """

    page_bytes: int
    seconds: NDArray[np.float64]

    @property
    def present_bytes(self) -> int:
        """Bytes of all pages that came."""
        return int(np.count_nonzero(~np.isnan(self.seconds))) * self.page_bytes

    def cells(self, count: int = CELLS) -> NDArray[np.float64]:
        """Give the earliest arrival in each of at most `count` equal stretches of the region, NaN where none came."""
        per_cell = max(1, math.ceil(len(self.seconds) / count))
        padded = np.full(math.ceil(len(self.seconds) / per_cell) * per_cell, np.nan)
        padded[: len(self.seconds)] = self.seconds
        earliest: NDArray[np.float64] = np.fmin.reduce(padded.reshape(-1, per_cell), axis=1)
        return earliest


class Watch:
    """Watch pages of this process arrive, from a thread that looks every few milliseconds.

    Args:
        address: where the memory begins; a multiple of the page size.
        length: bytes.
        every_seconds: how long to rest between two looks.

    Example:
        >>> with Watch(region.address, len(region)) as watch:  # doctest: +SKIP
        ...     region.numpy("u1").sum()
        >>> save_picture(watch.arrivals(), "arrivals.png")  # doctest: +SKIP
    """

    def __init__(self, address: int, length: int, *, every_seconds: float = 0.004) -> None:
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._first = address // self._page_bytes
        self._seconds = np.full(math.ceil(length / self._page_bytes), np.nan)
        self._rest = every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_again_and_again, name="userfault-watch", daemon=True)

    def __enter__(self) -> Self:
        self._file = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        self._start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self.look()
        os.close(self._file)

    def look(self) -> None:
        """Note the time for every page that has come since the last look."""
        now = time.monotonic() - self._start
        raw = os.pread(self._file, len(self._seconds) * ENTRY_BYTES, self._first * ENTRY_BYTES)
        present = (np.frombuffer(raw, np.uint64) & PRESENT) != 0
        fresh = present & np.isnan(self._seconds[: len(present)])
        self._seconds[: len(present)][fresh] = now

    def arrivals(self) -> Arrivals:
        """Return what was seen so far."""
        return Arrivals(self._page_bytes, self._seconds.copy())

    def _look_again_and_again(self) -> None:
        while not self._stop.wait(self._rest):
            self.look()


def save_picture(
    arrivals: Arrivals,
    path: str | os.PathLike[str],
    *,
    title: str = "when each page arrived",
    moments: dict[str, float] | None = None,
) -> Path:
    """Draw the region as a grid of cells, coloured by arrival, beside a plot of place against time.

    Args:
        arrivals: what a `Watch` saw.
        path: the PNG to write.
        title: above the picture.
        moments: names for some times (seconds), marked in the plot.

    Returns:
        The path of the picture.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    cells = arrivals.cells()
    mebibytes = len(arrivals.seconds) * arrivals.page_bytes / (1 << 20)
    image = _draw_grid(left, cells)
    figure.colorbar(image, ax=left, label="seconds", shrink=0.8)
    _draw_time(right, cells, mebibytes, moments or {})
    came = arrivals.present_bytes / (1 << 20)
    figure.suptitle(f"{title}: {came:.1f} of {mebibytes:.1f} MiB")
    figure.savefig(path, dpi=110)
    return Path(path)


def _draw_grid(axes: Any, cells: NDArray[np.float64]) -> Any:
    """Rows of cells, the first at the top left, read like a page; return what the colours mean."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, to_rgba

    came = cells[~np.isnan(cells)]
    colours = ScalarMappable(Normalize(0, came.max() if came.size else 1), "viridis")
    width = max(1, math.ceil(math.sqrt(len(cells) * 1.6)))
    grid = np.ones((math.ceil(len(cells) / width) * width, 4))
    grid[: len(cells)] = colours.to_rgba(cells)
    grid[: len(cells)][np.isnan(cells)] = to_rgba(ABSENT_COLOUR)
    axes.imshow(grid.reshape(-1, width, 4), aspect="auto", interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title("the region, first byte at the top left; grey never came", fontsize=9)
    return colours


def _draw_time(axes: Any, cells: NDArray[np.float64], mebibytes: float, moments: dict[str, float]) -> None:
    """Place over time: a scan is a slope, a jump is a dot."""
    axes.scatter(cells, np.arange(len(cells)) * mebibytes / len(cells), s=2, c=cells, cmap="viridis")
    for name, seconds in moments.items():
        axes.axvline(seconds, color="black", linewidth=0.8, linestyle="--")
        axes.annotate(name, (seconds, 0), xytext=(3, 3), textcoords="offset points", fontsize=8)
    axes.set_xlabel("seconds since it was mapped")
    axes.set_ylabel("place in the region, MiB")
    axes.set_title("a jump is a dot, a scan is a slope", fontsize=9)
