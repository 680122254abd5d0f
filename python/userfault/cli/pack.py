"""``userfault pack FILE``: compress a file into an image."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from userfault.cli.common import SIZE, Failure, emit_json, say, verb, wants_json
from userfault.cli.progress import progress_bar
from userfault.cli.streams import stdout_for

if TYPE_CHECKING:
    from userfault.image.pack import Packed

SUFFIX = ".zst"


@verb("pack", example="userfault pack weights.bin -o weights.img --frame 256KiB --level 9")
@click.argument("file", type=click.Path(allow_dash=True))
@click.option("-o", "--output", type=click.Path(allow_dash=True), help="Where to; FILE.zst if not given, - for stdout.")
@click.option("--frame", type=SIZE, default="64KiB", help="Bytes that decompress together: multiples of 4KiB.")
@click.option("--level", type=int, default=3, help="Of zstd: 1 is fast, 22 small.")
@click.option("--dtype", help="Shuffle the bytes of such numbers first: f4, i2, c16, or their size in bytes.")
@click.option("--block", type=SIZE, help="Bytes shuffled together; 64KiB, or what fits the frame, if not given.")
@click.option("--offset", type=SIZE, help="Where the numbers begin; behind a .npy header, or at 0, if not given.")
@click.option("--threads", type=click.IntRange(min=1), help="How many compress; one per CPU if not given.")
@click.option("-f", "--force", is_flag=True, help="Replace the output if it exists.")
def command(file: str, output: str | None, frame: int, level: int, force: bool, **options: Any) -> None:
    """Compress FILE (- for standard input) into an image whose pages can be had one by one.

    An image is seekable zstd: `zstd -d` restores it anywhere. Zeros and holes take no room. The output appears
    whole or not at all.

    With --dtype an array of noisy numbers becomes smaller and is there sooner. Whoever maps the image sees nothing of
    it; what `zstd -d` gives is shuffled then, and `userfault unshuffle` restores it.
    """
    output = output or ("-" if file == "-" else file + SUFFIX)
    _check_usage(output, frame, level, options)
    packed = _pack(file, output, frame=frame, level=level, overwrite=force, **options)
    if wants_json():
        fields = dataclasses.asdict(packed)
        emit_json({"input": file, "output": output, "frame_bytes": frame, "level": level, "dtype": options["dtype"], **fields})
    else:
        say(_summary(output, packed))


def _check_usage(output: str, frame: int, level: int, options: dict[str, Any]) -> None:
    from userfault.image.pack import check_frame, check_level
    from userfault.image.shuffling import item_bytes_of

    checks: list[tuple[str, Callable[[Any], object], Any]] = [("--frame", check_frame, frame), ("--level", check_level, level)]
    if options["dtype"] is not None:
        checks.append(("--dtype", item_bytes_of, options["dtype"]))
    for option, check, value in checks:
        try:
            check(value)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint=option) from None
    if output == "-" and wants_json():
        raise click.UsageError("--json and an image cannot both go to standard output: give -o")


def _pack(file: str, output: str, **options: Any) -> Packed:
    from userfault.image import pack

    source = sys.stdin.buffer if file == "-" else file
    target = stdout_for("an image") if output == "-" else output
    with progress_bar(os.path.basename(file)) as progress:
        try:
            return pack(source, target, progress=progress, **options)
        except FileExistsError as error:
            raise Failure(f"{error.filename} exists", hint="--force replaces it") from None


def _summary(output: str, packed: Packed) -> str:
    from userfault.units import format_bytes, format_seconds

    name = "stdout" if output == "-" else output
    text = f"{name}: {format_bytes(packed.decoded_bytes)} in {format_bytes(packed.file_bytes)}"
    details = [f"{packed.ratio:.2f} times smaller", f"{packed.frames} frames"]
    if packed.shuffle:
        details.append(f"items of {packed.shuffle.item_bytes} bytes shuffled")
    if packed.zero_bytes:
        details.append(f"{format_bytes(packed.zero_bytes)} of zeros")
    return f"{text} ({', '.join(details)}) in {format_seconds(packed.seconds)}"
