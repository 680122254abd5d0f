"""``userfault unshuffle``: put the bytes in order that `zstd -d` gives of an image packed with --dtype."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

import click

from userfault.cli.common import SIZE, Failure, emit_json, say, verb, wants_json
from userfault.cli.streams import stdout_for

if TYPE_CHECKING:
    from userfault.image import Shuffle


@verb("unshuffle", example="zstd -dc data.npy.zst | userfault unshuffle --like data.npy.zst > data.npy")
@click.argument("file", type=click.Path(allow_dash=True), default="-")
@click.option("-o", "--output", type=click.Path(allow_dash=True), default="-", help="Where to; - for standard output.")
@click.option("--like", type=click.Path(), metavar="IMAGE", help="The image that FILE was decompressed from says it all.")
@click.option("--dtype", help="Of the numbers: f4, i2, c16, or their size in bytes.")
@click.option("--block", type=SIZE, help="Bytes that were shuffled together; 64KiB if not given.")
@click.option("--offset", type=SIZE, help="Where the numbers begin; 0 if not given.")
@click.option("-f", "--force", is_flag=True, help="Replace the output if it exists.")
def command(
    file: str, output: str, like: str | None, dtype: str | None, block: int | None, offset: int | None, force: bool
) -> None:
    """Restore the bytes that `zstd -d` gives of an image packed with --dtype: FILE, or standard input.

    Such an image keeps its numbers' bytes shuffled. The package puts them back by itself; this does it for what another
    zstd made of the image. `userfault inspect` prints the command for an image. Memory is bounded: it streams.
    """
    if output == "-" and wants_json():
        raise click.UsageError("--json and the bytes cannot both go to standard output: give -o")
    shuffle, length = _shuffle_of(like, dtype, block, offset)
    written = _unshuffle(file, output, shuffle, length, force)
    if wants_json():
        fields = {"item_bytes": shuffle.item_bytes, "block_bytes": shuffle.block_bytes, "offset": shuffle.offset}
        emit_json({"input": file, "output": output, "bytes": written, **fields})
    elif output != "-":
        say(f"{output}: {written} bytes")


def _shuffle_of(like: str | None, dtype: str | None, block: int | None, offset: int | None) -> tuple[Shuffle, int | None]:
    from userfault.image import Shuffle, inspect
    from userfault.image.shuffling import BLOCK_BYTES, item_bytes_of

    if like is not None:
        if (dtype, block, offset) != (None, None, None):
            raise click.UsageError("--like says all that --dtype, --block and --offset could")
        info = inspect(like)
        if info.shuffle is None:
            raise Failure(f"{like}: its bytes are not shuffled", hint="what zstd -d gives of it is what was packed")
        return info.shuffle, info.decoded_bytes
    if dtype is None:
        raise click.UsageError("how was it shuffled? Give --like IMAGE, or what `userfault inspect IMAGE` says")
    try:
        shuffle = Shuffle(item_bytes_of(dtype), BLOCK_BYTES if block is None else block, offset or 0)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return shuffle, None


def _unshuffle(file: str, output: str, shuffle: Shuffle, length: int | None, force: bool) -> int:
    from userfault.image import unshuffle
    from userfault.image.writing import whole_file

    source = sys.stdin.buffer if file == "-" else file
    with contextlib.ExitStack() as stack:
        try:
            target = stdout_for("this") if output == "-" else stack.enter_context(whole_file(output, overwrite=force))
        except FileExistsError as error:
            raise Failure(f"{os.fspath(error.filename)} exists", hint="--force replaces it") from None
        return unshuffle(source, target, shuffle, length=length)
