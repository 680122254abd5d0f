"""``userfault verify IMAGE``: decompress all of an image and compare its checksums."""

from __future__ import annotations

import dataclasses
import os

import click

from userfault.cli.common import Exit, emit, emit_json, say, verb, wants_json
from userfault.cli.progress import progress_bar
from userfault.image import Verification, verify
from userfault.units import format_bytes

SHOWN = 20
"""So many bad frames are listed; --json lists all."""


@verb("verify", example="userfault verify weights.img")
@click.argument("image", type=click.Path())
@click.option("--threads", type=click.IntRange(min=1), help="How many decompress; one per CPU if not given.")
def command(image: str, threads: int | None) -> int:
    """Decompress all of IMAGE and compare its checksums. The exit status is 1 if any frame is bad."""
    with progress_bar(os.path.basename(image)) as progress:
        found = verify(image, threads=threads, progress=progress)
    if wants_json():
        emit_json({"ok": found.ok, **dataclasses.asdict(found)})
    else:
        _tell(found)
    return Exit.DONE if found.ok else Exit.FAILED


def _tell(found: Verification) -> None:
    for bad in found.bad[:SHOWN]:
        emit(bad.error)
    if len(found.bad) > SHOWN:
        emit(f"and {len(found.bad) - SHOWN} more (--json lists them)")
    if not found.checksums and found.frames:
        say(f"{found.path}: has no checksums; every frame was decompressed, but not compared with anything")
    if found.ok:
        say(f"{found.path}: good, {format_bytes(found.decoded_bytes)} in {found.frames} frames")
    else:
        lost = sum(bad.decoded_bytes for bad in found.bad)
        say(f"error: {found.path}: {len(found.bad)} of {found.frames} frames are bad, {format_bytes(lost)} are lost")
