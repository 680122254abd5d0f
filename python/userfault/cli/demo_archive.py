"""The archive of `userfault demo`: a tar of files of this machine, whose first member says where the others lie."""

from __future__ import annotations

import os
import site
import sysconfig
import tarfile
from bisect import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

CONTENTS = "CONTENTS"
BLOCK = tarfile.BLOCKSIZE
LARGEST_FILE = 16 << 20
LINE = "{offset:012d} {length:012d} {name}\n"
Progress = Callable[[int, int | None], object]


@dataclass(frozen=True)
class Member:
    """A file of the archive: where its bytes lie, and where they come from."""

    name: str
    length: int
    path: str = ""
    offset: int = 0

    def line(self) -> bytes:
        """The member's line in CONTENTS."""
        return LINE.format(offset=self.offset, length=self.length, name=self.name).encode()

    def header(self) -> bytes:
        """The member's header in the tar."""
        info = tarfile.TarInfo(self.name)
        info.size = self.length
        info.mode = 0o644
        return info.tobuf(tarfile.GNU_FORMAT)


def build(path: Path, at_least: int, progress: Progress | None = None) -> int:
    """Write the archive, whole or not at all; return its length in bytes."""
    members = located(list(chosen_files(at_least)))
    unfinished = path.with_suffix(".part")
    written = 0
    with open(unfinished, "wb") as out:
        for member in members:
            written += append(out, member)
            if progress:
                progress(written, at_least)
        out.write(bytes(2 * BLOCK))
    os.replace(unfinished, path)
    return path.stat().st_size


def append(out: BinaryIO, member: Member) -> int:
    """Write one member: header, bytes, padding. A file that shrank meanwhile is filled up with zeros."""
    data = member.path.encode() if member.name == CONTENTS else read_file(member)
    padded = data + bytes(-len(data) % BLOCK)
    return out.write(member.header()) + out.write(padded)


def read_file(member: Member) -> bytes:
    """The bytes of a file, as many as it had when it was chosen."""
    try:
        with open(member.path, "rb") as file:
            return file.read(member.length).ljust(member.length, b"\0")
    except OSError:
        return bytes(member.length)


def located(files: list[Member]) -> list[Member]:
    """All members with their offsets, CONTENTS (whose text travels in place of a path) first."""
    length = sum(len(file.line()) for file in files)
    head = Member(CONTENTS, length)
    position = len(head.header()) + rounded(length)
    placed = []
    for file in files:
        offset = position + len(file.header())
        placed.append(Member(file.name, file.length, file.path, offset))
        position = offset + rounded(file.length)
    text = b"".join(file.line() for file in placed).decode()
    return [Member(CONTENTS, length, text, len(head.header())), *placed]


def rounded(length: int) -> int:
    """Length with the padding that tar wants."""
    return length + -length % BLOCK


def chosen_files(at_least: int) -> Iterator[Member]:
    """Ordinary files of the interpreter, its packages, then of the system, until there are enough bytes."""
    total, seen = 0, set()
    for folder in folders():
        for path in files_below(folder):
            state = path.stat()
            if (state.st_dev, state.st_ino) in seen or not 0 < state.st_size <= LARGEST_FILE:
                continue
            seen.add((state.st_dev, state.st_ino))
            yield Member(str(Path(folder.name, path.relative_to(folder))), state.st_size, str(path))
            total += rounded(state.st_size) + BLOCK
            if total >= at_least:
                return


def folders() -> list[Path]:
    """Where real bytes are, on any machine that runs us."""
    found = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), *site.getsitepackages()]
    return [Path(folder) for folder in dict.fromkeys([*found, "/usr/lib", "/usr/share", "/usr/bin"])]


def files_below(folder: Path) -> Iterator[Path]:
    """Readable ordinary files with plain names, in a fixed order."""
    for here, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if name != "__pycache__")
        for name in sorted(names):
            path = Path(here, name)
            if path.is_symlink() or not path.is_file() or not os.access(path, os.R_OK):
                continue
            if str(path).isascii() and str(path).isprintable():
                yield path


def read_contents(view: memoryview) -> list[str]:
    """The lines of the archive's first member, one for each other member, in the order of their places."""
    head = tarfile.TarInfo.frombuf(bytes(view[:BLOCK]), "ascii", "strict")
    if head.name != CONTENTS:
        raise ValueError("the archive does not begin with its contents")
    return bytes(view[BLOCK : BLOCK + head.size]).decode().splitlines()


def member_of(line: str) -> Member:
    """What a line of the contents says."""
    offset, length, name = line.split(" ", 2)
    return Member(name, int(length), "", int(offset))


def in_the_middle(lines: list[str], length: int) -> Member:
    """The first Python file after the middle of the archive that has something to say; else the file there."""
    middle = bisect(lines, f"{length // 2:012d}") % len(lines)
    members = map(member_of, lines[middle:])
    return next((one for one in members if one.name.endswith(".py") and one.length > 2048), member_of(lines[middle]))
