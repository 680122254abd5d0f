"""How each contender keeps the array in a file, and how it opens it.

A way is a class: `make` writes its file (once), `open` gives something that is indexed like an array. Whatever is not
possible here raises `ImportError` or `NotHere`, whose text is the reason in the tables.
"""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

COLUMNS = 8192
"""Of four bytes: a row has 32 KiB."""
RAW = "array.f4"
PATIENCE_SECONDS = 30.0


class NotHere(Exception):
    """The contender cannot run on this machine; says why."""


class Opened(NamedTuple):
    """An array that was opened."""

    array: Any
    close: Callable[[], object] = lambda: None
    helpers: tuple[int, ...] = ()
    """Processes that work for it; their memory counts."""


class Way:
    """Where the file is, and how large its pieces are.

    Args:
        folder: holds the raw array, and takes the file.
        chunk: bytes in a piece, 0 if there are none.
        options: of the contender, as its class says.
        raw: name of the raw array.
    """

    def __init__(self, folder: Path, chunk: int, options: dict[str, Any], raw: str = RAW) -> None:
        self.folder, self.chunk, self.options = folder, chunk, options
        self.raw = folder / raw
        self.shape = (self.raw.stat().st_size // (4 * COLUMNS), COLUMNS)

    @property
    def file(self) -> Path:
        """What `open` opens; those with the same name share it."""
        stored = {key: value for key, value in self.options.items() if key not in self.not_stored}
        words = [type(self).__name__, str(self.chunk), *(f"{key}-{value}" for key, value in sorted(stored.items()))]
        return self.folder / "".join(one if one.isalnum() else "-" for one in "-".join(words))

    not_stored: tuple[str, ...] = ()
    """Options that do not change the file."""

    def whole(self) -> Any:
        """The array in memory, to be stored."""
        return np.fromfile(self.raw, "f4").reshape(self.shape)

    @property
    def piece(self) -> tuple[int, int]:
        """Shape of a piece: whole rows, or a square with the option `tiles`."""
        if self.options.get("tiles"):
            side = int((self.chunk // 4) ** 0.5)
            return side, side
        return self.chunk // (4 * COLUMNS), COLUMNS

    def make(self) -> None:
        """Write the file."""

    def open(self) -> Opened:
        """Open it."""
        raise NotImplementedError


class RawFile(Way):
    """The raw bytes themselves."""

    @property
    def file(self) -> Path:
        return self.raw


class Memmap(RawFile):
    """np.memmap."""

    def open(self) -> Opened:
        return Opened(np.memmap(self.raw, "f4", "r", shape=self.shape))


class RandomMmap(RawFile):
    """Mmap and MADV_RANDOM: no reading ahead, no neighbours."""

    def open(self) -> Opened:
        with open(self.raw, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        mapped.madvise(mmap.MADV_RANDOM)
        return Opened(np.frombuffer(mapped, "f4").reshape(self.shape))


class Region(Way):
    """userfault. Options: those of `userfault.map`, and pack: further options of `userfault.image.pack`."""

    not_stored = ("delivery", "huge", "raw")

    @property
    def file(self) -> Path:
        return self.raw if self.options.get("raw") else super().file

    def make(self) -> None:
        if self.options.get("raw"):
            return
        import_module("userfault.image").pack(self.raw, self.file, frame=self.chunk, level=1, **self.options.get("pack", {}))

    def open(self) -> Opened:
        options = {key: value for key, value in self.options.items() if key not in ("raw", "pack")}
        region = import_module("userfault").map(self.file, unit=self.chunk, **options)
        return Opened(region.numpy("f4", self.shape))


class Handler(Way):
    """A fault handler as one writes it with ctypes, in a process of its own. Option: raw."""

    @property
    def file(self) -> Path:
        return self.raw if self.options.get("raw") else self.folder / f"Region-{self.chunk}"

    def make(self) -> None:
        if not self.options.get("raw"):
            Region(self.folder, self.chunk, {}).make()
        self.open().close()

    def open(self) -> Opened:
        handler = import_module("handler")
        source = handler.raw_file(self.file) if self.options.get("raw") else handler.seekable_file(self.file)
        memory, pid, close = handler.serve(self.raw.stat().st_size, self.chunk, source)
        return Opened(np.frombuffer(memory, "f4").reshape(self.shape), close, (pid,))


class Zarr(Way):
    """Zarr 3. Options: codec "zstd" or "lz4" (blosc, with shuffle), tiles."""

    def make(self) -> None:
        zarr = import_module("zarr")
        codecs = import_module("zarr.codecs")
        if self.options["codec"] == "zstd":
            codec = codecs.ZstdCodec(level=1)
        else:
            codec = codecs.BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=4)
        stored = zarr.create_array(
            store=str(self.file), shape=self.shape, chunks=self.piece, dtype="f4", compressors=[codec], overwrite=True
        )
        stored[:] = self.whole()

    def open(self) -> Opened:
        return Opened(import_module("zarr").open_array(str(self.file), mode="r"))


class Hdf5(Way):
    """h5py with gzip and shuffle, and a cache that holds a few pieces. Option: tiles."""

    def make(self) -> None:
        with import_module("h5py").File(self.file, "w", libver="latest") as file:
            settings = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
            file.create_dataset("array", data=self.whole(), chunks=self.piece, **settings)

    def open(self) -> Opened:
        file = import_module("h5py").File(self.file, "r", rdcc_nbytes=max(1 << 20, 4 * self.chunk))
        return Opened(file["array"], file.close)


class Blosc2(Way):
    """blosc2 with shuffle; it chooses the blocks within a piece. Options: codec, tiles."""

    def make(self) -> None:
        blosc2 = import_module("blosc2")
        settings = {
            "codec": blosc2.Codec[self.options["codec"].upper()],
            "clevel": {"zstd": 1, "lz4": 5}[self.options["codec"]],
            "filters": [blosc2.Filter.SHUFFLE],
        }
        blosc2.asarray(self.whole(), chunks=self.piece, urlpath=str(self.file), mode="w", cparams=settings)

    def open(self) -> Opened:
        return Opened(import_module("blosc2").open(str(self.file), mode="r"))


class Eager(Way):
    """Decompress all of it first: one zstd frame, into memory."""

    def make(self) -> None:
        compressor = import_module("zstandard").ZstdCompressor(level=1)
        self.file.write_bytes(compressor.compress(self.raw.read_bytes()))

    def open(self) -> Opened:
        decompressor = import_module("zstandard").ZstdDecompressor()
        array = np.empty(self.shape, "f4")
        view = array.reshape(-1).view("u1").data
        done = 0
        with open(self.file, "rb") as file, decompressor.stream_reader(file) as reader:
            while done < len(view):
                count = reader.readinto(view[done:])
                if not count:
                    raise EOFError(f"{self.file.name} ends after {done} bytes")
                done += count
        return Opened(array)


class Fuse(Way):
    """ratarmount of a .tar.zst with pieces, and np.memmap of the file in it; the mount belongs to opening."""

    @property
    def file(self) -> Path:
        return self.folder / f"archive-{self.chunk}.tar.zst"

    def make(self) -> None:
        import_module("ratarmount")
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            raise NotHere("/dev/fuse is missing or not permitted")
        if not shutil.which(unmounter()):
            raise NotHere("fusermount is missing: apt-get install fuse3")
        tarfile = import_module("tarfile")
        plain = self.folder / f"archive-{self.chunk}.tar"
        with tarfile.open(plain, "w") as archive:
            archive.add(self.raw, RAW)
        import_module("userfault.image").pack(plain, self.file, frame=self.chunk, level=1)
        plain.unlink()
        self.open().close()  # writes the index beside the archive, and tells whether it can be mounted

    def open(self) -> Opened:
        place = self.folder / f"mount-{os.getpid()}"
        place.mkdir()
        index = self.folder / f"index-{self.chunk}.sqlite"
        command = [sys.executable, "-m", "ratarmount", "-f", "--index-file", str(index), str(self.file), str(place)]
        with open(self.folder / "ratarmount.log", "wb") as log:
            server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not os.path.ismount(place):
            if server.poll() is not None or time.monotonic() > deadline:
                server.kill()
                server.wait()
                place.rmdir()
                raise NotHere(f"ratarmount does not mount: {last_line(self.folder / 'ratarmount.log')}")
            time.sleep(0.001)

        def close() -> None:
            subprocess.run([unmounter(), "-u", "-z", str(place)], check=True)
            server.kill()  # it would wait until nobody maps its file
            server.wait()
            place.rmdir()

        return Opened(np.memmap(place / RAW, "f4", "r", shape=self.shape), close, (server.pid,))


def unmounter() -> str:
    """The program that unmounts, if it is there."""
    return "fusermount3" if shutil.which("fusermount3") else "fusermount"


def last_line(path: Path) -> str:
    """What a program said last."""
    return ([line for line in path.read_text(errors="replace").splitlines() if line.strip()] or ["it says nothing"])[-1]


WAYS: dict[str, type[Way]] = {
    "memmap": Memmap,
    "random-mmap": RandomMmap,
    "region": Region,
    "handler": Handler,
    "zarr": Zarr,
    "h5py": Hdf5,
    "blosc2": Blosc2,
    "eager": Eager,
    "fuse": Fuse,
}
