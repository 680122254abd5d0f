"""Chunks of sources kept in a directory, bounded in bytes, for any number of processes at a time.

A chunk is a file that is complete or not there: it is written under another name and renamed. It begins with a checksum of
its name and bytes, and one that does not match is deleted and fetched again. A lock file is held while a file is made, at its
full length, and its bytes are added to the count that all processes share, and while the files that were not used for longest
are deleted; whoever does not get it in time goes on without keeping his chunk. So whoever lists the directory finds what others
are about to write. A process that dies in between leaves a count that is too high, never too low, and that only brings the next
look at the directory forward.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from userfault.sources.chunks import Chunk

__all__ = ["DiskChunks"]

_MAGIC = b"ufchunk1"
_SUM_BYTES = 16
_HEAD_BYTES = len(_MAGIC) + _SUM_BYTES
#: What is left when chunks had to be deleted: room for the next ones, or every one of them would list the directory.
_KEEP = 0.9
#: An unfinished file as old as this was left by a process that died.
_STALE_SECONDS = 600.0
_LOCK_PATIENCE = 0.5
#: After the lock was not to be had: so long nothing is kept, for whoever holds it may be stopped.
_LOCK_PAUSE = 5.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskChunks:
    """The cache in one directory.

    Args:
        directory: Made if it is not there, for this user alone.
        limit: Bytes that the files take at most, all processes together.

    Raises:
        OSError: The directory cannot be made or written, for another reason than a disk that is full.

    Attributes:
        corrupt: Chunks that did not match their checksum.
    """

    def __init__(self, directory: str | os.PathLike[str], limit: int) -> None:
        self.directory = os.fspath(directory)
        self.limit = limit
        self.corrupt = 0
        self._paused_until = 0.0
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            with self._alone() as is_locked:
                if is_locked:
                    self._count(0)
        except OSError as error:
            if error.errno not in _FULL:
                raise

    def get(self, name: str, length: int) -> memoryview | None:
        """A chunk, if it is there and whole.

        Args:
            name: Which.
            length: Bytes that it must have.

        Returns:
            The bytes, or None.
        """
        path = self._path(name)
        try:
            with open(path, "rb") as file:
                found = file.read()
        except OSError as error:
            _raise_if_sent(error)
            return None
        body = memoryview(found)[_HEAD_BYTES:]
        if len(body) != length or found[:_HEAD_BYTES] != _MAGIC + _sum(name, body):
            self.corrupt += 1
            with _if_possible():
                os.unlink(path)
            return None
        with _if_possible():
            os.utime(path)  # used last
        return body

    def put(self, name: str, chunk: Chunk) -> None:
        """Keep a chunk. A disk that is full or broken is no error: then it is not kept.

        Args:
            name: Which.
            chunk: The bytes.
        """
        size = memoryview(chunk).nbytes + _HEAD_BYTES
        if size > self.limit or time.monotonic() < self._paused_until:
            return
        path = self._path(name)
        part = f"{path}.{os.getpid()}-{secrets.token_hex(4)}.part"
        try:
            with self._alone() as is_locked:
                if not is_locked:
                    self._paused_until = time.monotonic() + _LOCK_PAUSE
                    return
                self._count(size)  # before the file is there: a process that dies has counted too much
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(part, "xb") as file:
                    file.truncate(size)
            with open(part, "r+b") as file:
                file.write(_MAGIC + _sum(name, chunk))
                file.write(chunk)
            os.replace(part, path)
        except BaseException as error:
            with suppress(OSError):
                os.unlink(part)
            if not isinstance(error, OSError):
                raise
            _raise_if_sent(error)

    def _path(self, name: str) -> str:
        digest = hashlib.sha256(_bytes(name)).hexdigest()
        return os.path.join(self.directory, digest[:2], f"{digest}.chunk")

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Hold the lock file; False where another process does not let go of it."""
        # A file object: where an exception from outside ends what closes it, it closes itself, and lets go of the lock.
        with open(os.path.join(self.directory, "lock"), "ab", buffering=0, opener=_private) as file:
            try:
                yield _locked(file.fileno())
            finally:
                with _if_possible():
                    fcntl.flock(file, fcntl.LOCK_UN)  # a child forked meanwhile has the descriptor, too

    def _count(self, more: int) -> None:
        """Under the lock: add to the bytes that are kept, after making room."""
        path = os.path.join(self.directory, "size")
        try:
            with open(path, "rb") as file:
                size = int(file.read())
        except (OSError, ValueError) as error:
            _raise_if_sent(error)
            size = self.limit + 1  # unknown: look
        if size + more > self.limit:
            size = self._make_room(more)
        with open(path, "wb") as file:
            file.write(b"%d" % (size + more))

    def _make_room(self, more: int) -> int:
        """Delete what was not used for longest; the bytes that are left."""
        files = sorted(self._files())
        size = sum(length for _, length, _ in files)
        if size + more <= self.limit:
            return size
        for _, length, path in files:
            if size + more <= self.limit * _KEEP:
                break
            with _if_possible():
                os.unlink(path)
                size -= length
        return size

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """When each was used last, its bytes and path; files that nobody finishes any more are deleted."""
        stale = time.time() - _STALE_SECONDS
        for folder in _entries(self.directory):
            if not folder.is_dir(follow_symlinks=False):
                continue
            for entry in _entries(folder.path):
                with _if_possible():  # deleted meanwhile
                    about = entry.stat(follow_symlinks=False)
                    if entry.name.endswith(".part") and about.st_mtime < stale:
                        os.unlink(entry.path)
                    else:
                        yield about.st_mtime, about.st_size, entry.path


def _entries(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError as error:
        _raise_if_sent(error)
        return []


def _raise_if_sent(error: Exception) -> None:
    """Not the system's: the TimeoutError that `map(timeout=...)` sends into a read, which has no errno, is no broken disk."""
    if isinstance(error, TimeoutError) and error.errno is None:
        raise error


@contextmanager
def _if_possible() -> Iterator[None]:
    """What the system refuses inside is left undone."""
    try:
        yield
    except OSError as error:
        _raise_if_sent(error)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _locked(descriptor: int) -> bool:
    """Try for a while: a stopped process may hold it for ever."""
    until = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.001)


def _bytes(name: str) -> bytes:
    """Of any name: one that was made of a path may have no UTF-8 form."""
    return name.encode("utf-8", "surrogatepass")


def _sum(name: str, chunk: Chunk) -> bytes:
    digest = hashlib.blake2b(_bytes(name), digest_size=_SUM_BYTES)
    digest.update(chunk)
    return digest.digest()
