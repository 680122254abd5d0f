"""Who is compared, what is asked, and when each would be the right choice.

A new contender is one line of `CONTENDERS`; a new kind of file is a class of `child.ways`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from userfault.units import format_bytes

KIB64, MIB2 = 64 << 10, 2 << 20

ADVICE = {
    "userfault": "",
    "kernel": "use np.memmap or mmap for a local file that may be stored uncompressed",
    "handler": "a handler of your own may do, if no source fails, the handler never dies, and nobody forks",
    "fuse": "mount the archive where other programs have to see files",
    "zarr": "use zarr where all code may call its interface, and for pieces cut along more than one dimension",
    "h5py": "use HDF5 where all code may call its interface, or others expect that format",
    "blosc2": "use blosc2 where all code may call its interface: it decompresses only the block that is asked for",
    "eager": "decompress everything first if you need most of it, can wait, and it fits into memory",
}
"""Family -> what to do if it wins."""


@dataclass(frozen=True)
class Contender:
    """One way to have the array.

    Attributes:
        title: for people.
        family: a key of `ADVICE`.
        way: a key of `child.ways.WAYS`.
        chunk: bytes that come together, 0 if nothing is cut.
        options: of the way.
    """

    title: str
    family: str
    way: str
    chunk: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def raw(self) -> bool:
        """Whether its file is not compressed."""
        return self.family == "kernel" or bool(self.options.get("raw"))

    @property
    def group(self) -> str:
        """Those of a group have the same bytes in the same pieces."""
        return "raw" if self.raw else str(self.chunk)

    @property
    def name(self) -> str:
        """Distinct from all others."""
        return f"{self.title}, {format_bytes(self.chunk)}" if self.chunk else self.title


GROUPS = {
    "raw": "the raw file, in the page cache",
    str(KIB64): "compressed, pieces of 64 KiB",
    str(MIB2): "compressed, pieces of 2 MiB",
    "0": "compressed, in one piece",
}


def both(title: str, family: str, way: str, **options: Any) -> tuple[Contender, Contender]:
    """The same with small pieces and with large ones."""
    return Contender(title, family, way, KIB64, options), Contender(title, family, way, MIB2, options)


CONTENDERS: tuple[Contender, ...] = (
    Contender("np.memmap", "kernel", "memmap"),
    Contender("mmap, MADV_RANDOM", "kernel", "random-mmap"),
    Contender("userfault, thread", "userfault", "region", KIB64, {"raw": True}),
    Contender("userfault, signal", "userfault", "region", KIB64, {"raw": True, "delivery": "signal"}),
    Contender("ctypes handler process", "handler", "handler", 4096, {"raw": True}),
    Contender("ctypes handler process", "handler", "handler", KIB64, {"raw": True}),
    # Ours on images. Options that `userfault.image.pack` takes go into pack={...}: another filter is another line.
    *both("userfault zstd, thread", "userfault", "region"),
    *both("userfault zstd, signal", "userfault", "region", delivery="signal"),
    Contender("userfault zstd, huge pages", "userfault", "region", MIB2, {"huge": True}),
    *both("ctypes handler process, zstd", "handler", "handler"),
    *both("ratarmount + np.memmap", "fuse", "fuse"),
    *both("zarr 3 zstd", "zarr", "zarr", codec="zstd"),
    *both("zarr 3 blosc lz4", "zarr", "zarr", codec="lz4"),
    Contender("zarr 3 blosc lz4, square pieces", "zarr", "zarr", KIB64, {"codec": "lz4", "tiles": True}),
    *both("h5py gzip", "h5py", "h5py"),
    Contender("h5py gzip, square pieces", "h5py", "h5py", KIB64, {"tiles": True}),
    *both("blosc2 zstd", "blosc2", "blosc2", codec="zstd"),
    *both("blosc2 lz4", "blosc2", "blosc2", codec="lz4"),
    Contender("blosc2 lz4, square pieces", "blosc2", "blosc2", KIB64, {"codec": "lz4", "tiles": True}),
    Contender("eager zstd", "eager", "eager"),
)

FAULTING: tuple[Contender, ...] = (
    Contender("mmap, MADV_RANDOM", "kernel", "random-mmap"),
    Contender("userfault, signal", "userfault", "region", 4096, {"raw": True, "delivery": "signal"}),
    Contender("userfault, thread", "userfault", "region", 4096, {"raw": True}),
    Contender("ctypes handler process", "handler", "handler", 4096, {"raw": True}),
)
"""Whose single faults are measured over spans and threads."""

SPANS = (64 << 20, 512 << 20, 2 << 30, 8 << 30)
THREADS = (1, 2, 3, 4)


def chosen(group: tuple[Contender, ...], only: Sequence[str]) -> list[Contender]:
    """Those whose names contain one of some texts; all without."""
    return [one for one in group if not only or any(text in one.name for text in only)]


@dataclass(frozen=True)
class Measure:
    """What is asked. Less is better.

    Attributes:
        key: in the data.
        title: for people.
        run: which run of `child.measure` measures it.
        unit: "seconds" or "bytes".
        about: what exactly.
    """

    key: str
    title: str
    run: str
    unit: str
    about: str


MEASURES: tuple[Measure, ...] = (
    Measure("element", "random element", "elements", "seconds", "one element where nothing was read yet; opening not counted"),
    Measure("again", "the same again", "elements", "seconds", "the same elements a third time"),
    Measure("column", "strided column", "column", "seconds", "one element of each row of 32 KiB, and their sum"),
    Measure("scan", "full scan", "scan", "seconds", "all of it in blocks of 8 MiB, and the sum"),
    Measure("first", "first answer", "first", "seconds", "from the start of a process to its first right value"),
    Measure(
        "peak_first", "peak memory, first answer", "first", "bytes", "of all processes concerned, mapped file pages included"
    ),
    Measure("peak_scan", "peak memory, full scan", "scan", "bytes", "of all processes concerned, mapped file pages included"),
    Measure("stored", "size stored", "make", "bytes", "of the file, or of the folder of files"),
)
