"""``python -m bench.filters``: scan noisy numbers out of images, plain zstd beside ``pack --dtype f4``, in turn.

Three kinds of float32 data, all a sine of amplitude 1 and period 5000 with normal noise of 1e-3:

- ``decimals``: rounded to 4 decimals, as an instrument prints it that shows four places;
- ``converter``: rounded to multiples of 2**-15, as a converter of 16 bits gives it: the last byte of most numbers is zero;
- ``mantissas``: not rounded: the lower half of each number is noise that nothing compresses.

A scan maps the image and sums it all in chunks of the frame, in one thread; the files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

import userfault as uf
from bench.peers import ROOT
from bench.report import describe_machine, describe_revision, spread
from userfault.image import pack
from userfault.units import format_bytes, parse_bytes

ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "decimals": lambda numbers: np.round(numbers, 4),
    "converter": lambda numbers: np.round(numbers * 32768) / 32768,
    "mantissas": lambda numbers: numbers,
}
CUTS = (("64KiB", "64KiB"), ("2MiB", "64KiB"), ("2MiB", "2MiB"))
"""Frame, and block of the shuffle."""


@dataclass(frozen=True)
class Scan:
    """What is scanned: both images have this frame and level.

    Attributes:
        data: how the numbers were rounded.
        frame: bytes that decompress together.
        block: bytes that were shuffled together.
        level: of zstd.
        huge: units of 2 MiB in huge pages.
    """

    data: str
    frame: str
    block: str
    level: int
    huge: bool = False

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.data}-{self.frame}-{self.block}-level{self.level}{'-huge' if self.huge else ''}"


def scans() -> list[Scan]:
    """All that are measured."""
    return [Scan(data, *cut, level, huge) for data in ROUNDINGS for cut in CUTS for level in (1, 3) for huge in (False, True)]


def write_data(folder: Path, kind: str, length: int) -> Path:
    """A `.npy` file of so many bytes of numbers."""
    path = folder / f"{kind}.npy"
    if not path.exists():
        count, numbers = length // 4, np.random.default_rng(1)
        exact = np.sin(np.arange(count) * (2 * np.pi / 5000)) + numbers.normal(0, 1e-3, count)
        np.save(path, ROUNDINGS[kind](exact).astype("f4"))
    return path


def write_image(folder: Path, scan: Scan, source: Path, dtype: str | None) -> Path:
    """The image of it, packed once."""
    path = folder / f"{scan.data}-{scan.frame}-{scan.block if dtype else 'plain'}-{scan.level}.zst"
    if not path.exists():
        pack(source, path, frame=scan.frame, level=scan.level, dtype=dtype, block=scan.block if dtype else None)
    return path


def play(image: Path, scan: Scan) -> tuple[int, int, float]:
    """Nanoseconds of one scan, those of all CPUs, and the sum."""
    start, spent = time.perf_counter_ns(), time.process_time_ns()
    numbers = uf.load(image, huge=scan.huge)
    step, total = parse_bytes(scan.frame) // 4, 0.0
    for at in range(0, len(numbers), step):
        total += float(numbers[at : at + step].sum())
    return time.perf_counter_ns() - start, time.process_time_ns() - spent, total


def measure(scan: Scan, folder: Path, *, length: int, rounds: int) -> dict[str, object]:
    """One round to warm up, then `rounds` in turn; who begins changes with every round."""
    source = write_data(folder, scan.data, length)
    images = {"plain": write_image(folder, scan, source, None), "shuffled": write_image(folder, scan, source, "f4")}
    samples: dict[str, list[float]] = {name: [] for name in images}
    cpu: dict[str, list[float]] = {name: [] for name in images}
    for number in range(rounds + 1):
        sums = set()
        for name in sorted(images, reverse=number % 2 == 0):
            spent, burnt, total = play(images[name], scan)
            sums.add(total)
            if number > 0:
                samples[name].append(spent)
                cpu[name].append(burnt)
        if len(sums) > 1:
            raise RuntimeError(f"{scan.name}: the two images gave different numbers")
    sizes = {name: os.path.getsize(path) for name, path in images.items()}
    return {
        "scan": {"name": scan.name, **asdict(scan)},
        "source_bytes": os.path.getsize(source),
        "file_bytes": sizes,
        "ns": samples,
        "cpu_ns": cpu,
        "faster": ratio(samples),
        "cheaper": ratio(cpu),
        "smaller": sizes["plain"] / sizes["shuffled"],
    }


def ratio(samples: dict[str, list[float]]) -> float:
    """Median of the rounds' ratios."""
    return statistics.median(plain / other for plain, other in zip(samples["plain"], samples["shuffled"], strict=True))


def line_of(row: dict) -> str:
    """One line of the table: time and size of both, and how many times faster, cheaper in CPU time, and smaller."""
    times = {name: f"{spread(samples):>24}" for name, samples in row["ns"].items()}
    rates = {name: row["source_bytes"] / statistics.median(samples) for name, samples in row["ns"].items()}
    sizes = {name: format_bytes(size) for name, size in row["file_bytes"].items()}
    return (
        f"{row['scan']['name']:38} {times['plain']} {times['shuffled']} {rates['plain']:5.2f} {rates['shuffled']:5.2f} GB/s"
        f" {row['faster']:5.2f}x {row['cheaper']:5.2f}x  {sizes['plain']:>9} {sizes['shuffled']:>9} {row['smaller']:5.2f}x"
    )


def main(argv: list[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(prog="bench.filters", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="scans whose names contain one of these; all without")
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds of each side, after one to warm up")
    parser.add_argument("--size", default="256MiB", help="bytes of numbers")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder for the JSON file")
    options = parser.parse_args(argv)
    rows = []
    print(f"{'':38} {'plain':>24} {'shuffled':>24}  plain shuffled    faster    CPU      plain  shuffled smaller")
    with tempfile.TemporaryDirectory(prefix="userfault-bench-") as folder:
        for scan in scans():
            if not options.names or any(name in scan.name for name in options.names):
                rows.append(measure(scan, Path(folder), length=parse_bytes(options.size), rounds=options.rounds))
                print(line_of(rows[-1]), flush=True)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    result = {"schema": 1, "at": at, "revision": describe_revision(), "machine": describe_machine(), "rows": rows}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{at.replace(':', '')}-filters-{result['revision']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"samples: {os.path.relpath(path)}", file=sys.stderr)
    return 0 if rows else 2


if __name__ == "__main__":
    sys.exit(main())
