"""``userfault bench``: what a touch costs here, measured with nothing but the installed package."""

from __future__ import annotations

import mmap
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from userfault.cli.common import SIZE, console, emit_json, say, verb, wants_json
from userfault.units import format_bytes, format_seconds, parse_bytes

ROUNDS = 9
CASES = (("thread", "4KiB"), ("signal", "4KiB"), ("thread", "64KiB"), ("signal", "64KiB"), ("thread", "2MiB"))


@verb("bench", example="userfault bench --size 16MiB")
@click.option("--size", type=SIZE, default="32MiB", help="Bytes to touch per round.")
@click.option("--rounds", type=click.IntRange(min=1), default=ROUNDS, help="Rounds, after one to warm up.")
def command(size: int, rounds: int) -> None:
    """Measure what a touch costs here.

    Touches one byte of each unit of a region over bytes in memory, all absent, beside the kernel's own fresh memory.
    This is the short form: the repository's scripts/bench compares each number with a C program, which needs a
    compiler.
    """
    size = max(size, parse_bytes("4MiB")) // parse_bytes("2MiB") * parse_bytes("2MiB")
    rounds_of = measure(size, rounds)
    rows = [row_of(name, unit, rounds_of[name, unit]) for name, unit in rounds_of]
    if wants_json():
        emit_json({"size_bytes": size, "rounds": rounds, "rows": rows})
        return
    show(rows)
    say(f"medians (quartiles) of {rounds} rounds over {format_bytes(size)}; scripts/bench compares with C", level=0)


def measure(size: int, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Seconds per touch of each case; the cases take turns, so that a disturbance hits all alike."""
    import userfault as uf

    source = uf.Bytes(bytes(range(256)) * (size // 256))
    samples: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for name, unit in (("kernel", "4KiB"), *CASES):
            seconds = kernel_round(size) if name == "kernel" else our_round(source, name, unit, size)
            if number > 0:
                samples.setdefault((name, unit), []).append(seconds)
    return samples


def kernel_round(size: int) -> float:
    """A touch of fresh anonymous memory, which the kernel clears."""
    import numpy as np

    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return timed(partial(np.frombuffer(memory, "u1")[::4096].fill, 1), size // 4096)


def our_round(source: Any, delivery: Any, unit: str, size: int) -> float:
    """A touch of each unit of a fresh region."""
    import userfault as uf

    step = parse_bytes(unit)
    with uf.map(source, delivery=delivery, unit=unit, huge=unit == "2MiB") as region:
        array = region.numpy("u1")
        seconds = timed(array[::step].sum, size // step)
        del array
    return seconds


def timed(touch: Callable[[], Any], touches: int) -> float:
    """Seconds per touch."""
    start = time.perf_counter()
    touch()
    return (time.perf_counter() - start) / touches


def row_of(name: str, unit: str, samples: list[float]) -> dict[str, Any]:
    """One case, as data."""
    low, middle, high = statistics.quantiles(samples, n=4) if len(samples) > 1 else samples * 3
    return {
        "delivery": name,
        "unit": unit,
        "median_seconds": middle,
        "quartiles_seconds": [low, high],
        "bytes_per_second": parse_bytes(unit) / middle,
        "samples_seconds": samples,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """A table, one line for each case."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("answered by")
    for title in ("unit", "per touch", "quartiles", "bytes per second"):
        table.add_column(title, justify="right")
    for row in rows:
        low, high = (format_seconds(one) for one in row["quartiles_seconds"])
        by = "the kernel: fresh memory" if row["delivery"] == "kernel" else row["delivery"]
        rate = format_bytes(int(row["bytes_per_second"]))
        table.add_row(by, row["unit"], format_seconds(row["median_seconds"]), f"{low} - {high}", rate)
    console().print(table)
