"""``userfault demo``: a real archive, mapped while compressed, beside the two other ways to read it."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from userfault.cli.common import SIZE, Exit, console, emit_json, say, verb, wants_json
from userfault.cli.progress import progress_bar
from userfault.units import format_bytes, format_seconds

ROUNDS = 3
TITLES = {
    "lazy": "userfault on the image",
    "eager": "decompress all first",
    "memmap": "np.memmap, unpacked",
}


@dataclass(frozen=True)
class Files:
    """What the demo prepared: the archive, its image, and how long that took (0 if it was there)."""

    tar: Path
    image: Path
    tar_seconds: float
    pack_seconds: float


def default_folder() -> Path:
    """Where caches belong."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "userfault" / "demo"


@verb("demo", example="userfault demo --picture arrivals.png")
@click.argument("which", metavar="[2014]", required=False, type=click.Choice(["2014"]))
@click.option("--size", type=SIZE, default="200MiB", help="How much to pack.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to keep archive and image [cache folder].")
@click.option("--picture", type=click.Path(path_type=Path), default="userfault-demo.png", help="The picture to save.")
@click.option("--fresh", is_flag=True, help="Pack again, even if there is an image already.")
def command(which: str | None, size: int, folder: Path | None, picture: Path, fresh: bool) -> None:
    """Map an image of this machine's own files, and ask it something.

    Packs real files into an archive (the first time), maps the image, lists it and reads a file from the middle
    of it, then reads all of it. The same is done by decompressing everything first, and by np.memmap of the
    unpacked archive, each in a process of its own.

    With 2014: the three calls of the proposal of October 2014 instead, as userfault.mman has them, counted and
    timed. Takes no other options.
    """
    if which:
        demo_2014()
        return
    files = prepare(folder or default_folder(), size, fresh)
    runs = {way: [contender(way, files) for _ in range(ROUNDS)] for way in TITLES}
    rows = {way: median_of(results) for way, results in runs.items()}
    check_agreement(rows)
    drawn = contender("lazy", files, picture)
    if wants_json():
        emit_json(as_data(files, rows, drawn["picture"]))
    else:
        show(files, rows)
    say(f"no picture: {drawn['why']}" if drawn["why"] else f"picture: {drawn['picture']}")


def demo_2014() -> None:
    """The other demo, which has no options of its own."""
    from click.core import ParameterSource

    from userfault.cli.demo_2014 import run

    ctx = click.get_current_context()
    given = [one for one in ctx.params if ctx.get_parameter_source(one) is ParameterSource.COMMANDLINE and one != "which"]
    if given:
        raise click.UsageError(f"--{given[0]} does not go with 2014", ctx)
    run()


def prepare(folder: Path, size: int, fresh: bool) -> Files:
    """Build what is not there yet."""
    from userfault.cli.demo_archive import build
    from userfault.image import pack

    folder.mkdir(parents=True, exist_ok=True)
    tar = folder / f"files-{format_bytes(size)}.tar"
    image = tar.with_suffix(".tar.zst")
    tar_seconds = pack_seconds = 0.0
    if fresh or not tar.exists() or not image.exists():
        start = time.perf_counter()
        with progress_bar("collecting files of this machine") as progress:
            build(tar, size, progress)
        tar_seconds = time.perf_counter() - start
        with progress_bar("packing") as progress:
            pack_seconds = pack(tar, image, progress=progress).seconds
    return Files(tar, image, tar_seconds, pack_seconds)


def contender(way: str, files: Files, picture: Path | None = None) -> dict[str, Any]:
    """Run one way in a process of its own."""
    path = files.tar if way == "memmap" else files.image
    command = [sys.executable, "-m", "userfault.cli.demo_contender", way, str(path)]
    command += [str(picture)] if picture else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        click.echo(done.stderr or f"error: {TITLES[way]}: ended with {done.returncode}", err=True, nl=not done.stderr)
        raise SystemExit(done.returncode if done.returncode > 0 else Exit.FAILED)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def median_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of what was measured; what is no number is the same in all."""
    numbers = {name for name in results[0] if name.endswith(("_seconds", "_bytes", "_faults"))}
    return {
        name: statistics.median(result[name] for result in results) if name in numbers else value
        for name, value in results[0].items()
    }


def check_agreement(rows: dict[str, dict[str, Any]]) -> None:
    """All ways must have read the same bytes."""
    if len({(row["sum"], row["answer"]["sha256"]) for row in rows.values()}) != 1:
        raise AssertionError("the three ways read different bytes")


def as_data(files: Files, rows: dict[str, dict[str, Any]], drawn: str | None) -> dict[str, Any]:
    """The result for programs."""
    return {
        "archive": {"path": str(files.tar), "bytes": files.tar.stat().st_size, "seconds": files.tar_seconds},
        "image": {"path": str(files.image), "bytes": files.image.stat().st_size, "seconds": files.pack_seconds},
        "rounds": ROUNDS,
        "ways": rows,
        "picture": drawn,
    }


def show(files: Files, rows: dict[str, dict[str, Any]]) -> None:
    """The result for people."""
    answer = rows["lazy"]["answer"]
    archive, image = files.tar.stat().st_size, files.image.stat().st_size
    packed = f" (packed in {format_seconds(files.pack_seconds)})" if files.pack_seconds else ""
    out = console()
    out.print(f"image: {files.image}, {format_bytes(image)} for {format_bytes(archive)}{packed}", soft_wrap=True)
    out.print(f"question: what is in it, and what is in the middle? {answer['files']} files;", soft_wrap=True)
    out.print(f"  {answer['file']} has {answer['lines']} lines, sha256 {answer['sha256'][:16]}…", soft_wrap=True)
    out.print(table_of(rows))
    for note in notes_of(rows, archive):
        out.print(f"- {note}", soft_wrap=True)


def table_of(rows: dict[str, dict[str, Any]]) -> Any:
    """A table, one line for each way."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for title in ("answer", "brought", "faults", "peak", "scan all", "peak"):
        table.add_column(title, justify="right", no_wrap=True)
    for way, row in rows.items():
        table.add_row(
            TITLES[way],
            format_seconds(row["answer_seconds"]),
            mebibytes(row["answer_filled_bytes"]) if "answer_filled_bytes" in row else "-",
            str(int(row["answer_faults"])) if "answer_faults" in row else "-",
            mebibytes(row["answer_rss_bytes"]),
            format_seconds(row["scan_seconds"]),
            mebibytes(row["scan_rss_bytes"]),
        )
    return table


def mebibytes(size: float) -> str:
    """A size for a narrow column."""
    mebi = size / (1 << 20)
    return f"{mebi:.0f}MiB" if mebi >= 10 else f"{mebi:.1f}MiB"


def notes_of(rows: dict[str, dict[str, Any]], archive: int) -> list[str]:
    """What the numbers say, good or bad."""
    lazy, eager, memmap = (rows[way] for way in TITLES)
    sooner = eager["answer_seconds"] / lazy["answer_seconds"]
    notes = [
        "answer: time to the first answer. brought: bytes filled until then. peak: most memory so far (RSS), of which "
        f"{mebibytes(lazy['start_rss_bytes'])} are the interpreter and NumPy.",
        f"The first answer came {sooner:.0f} times sooner than by decompressing all of it.",
    ]
    whole_lazy, whole_eager = (row["answer_seconds"] + row["scan_seconds"] for row in (lazy, eager))
    faster, slower = sorted((whole_lazy, whole_eager))
    who = "userfault" if whole_lazy < whole_eager else "decompressing first"
    notes.append(f"For all of it, {who} was quicker: {format_seconds(faster)} against {format_seconds(slower)}.")
    notes.append(
        f"np.memmap was quickest in all: where the unpacked {format_bytes(archive)} are on a local disk, and in memory "
        "already as here, use that."
        if memmap["answer_seconds"] + memmap["scan_seconds"] < faster
        else f"np.memmap needs the unpacked {format_bytes(archive)} on a local disk."
    )
    return notes
