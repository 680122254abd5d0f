"""``userfault pack FILE``: compress a file into an image."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import TYPE_CHECKING

import click

from userfault.cli.common import SIZE, Exit, Failure, emit_json, say, verb, wants_json
from userfault.cli.progress import progress_bar

if TYPE_CHECKING:
    from userfault.image.pack import Packed

SUFFIX = ".zst"


@verb("pack", example="userfault pack weights.bin -o weights.img --frame 256KiB --level 9")
@click.argument("file", type=click.Path(allow_dash=True))
@click.option("-o", "--output", type=click.Path(allow_dash=True), help="Where to; FILE.zst if not given, - for stdout.")
@click.option("--frame", type=SIZE, default="64KiB", help="Bytes that decompress together: multiples of 4KiB.")
@click.option("--level", type=int, default=3, help="Of zstd: 1 is fast, 22 small.")
@click.option("--threads", type=click.IntRange(min=1), help="How many compress; one per CPU if not given.")
@click.option("-f", "--force", is_flag=True, help="Replace the output if it exists.")
def command(file: str, output: str | None, frame: int, level: int, threads: int | None, force: bool) -> None:
    """Compress FILE (- for standard input) into an image whose pages can be had one by one.

    An image is seekable zstd: `zstd -d` restores it anywhere. Zeros and holes take no room. The output appears
    whole or not at all.
    """
    output = output or ("-" if file == "-" else file + SUFFIX)
    _check_usage(output, frame, level)
    packed = _pack(file, output, frame, level, threads, force)
    if wants_json():
        fields = dataclasses.asdict(packed)
        emit_json({"input": file, "output": output, "frame_bytes": frame, "level": level, **fields})
    else:
        say(_summary(output, packed))


def _check_usage(output: str, frame: int, level: int) -> None:
    from userfault.image.pack import check_frame, check_level

    for option, check, value in (("--frame", check_frame, frame), ("--level", check_level, level)):
        try:
            check(value)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint=option) from None
    if output == "-" and wants_json():
        raise click.UsageError("--json and an image cannot both go to standard output: give -o")


def _pack(file: str, output: str, frame: int, level: int, threads: int | None, force: bool) -> Packed:
    from userfault.image import pack

    source = sys.stdin.buffer if file == "-" else file
    target = _stdout() if output == "-" else output
    with progress_bar(os.path.basename(file)) as progress:
        try:
            return pack(source, target, frame=frame, level=level, threads=threads, progress=progress, overwrite=force)
        except FileExistsError as error:
            raise Failure(f"{error.filename} exists", hint="--force replaces it") from None


def _stdout() -> _Stdout:
    if sys.stdout.isatty():
        raise Failure("an image is not for a terminal", hint="name a file with -o, or send it to a pipe", status=Exit.USAGE)
    return _Stdout()


class _Stdout:
    """Standard output; what it takes has left the process, so that a reader who left is noticed."""

    def write(self, data: bytes | memoryview, /) -> int:
        """Write some of it."""
        return os.write(sys.stdout.fileno(), data)


def _summary(output: str, packed: Packed) -> str:
    from userfault.units import format_bytes, format_seconds

    name = "stdout" if output == "-" else output
    text = f"{name}: {format_bytes(packed.decoded_bytes)} in {format_bytes(packed.file_bytes)}"
    details = [f"{packed.ratio:.2f} times smaller", f"{packed.frames} frames"]
    if packed.zero_bytes:
        details.append(f"{format_bytes(packed.zero_bytes)} of zeros")
    return f"{text} ({', '.join(details)}) in {format_seconds(packed.seconds)}"
