"""Files that both sides of a row read. Made once, kept beside the baselines; their names say what they are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from userfault import image

HUGE_PAGE = 2 << 20


def numbered_bytes(length: int) -> bytes:
    """The same bytes as `numbered_memory` of floor.h."""
    mixed = np.arange(length // 8, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed ^ (mixed >> np.uint64(32))).tobytes()


def noisy_wave(length: int) -> np.ndarray:
    """Measured numbers as they look: a wave of 32-bit integers, the low bits of which are noise."""
    places = np.arange(length // 4)
    noise = np.random.default_rng(1).integers(0, 16, places.size)
    return (np.sin(places / 500) * 1e4 + noise).astype(np.int32)


def made(folder: Path, name: str, count: int, bytes_each: int) -> Path:
    """The file `name` for `count` parts; written under another name first, so that it is whole or not there."""
    path = folder / f"{count}-{name}"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}")
    kind, length = name.split(".")[0].split("-")[0], count * bytes_each
    if kind == "numbered":
        new.write_bytes(numbered_bytes(length))
    elif kind == "wave":
        image.pack(memoryview(noisy_wave(length)).cast("B"), new, frame=bytes_each, level=1)
    else:
        image.pack(bytes(length), new)
    forget(new)
    new.rename(path)
    return path


def forget(path: Path) -> None:
    """Have the kernel drop what it keeps of a file. Written pages are kept one by one, those that were read in large pieces, as
    a user's file is; a read of the former takes twice as long."""
    with open(path, "rb") as file:
        os.fsync(file)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(path: str) -> None:
    """Read a file: the kernel may have dropped some of it."""
    with open(path, "rb", buffering=0) as file:
        room = bytearray(HUGE_PAGE)
        while file.readinto(room):
            pass
