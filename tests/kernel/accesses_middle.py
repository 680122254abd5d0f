"""Calls over three pages of which the middle one cannot be had: how much each does before it fails."""

from __future__ import annotations

import errno
import io
import json
import os
import socket
from collections.abc import Callable

from kernel import accesses_calls as calls
from kernel.accesses_ground import Ground, Lacking
from kernel.accesses_uring import OP_READ, OP_WRITE, Ring
from kernel.touching import PAGE

THREE = 3 * PAGE


def ground_with_a_gap(kind: str) -> Ground:
    """Pages but for the second; under a normal descriptor, which would bring it, that one is poisoned."""
    ground = Ground(kind, answered=False)
    for page in (0, 2, 3):
        ground.fd.copy(ground.address + page * PAGE, ground.held[page]).check()
    if kind == "normal":
        ground.fd.poison((ground.address + PAGE, PAGE)).check()
    return ground


def write_file(ground: Ground) -> int:
    file = calls.file_with(b"")
    done = file.write(ground.view(0, THREE))
    assert os.pread(file.fileno(), THREE, 0) == ground.held[0]
    return done


def write_pipe(ground: Ground) -> int:
    out, into = os.pipe()
    done = os.write(into, ground.view(0, THREE))
    assert os.read(out, THREE) == ground.held[0]
    return done


def write_from_the_middle(ground: Ground) -> int:
    return os.write(os.pipe()[1], ground.view(PAGE, THREE))


def write_null(ground: Ground) -> int:
    return os.write(os.open("/dev/null", os.O_WRONLY), ground.view(0, THREE))


def writev(ground: Ground) -> int:
    pages = [ground.view(at, at + PAGE) for at in range(0, THREE, PAGE)]
    return os.writev(calls.file_with(b"").fileno(), pages)


def read_file(ground: Ground) -> int:
    done = calls.file_with(b"n" * THREE).readinto(ground.view(0, THREE))
    assert ground.view() == b"n" * PAGE
    return done


def read_pipe(ground: Ground) -> int:
    """What was not taken stays in the pipe."""
    out, into = os.pipe()
    os.write(into, b"n" * THREE)
    done = os.readv(out, [ground.view(0, THREE)])
    assert len(os.read(out, THREE)) == THREE - done
    return done


def send(ground: Ground) -> int:
    """A socket takes one message's bytes or none."""
    here, there = socket.socketpair()
    there.setblocking(False)
    try:
        return here.send(ground.view(0, THREE))
    finally:
        try:
            raise AssertionError(f"{len(there.recv(THREE))} bytes were sent")
        except BlockingIOError:
            pass


def vmsplice(ground: Ground) -> int:
    return calls.call("vmsplice", os.pipe()[1], calls.vector(ground.address, THREE), 1, 0)


def getrandom(ground: Ground) -> int:
    return calls.system_call("getrandom", ground.address, THREE, 0)


def process_vm_read(ground: Ground) -> int:
    there = bytearray(THREE)
    local, remote = calls.vector(calls.address_of(there), THREE), calls.vector(ground.address, THREE)
    done = calls.call("process_vm_readv", os.getpid(), local, 1, remote, 1, 0)
    assert there == ground.held[0] + bytes(2 * PAGE)
    return done


def direct_write(ground: Ground) -> int:
    return os.pwrite(calls.direct(ground), ground.view(0, THREE), 0)


def direct_read(ground: Ground) -> int:
    file = calls.direct(ground)
    os.ftruncate(file, THREE)
    return os.preadv(file, [ground.view(0, THREE)], 0)


def uring_write(ground: Ground) -> int:
    return Ring().request(OP_WRITE, calls.file_with(b"").fileno(), ground.address, THREE)


def uring_read(ground: Ground) -> int:
    return Ring().request(OP_READ, calls.file_with(b"n" * THREE).fileno(), ground.address, THREE)


def buffered_write(ground: Ground) -> int | None:
    """Writes on after a short count, and so meets the bad page first."""
    return io.BufferedWriter(calls.file_with(b""), 512).write(ground.view(0, THREE))


def mlock(ground: Ground) -> int:
    return calls.call("mlock", ground.address, THREE)


def populate(ground: Ground) -> int:
    return calls.call("madvise", ground.address, THREE, calls.MADV_POPULATE_READ)


# What comes of it: bytes done, or the name of an errno.
ENDINGS: dict[Callable[[Ground], int | None], int | str] = {
    write_file: PAGE,
    write_pipe: PAGE,
    write_from_the_middle: "EFAULT",
    write_null: THREE,
    writev: PAGE,
    read_file: PAGE,
    read_pipe: PAGE,
    send: "EFAULT",
    vmsplice: PAGE,
    getrandom: PAGE,
    process_vm_read: PAGE,
    direct_write: "EFAULT",
    direct_read: "EFAULT",
    uring_write: PAGE,
    uring_read: PAGE,
    buffered_write: "EFAULT",
    mlock: "ENOMEM",
    populate: "EFAULT",
}


def expected(kind: str, lacking: set[str]) -> dict[str, int | str | None]:
    """The endings by name, without those that cannot be tried here."""
    found = {call.__name__: ending for call, ending in ENDINGS.items() if call.__name__ not in lacking}
    # Poison has an errno of its own where the caller asked for the pages themselves.
    return found | ({"populate": "EHWPOISON"} if kind == "normal" and "populate" in found else {})


def report(kind: str) -> None:
    """What a child runs: try all, print the endings and what could not be tried, as JSON."""
    found: dict[str, int | str | None] = {}
    lacking: dict[str, str] = {}
    for call in ENDINGS:
        try:
            found[call.__name__] = call(ground_with_a_gap(kind))
        except Lacking as reason:
            lacking[call.__name__] = str(reason)
        except OSError as error:
            found[call.__name__] = errno.errorcode.get(error.errno or 0) or {133: "EHWPOISON"}[error.errno or 0]
    print(json.dumps([found, lacking]), flush=True)
    os._exit(0)
