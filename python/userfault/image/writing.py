"""Where an image goes: a file that appears whole or not at all, and the order of what is written to it."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import secrets
import stat
from collections.abc import Iterator
from typing import Protocol

from userfault import _core

LONGEST_ZEROS = 64 << 20
"""A frame of zeros holds at most this many bytes: its compressed bytes are read to recognise it."""

_zero_frame = functools.lru_cache(maxsize=64)(_core.zero_frame)


class Writable(Protocol):
    """Anything with a binary ``write``."""

    def write(self, data: bytes | memoryview, /) -> int | None:
        """Take some of `data`, and say how much; None means all of it."""


class ImageWriter:
    """Writes frames in order, joins neighbouring zeros, and keeps the table until the end.

    Args:
        out: where it all goes, from its current position on.
        frame_bytes: runs of zeros are cut at multiples of this.
    """

    def __init__(self, out: Writable, frame_bytes: int) -> None:
        self.out = out
        self.zeros_per_frame = max(LONGEST_ZEROS // frame_bytes, 1) * frame_bytes
        self.entries = bytearray()
        self.pending_zeros = 0
        self.zero_bytes = 0
        self.file_bytes = 0

    @property
    def frames(self) -> int:
        """How many frames were written."""
        return len(self.entries) // _core.FRAME_ENTRY_BYTES

    def zeros(self, count: int) -> None:
        """Add zeros; they are written when something else follows."""
        self.pending_zeros += count
        self.zero_bytes += count

    def encoded(self, payload: bytes, entries: bytes) -> None:
        """Add compressed frames with their entries."""
        self._flush_zeros()
        self._write(payload, entries)

    def finish(self, filter: tuple[int, int, int] | None = None) -> None:
        """Write what is pending, and the table; `filter` is what was done to the bytes, as `Shuffle.numbers`."""
        self._flush_zeros()
        self._write(_core.seek_table(bytes(self.entries), filter), b"")

    def _flush_zeros(self) -> None:
        while self.pending_zeros:
            count = min(self.pending_zeros, self.zeros_per_frame)
            self._write(*_zero_frame(count))
            self.pending_zeros -= count

    def _write(self, payload: bytes, entries: bytes) -> None:
        write_all(self.out, payload)
        self.entries += entries
        self.file_bytes += len(payload)


def write_all(out: Writable, data: bytes) -> None:
    """Write all of `data`: a raw file may take less than it is given."""
    left = memoryview(data)
    while left:
        written = out.write(left)
        left = left[written:] if written is not None else left[:0]


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Writable]:
    """A file to write to, which gets its name only when the block ends without an error.

    Until then it has no name at all where the filesystem permits that, so that even SIGKILL leaves nothing behind;
    elsewhere it has a hidden name beside the real one. A device or a pipe is written to directly.

    Raises:
        FileExistsError: there is such a file, and `overwrite` is false.
        OSError: the file cannot be made; the attribute `filename` says which.
    """
    target = os.path.realpath(path)
    if _is_special(target, overwrite):
        with open(target, "wb") as file:
            yield file
        return
    folder = os.path.dirname(target)
    descriptor, name = _open_nameless(folder, target)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            yield file
        os.fsync(descriptor)
        _publish(descriptor, name, target, overwrite)
    except BaseException:
        if name:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        raise
    finally:
        os.close(descriptor)
    _sync_folder(folder)


def _is_special(target: str, overwrite: bool) -> bool:
    """Neither absent nor a regular file? Raises where the name cannot be used at all."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
    if stat.S_ISREG(mode) and not overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    return not stat.S_ISREG(mode)


def _open_nameless(folder: str, target: str) -> tuple[int, str | None]:
    """A new file in the folder: (descriptor, its name if it has to have one)."""
    try:
        if os.path.isdir("/proc/self/fd"):
            return os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666), None
    except OSError as error:
        # EISDIR: a kernel or a filesystem that takes the flag for the folder itself.
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    name = _hidden_name(target)
    return os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666), name


def _hidden_name(target: str) -> str:
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{name[:200]}.{secrets.token_hex(4)}.partial")


def _publish(descriptor: int, name: str | None, target: str, overwrite: bool) -> None:
    if name is None and not overwrite:
        _link_descriptor(descriptor, target)
        return
    if name is None:
        # A link cannot replace a file, a rename can.
        name = _hidden_name(target)
        _link_descriptor(descriptor, name)
    try:
        if overwrite:
            os.replace(name, target)
        else:
            os.link(name, target)
            os.unlink(name)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _link_descriptor(descriptor: int, name: str) -> None:
    # The directory is there only to make Python call linkat with AT_SYMLINK_FOLLOW, without which the link in /proc
    # itself would be linked; an absolute path does not use it.
    os.link(f"/proc/self/fd/{descriptor}", name, src_dir_fd=descriptor, follow_symlinks=True)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some filesystems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
