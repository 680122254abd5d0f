"""``userfault bench``: what a touch costs here, and how that compares, measured with nothing but the installed package."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from userfault.cli.common import SIZE, Exit, console, emit, emit_json, say, verb, wants_json
from userfault.units import format_bytes, format_seconds, parse_bytes

if TYPE_CHECKING:
    from userfault.rivals.results import Results

CASES = (("kernel", "4KiB"), ("thread", "4KiB"), ("signal", "4KiB"), ("thread", "64KiB"), ("signal", "64KiB"), ("thread", "2MiB"))


@verb("bench", example="userfault bench --report comparison")
@click.option(
    "--size", type=SIZE, help="Bytes to touch per round, 32MiB; with --report of the array, 256MiB (with --short 8MiB)."
)
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds, after one to warm up: 9, with --report 5.")
@click.option(
    "--report", "folder", type=click.Path(file_okay=False), help="Compare with others; write index.html and results.json."
)
@click.option("--short", is_flag=True, help="With --report: only see whether all works; one round of little.")
@click.option("--only", multiple=True, metavar="TEXT", help="With --report: those whose names contain it; may be repeated.")
@click.option(
    "--from",
    "saved",
    type=click.Path(exists=True, dir_okay=False),
    help="With --report: draw a results.json again.",
)
def command(
    size: int | None, rounds: int | None, folder: str | None, short: bool, only: tuple[str, ...], saved: str | None
) -> int | None:
    """Measure what a touch costs here, or compare with other ways.

    Touches one byte of each unit of a region over bytes in memory, all absent, beside the kernel's own fresh memory.
    The repository's scripts/bench compares each number with a C program, which needs a compiler.

    With --report the same array is read through np.memmap, mmap, a fault handler in ctypes, FUSE, zarr, h5py, blosc2
    and plain zstd too. That takes a quarter of an hour and six times the array's size in the temporary folder. What is
    not installed is left out and said: pip install 'userfault[bench]'.
    """
    if folder:
        return compare(folder, size, rounds, short, only, saved)
    if short or only or saved:
        raise click.UsageError("--short, --only and --from belong to --report")
    rounds = rounds or 9
    size = max(size or parse_bytes("32MiB"), parse_bytes("4MiB")) // parse_bytes("2MiB") * parse_bytes("2MiB")
    rows = measure(size, rounds)
    if wants_json():
        emit_json({"size_bytes": size, "rounds": rounds, "rows": rows})
        return None
    show(rows)
    say(f"medians (quartiles) of {rounds} rounds over {format_bytes(size)}; scripts/bench compares with C", level=0)
    return None


def compare(folder: str, size: int | None, rounds: int | None, short: bool, only: tuple[str, ...], saved: str | None) -> int:
    """Measure all contenders, or read what was measured; write the page, print the summary."""
    from userfault.rivals.page import write_report
    from userfault.rivals.results import Results

    if saved and (size or rounds or short or only):
        raise click.UsageError("--from draws what was measured: --size, --rounds, --short and --only are for measuring")
    results = Results.load(saved) if saved else play(size, rounds, short, only)
    page = write_report(results, folder)
    if wants_json():
        emit_json({"page": str(page), **results.to_data()})
    else:
        show_comparison(results)
    say(f"written: {page}")
    for line in results.errors:
        say(f"error: {line}", level=-1)
    return Exit.FAILED if results.errors else Exit.DONE


def play(size: int | None, rounds: int | None, short: bool, only: tuple[str, ...]) -> Results:
    """Have the contenders that were chosen take turns."""
    from dataclasses import replace

    from userfault.rivals import contenders, playing

    form = playing.SHORT if short else playing.Form()
    size = size or parse_bytes("8MiB" if short else "256MiB")
    try:
        playing.check_size(size)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--size") from None
    compared = contenders.chosen(contenders.CONTENDERS, only)
    if not compared:
        names = "; ".join(one.name for one in contenders.CONTENDERS)
        raise click.BadParameter(f"there is none of that name: {names}", param_hint="--only")
    form = replace(form, rounds=rounds or form.rounds)
    return playing.compare(size, form, say, contenders=compared, faulting=contenders.chosen(contenders.FAULTING, only))


def show_comparison(results: Results) -> None:
    """A line for each contender, and where another way wins."""
    from rich.table import Table

    from userfault.rivals import contenders
    from userfault.rivals.figures import shown
    from userfault.rivals.verdicts import verdict, when_not_to_use_it

    measures = [one for one in contenders.MEASURES if one.key not in ("again", "stored", "peak_first")]
    for group, title in contenders.GROUPS.items():
        members = [one for one in contenders.CONTENDERS if one.group == group and results.cell(one.name, "scan")]
        if not members:
            continue
        table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
        table.add_column("* the least")
        judged = {one.key: verdict(results, one, group) for one in measures}
        for asked in measures:
            table.add_column(asked.title, justify="right")
        for one in members:
            cells = [results.cell(one.name, asked.key) for asked in measures]
            if all(cell and cell.reason for cell in cells):
                table.add_row(one.name, cells[0].reason if cells[0] else None)
                continue
            texts = []
            for asked, cell in zip(measures, cells, strict=True):
                best = (found := judged[asked.key]) is not None and found.best is one
                texts.append(shown(cell.quartiles[1], asked.unit) + (" *" if best else "") if cell and cell.quartiles else "-")
            table.add_row(one.name, *texts)
        console().print(table)
    for line in when_not_to_use_it(results):
        emit(f"\n{line}")


def measure(size: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds per touch of each case; the cases take turns, so that a disturbance hits all alike."""
    import userfault as uf
    from userfault.rivals.figures import take_turns

    source = uf.Bytes(bytes(range(256)) * (size // 256))

    def touch(case: tuple[str, str], _number: int) -> float:
        return kernel_round(size) if case[0] == "kernel" else our_round(source, *case, size)

    return [row_of(*case, samples) for case, samples in zip(CASES, take_turns(CASES, touch, rounds), strict=True)]


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
    from userfault.rivals.figures import quartiles

    low, middle, high = quartiles(samples)
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
