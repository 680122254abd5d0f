"""Seekable zstd, read and written by hand: a second opinion on the images that the package makes."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

TABLE_MAGIC = 0x184D2A5E
FOOTER_MAGIC = 0x8F92EAB1


@dataclass(frozen=True)
class Entry:
    """One entry of a seek table."""

    compressed: int
    decoded: int
    checksum: int | None


def read_table(image: bytes) -> list[Entry]:
    """The entries of a well-formed image."""
    frames, descriptor, magic = struct.unpack("<IBI", image[-9:])
    assert magic == FOOTER_MAGIC
    form = struct.Struct("<III" if descriptor & 0x80 else "<II")
    start = len(image) - 9 - frames * form.size
    assert struct.unpack("<II", image[start - 8 : start]) == (TABLE_MAGIC, frames * form.size + 9)
    entries = [Entry(*fields, *[None] * (3 - len(fields))) for fields in form.iter_unpack(image[start:-9])]
    assert sum(entry.compressed for entry in entries) == start - 8
    return entries


def write_table(entries: list[tuple[int, int]], *, frames: int | None = None, descriptor: int = 0) -> bytes:
    """A seek table without checksums, lies included."""
    body = b"".join(struct.pack("<II", *entry) for entry in entries)
    footer = struct.pack("<IBI", len(entries) if frames is None else frames, descriptor, FOOTER_MAGIC)
    return struct.pack("<II", TABLE_MAGIC, len(body) + 9) + body + footer


def sample(seed: int, size: int) -> bytes:
    """Bytes with stretches of zeros, of text and of noise."""
    numbers = random.Random(seed)
    parts = bytearray()
    while len(parts) < size:
        length = numbers.choice([100, 4096, 70_000, 200_000])
        parts += numbers.choice([bytes(length), b"a page of words " * (length // 16), numbers.randbytes(length)])
    return bytes(parts[:size])
