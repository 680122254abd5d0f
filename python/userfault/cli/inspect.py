"""``userfault inspect IMAGE``: show what an image holds."""

from __future__ import annotations

import dataclasses

import click

from userfault.cli.common import emit, emit_json, verb, wants_json
from userfault.image import FrameInfo, ImageInfo, frames, inspect
from userfault.units import format_bytes


@verb("inspect", example="userfault inspect weights.img")
@click.argument("image", type=click.Path())
@click.option("--frames", "each_frame", is_flag=True, help="List every frame too.")
def command(image: str, each_frame: bool) -> None:
    """Show what IMAGE holds. Nothing is decompressed; `userfault verify` does that."""
    info = inspect(image)
    if wants_json():
        listed = {"frame_list": [dataclasses.asdict(frame) for frame in frames(image)]} if each_frame else {}
        emit_json({**dataclasses.asdict(info), **listed})
        return
    emit(_describe(info))
    if each_frame:
        emit("\nframe\toffset\tcompressed\tdecoded offset\tdecoded\tchecksum\tkind")
        for frame in frames(image):
            emit(_row(frame))


def _describe(info: ImageInfo) -> str:
    rows = [
        ("image", info.path),
        ("holds", f"{_size(info.decoded_bytes)}"),
        ("takes", f"{_size(info.file_bytes)}, {info.ratio:.2f} times smaller"),
        ("frames", f"{info.frames}"),
        ("frame size", _frame_size(info)),
        ("zeros", f"{_size(info.zero_bytes)} in {info.zero_frames} frames"),
        ("checksums", "each frame has one" if info.checksums else "none: damage may go unnoticed"),
    ]
    if info.shuffle:
        one = info.shuffle
        where = f"from byte {one.offset} on, in blocks of {_size(one.block_bytes)}"
        rows.append(("shuffled", f"items of {one.item_bytes} bytes {where}"))
        rows.append(("restore", one.command(info.path)))
    return "\n".join(f"{name + ':':<12}{value}" for name, value in rows)


def _frame_size(info: ImageInfo) -> str:
    if info.frame_bytes:
        return _size(info.frame_bytes)
    return f"not the same everywhere, {_size(info.largest_frame_bytes)} at most" if info.frames else "no frames"


def _size(size: int) -> str:
    return f"{size} bytes ({format_bytes(size)})" if size >= 1024 else f"{size} bytes"


def _row(frame: FrameInfo) -> str:
    checksum = "-" if frame.checksum is None else f"{frame.checksum:08x}"
    kind = "zeros" if frame.zero else "data" if frame.decoded_bytes else "skipped"
    numbers = (frame.number, frame.offset, frame.compressed_bytes, frame.decoded_offset, frame.decoded_bytes)
    return "\t".join([*map(str, numbers), checksum, kind])
