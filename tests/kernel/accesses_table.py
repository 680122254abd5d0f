"""The table of accesses to an absent page: how each ends under each kind of descriptor."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass

from kernel import accesses_calls as calls
from kernel.accesses_ground import PAGES, Ground, Lacking

KINDS = ("normal", "user_mode_only", "sigbus")

SERVED = "served"
"""It made a message, the page came, and the bytes were right."""
QUIET = "quiet"
"""It succeeded without a message, and the page is still absent."""
KILLED = "killed"
"""SIGBUS. Any other ending is the name of an errno: without a message, and the page is still absent."""


@dataclass(frozen=True)
class Access:
    """One row: what is called, and its ending for each of KINDS.

    Attributes:
        call: from accesses_calls.
        endings: in the order of KINDS.
        pages: how many come if it is served.
        first: what the first page begins with.
    """

    call: Callable[[Ground], None]
    endings: tuple[str, str, str] = (SERVED, "EFAULT", "EFAULT")
    pages: int = 1
    first: bytes = b""

    @property
    def name(self) -> str:
        return self.call.__name__

    def ending(self, kind: str) -> str:
        return self.endings[KINDS.index(kind)]


NOWHERE = ("EIO", "EIO", "EIO")
"""Accesses by which a debugger looks into a process: they never wait for a page."""
IN_USER_MODE = (SERVED, SERVED, KILLED)

TABLE = [
    Access(calls.load, IN_USER_MODE),
    Access(calls.store, IN_USER_MODE),
    Access(calls.write_file),
    Access(calls.write_pipe),
    Access(calls.write_null, (QUIET, QUIET, QUIET)),
    Access(calls.writev),
    Access(calls.send),
    Access(calls.vmsplice),
    Access(calls.read_file),
    Access(calls.readv),
    Access(calls.read_pipe),
    Access(calls.receive),
    Access(calls.getrandom),
    Access(calls.mincore_vector),
    Access(calls.ioctl_argument),
    Access(calls.direct_read),
    Access(calls.direct_write),
    Access(calls.sendfile_offset, first=calls.OFFSET),
    Access(calls.splice_offset, first=calls.OFFSET),
    Access(calls.path, first=calls.PATH),
    Access(calls.futex_shared, first=calls.WORD),
    Access(calls.futex_private, first=calls.WORD),
    Access(calls.mlock, (SERVED, "ENOMEM", "ENOMEM")),
    Access(calls.mlock_on_fault, (QUIET, QUIET, QUIET)),
    Access(calls.mlockall, (SERVED, QUIET, QUIET), pages=PAGES),
    Access(calls.populate_read, pages=PAGES),
    Access(calls.populate_write, pages=PAGES),
    Access(calls.process_vm_read),
    Access(calls.process_vm_read_into),
    Access(calls.process_vm_write),
    Access(calls.process_vm_read_by_another),
    Access(calls.memory_file_read, NOWHERE),
    Access(calls.memory_file_write, NOWHERE),
    Access(calls.peek, NOWHERE),
    Access(calls.poke, NOWHERE),
    Access(calls.uring_write),
    Access(calls.uring_read),
    Access(calls.uring_write_by_worker),
    Access(calls.uring_read_by_worker),
    Access(calls.uring_buffers, pages=PAGES),
    Access(calls.buffered_write, IN_USER_MODE),
    Access(calls.buffered_read, IN_USER_MODE),
    Access(calls.buffered_write_of_much),
    Access(calls.buffered_read_of_much),
]
BY_NAME = {access.name: access for access in TABLE}


@dataclass(frozen=True)
class Seen:
    """How an access ended: errno or "ok", how many messages there were, how many pages are present."""

    ending: str
    faults: int
    present: int
    lacking: str = ""


def expected(access: Access, kind: str) -> Seen:
    """What is to be seen of an access, unless it is KILLED."""
    ending = access.ending(kind)
    if ending == SERVED:
        return Seen("ok", access.pages, access.pages)
    return Seen("ok" if ending == QUIET else ending, 0, 0)


def seen(access: Access, ground: Ground) -> Seen:
    """Make the access."""
    try:
        access.call(ground)
        ending = "ok"
    except OSError as error:
        ending = errno.errorcode[error.errno or 0]
    return Seen(ending, ground.faults(), ground.present())


def report(name: str, kind: str) -> None:
    """What a child runs: make the access and print what was seen, as JSON."""
    access = BY_NAME[name]
    try:
        found = seen(access, Ground(kind, access.first))
    except Lacking as reason:
        found = Seen("", 0, 0, str(reason))
    print(json.dumps(asdict(found)), flush=True)
    os._exit(0)  # lazy memory may be in the hands of objects that would touch it once more
