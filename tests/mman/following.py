"""For children of the tests of fork="follow": memory that follows, a server for it, and how processes end."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
import warnings

from support.lazy import raised

from userfault import mman

__all__ = [
    "PAGE",
    "PR_SET_CHILD_SUBREAPER",
    "Followed",
    "content",
    "ending",
    "engine_descriptors",
    "eventually",
    "fork_and",
    "mman",
    "prctl",
    "raised",
    "state_of",
]

warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads: the engine's

PAGE = mman.PAGE_SIZE
PR_SET_CHILD_SUBREAPER = 36
prctl = ctypes.CDLL(None).prctl


def content(page: int) -> bytes:
    """What the server gives: no zeros, and no two pages alike in a row."""
    return bytes([page % 251 + 1]) * PAGE


class Followed:
    """Private memory of some pages, flagged with fork="follow" and registered; page 1 is there already."""

    def __init__(self, pages=64, timeout="10s"):
        self.memory, self.pages = mman.anonymous(pages * PAGE), pages
        mman.madvise(self.memory, mman.MADV_USERFAULT, fork="follow")
        self.descriptor = mman.userfaultfd(timeout=timeout)
        self.descriptor.register(self.memory)
        self.base = mman.address_of(self.memory)
        staging = mman.anonymous(PAGE)
        staging[:] = b"\xee" * PAGE
        mman.remap_anon_pages(self.base + PAGE, staging, PAGE)

    def serve(self, forks=1):
        """Serve the next forks, each in a thread of its own, which are given."""
        threads = [threading.Thread(target=self.serve_one, daemon=True) for _ in range(forks)]
        for thread in threads:
            thread.start()
        return threads

    def serve_one(self):
        forked = self.descriptor.accept_fork("20s")
        try:
            while True:
                address = forked.read_fault()
                forked.fill(address, content((address - self.base) // PAGE))
        except ProcessLookupError:
            pass

    def check(self):
        """In the child: every byte of every page is right; ends the process."""
        for page in range(self.pages):
            want = b"\xee" * PAGE if page == 1 else content(page)
            if self.memory[page * PAGE : (page + 1) * PAGE] != want:
                os._exit(100)
        os._exit(0)

    def touch(self, page=5):
        """In the child: touch one page and end with its first byte as the status, so 0 for zeros."""
        os._exit(ctypes.string_at(self.base + page * PAGE, 1)[0])


def fork_and(work):
    """Fork; the child does `work` and never comes back. Answers its number."""
    process = os.fork()
    if process == 0:
        signal.alarm(20)
        try:
            work()
        finally:
            os._exit(99)
    return process


def ending(process):
    """Exit status, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def state_of(process):
    """The letter of /proc: "Z" once it has ended."""
    with open(f"/proc/{process}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def engine_descriptors():
    """How many descriptors the engine's table has."""
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/comm") as file:
            if file.read().strip() == "userfault-root":
                return len(os.listdir(f"/proc/self/task/{task}/fd"))
    raise AssertionError("no engine")


def eventually(true, seconds=5):
    """Wait until `true` is."""
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, "it did not come about"
        time.sleep(0.005)
