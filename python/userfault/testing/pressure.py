"""Memory pressure on purpose: pages that are taken, and processes that may have only so much memory."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from userfault.errors import UnsupportedError
from userfault.region import Region
from userfault.units import parse_bytes

__all__ = ["MemoryGroup", "memory_group", "purge"]

_ROOT = Path("/sys/fs/cgroup")
_MADV_PAGEOUT = 21  # the mmap module has no name for it
_JOIN = "import os, sys; open(sys.argv[1], 'w').write('0'); os.execvp(sys.argv[2], sys.argv[2:])"


def purge(region: Region) -> None:
    """Have the kernel take every volatile page of a buffer now, as it would under memory pressure.

    Args:
        region: A VolatileBuffer.

    Raises:
        OSError: The kernel does not know MADV_PAGEOUT (5.4).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    length = -(-region.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as empty:
        nothing = ctypes.addressof(ctypes.c_char.from_buffer(empty))
        # Each CPU keeps the last few pages that went through its hands in a list of its own, where nobody else can take them or
        # mark them; the call empties it. Once before, and once for the pages that were not to be had.
        for address, size in ((nothing, mmap.PAGESIZE), (region.address, length), (nothing, mmap.PAGESIZE)):
            _on_each_cpu(partial(_page_out, libc, address, size))


def _page_out(libc: ctypes.CDLL, address: int, length: int) -> None:
    if libc.madvise(address, length, _MADV_PAGEOUT) != 0:
        raise OSError(ctypes.get_errno(), "madvise(MADV_PAGEOUT)")


def _on_each_cpu(call: Callable[[], None]) -> None:
    before = os.sched_getaffinity(0)
    try:
        for cpu in before:
            os.sched_setaffinity(0, {cpu})
            call()
    finally:
        os.sched_setaffinity(0, before)


class MemoryGroup:
    """A memory cgroup: what runs in it may have so much memory together, and no swap.

    Attributes:
        path: Its folder.
        version: Of the interface, 1 or 2.
    """

    def __init__(self, path: Path, version: int) -> None:
        self.path = path
        self.version = version

    def limit(self, size: int | str) -> None:
        """Set the limit.

        Args:
            size: Bytes, or a string such as "64MiB".
        """
        limit = str(parse_bytes(size))
        if self.version == 2:
            self._write("memory.max", limit)
            self._try_write("memory.swap.max", "0")
            return
        self._try_write("memory.memsw.limit_in_bytes", "-1")  # which may never be below the other
        self._write("memory.limit_in_bytes", limit)
        self._try_write("memory.memsw.limit_in_bytes", limit)

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a command in the group.

        Args:
            command: Program and arguments.
            **options: As `subprocess.run` takes them.

        Returns:
            How it ended; a returncode of -9 if the kernel killed it for want of memory.
        """
        return subprocess.run([sys.executable, "-c", _JOIN, str(self.path / "cgroup.procs"), *command], **options)

    def used(self) -> int:
        """How much memory the group uses.

        Returns:
            Bytes, the page cache of its files included.
        """
        return int((self.path / ("memory.usage_in_bytes" if self.version == 1 else "memory.current")).read_text())

    def kills(self) -> int:
        """How many processes of the group the kernel has killed for want of memory.

        Returns:
            Their number.
        """
        file = "memory.oom_control" if self.version == 1 else "memory.events"
        rows = (line.split() for line in (self.path / file).read_text().splitlines())
        return next((int(count) for name, count in rows if name == "oom_kill"), 0)

    def _try_write(self, name: str, text: str) -> None:
        with contextlib.suppress(OSError):  # kernels that do not account for swap
            self._write(name, text)

    def _write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)


@contextlib.contextmanager
def memory_group() -> Iterator[MemoryGroup]:
    """A memory cgroup for the length of a block; its processes must have ended by the end.

    Yields:
        The group, without a limit.

    Raises:
        UnsupportedError: No memory cgroups are to be had here: it needs root, and the controller.
    """
    name = f"userfault-{os.getpid()}-{time.monotonic_ns()}"
    group = _make(name)
    try:
        yield group
    finally:
        for _ in range(100):
            try:
                group.path.rmdir()
                break
            except OSError:  # the last process is still on its way out
                time.sleep(0.05)


def _make(name: str) -> MemoryGroup:
    why = "no memory controller is mounted in /sys/fs/cgroup"
    first = _ROOT / "memory" / name, 1, "memory.limit_in_bytes"
    second = _ROOT / name, 2, "memory.max"
    for path, version, control in (first, second):
        if not (path.parent / "cgroup.procs").exists():
            continue
        try:
            path.mkdir()
        except OSError as error:
            why = f"a memory cgroup cannot be made: {error}"
            continue
        if (path / control).exists():
            return MemoryGroup(path, version)
        path.rmdir()
        why = "the memory controller is not enabled for the children of the root cgroup (cgroup.subtree_control)"
    raise UnsupportedError(why)
