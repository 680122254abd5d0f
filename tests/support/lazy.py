"""What children that touch lazy memory share: known bytes, the law of endings, looks at the process itself."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable

import numpy as np

import userfault as uf

PAGE = os.sysconf("SC_PAGE_SIZE")
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def known_bytes(length: int, seed: int = 0) -> np.ndarray:
    """Bytes without a single zero, so that a page of zeros is always seen; the same for the same seed."""
    return np.random.default_rng(seed).integers(1, 256, length, dtype=np.uint8)


def mixed_bytes(length: int, seed: int = 0) -> np.ndarray:
    """Known bytes with runs of zero pages in between: what an image stores and what it leaves out."""
    bytes_ = known_bytes(length, seed)
    bytes_[length // 4 : length // 2] = 0
    return bytes_


def check_endings(region: uf.Region, within: float = 5.0) -> uf.Statistics:
    """The law of endings: once quiet, every fault has one ending and none is in flight."""
    limit = time.monotonic() + within
    while (found := region.statistics()).in_flight and time.monotonic() < limit:
        time.sleep(0.01)
    endings = found.resolved + found.coalesced + found.poisoned + found.torn_down + found.requeued
    assert found.in_flight == 0, found
    assert found.faults == endings, found
    return found


def in_threads(*works: Callable[[], object], seconds: float = 30) -> None:
    """Run every callable in a thread of its own; the first failure is raised here, and a thread that hangs is one."""
    failures: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    limit = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, limit - time.monotonic()))
        assert not thread.is_alive(), "a thread hangs"
    if failures:
        raise failures[0]


def raised(kind: type[BaseException], call: Callable[[], object]) -> BaseException:
    """The exception of this kind that `call` raises; it is an error if it does not."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{call} raised no {kind.__name__}")


def touched(touch: Callable[[], object]) -> uf.PageError:
    """The PageError of a touch: it is raised at the next chance, which a loop has."""

    def then_loop() -> None:
        touch()
        for _ in range(10):
            pass

    error = raised(uf.PageError, then_loop)
    assert isinstance(error, uf.PageError)
    return error


def killed_by(status: int) -> int | None:
    """The signal that ended a process, from its wait status; None where it exited."""
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else None


def maps() -> list[tuple[int, int, str]]:
    """Start, end and rights of every mapping of this process."""
    with open("/proc/self/maps") as file:
        rows = [line.split()[:2] for line in file]
    return [(*(int(part, 16) for part in where.split("-")), rights) for where, rights in rows]


def open_descriptors() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd")) - 1


def threads_alive() -> int:
    """How many threads this process has, the engine's too."""
    return len(os.listdir("/proc/self/task"))


def resident_bytes() -> int:
    """Resident set size."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


def cpu_seconds() -> float:
    """User and system time of this process so far."""
    now = os.times()
    return now.user + now.system
