"""The descriptor of 2014: `Userfaultfd2014`, and what /proc showed of it."""

from __future__ import annotations

import mmap
import os
import sys
from dataclasses import dataclass
from types import TracebackType

from userfault import _core
from userfault.mman.forked import ForkedUserfaultfd
from userfault.mman.late import TimedOut
from userfault.region import refresh_handlers
from userfault.units import parse_seconds

PROTOCOL = 0xAA
"""What the handshake of a descriptor asks for."""


def userfaultfd(
    flags: int = 0,
    *,
    handshake: bool = True,
    timeout: str | float | None = "30s",
    user_mode_only: bool = False,
) -> Userfaultfd2014:
    """Return a descriptor that hears of faults in flagged memory registered with it.

    Args:
        flags: 0, `os.O_CLOEXEC` (which it always is) or `os.O_NONBLOCK`, or both.
        handshake: Do it; False leaves it to the caller: write 8 bytes of protocol, read them back.
        timeout: A fault that is not answered for so long ends: `UserFault`; in a system call EFAULT, and a RuntimeWarning that
            says of what (`Userfaultfd2014.timed_out`). None: never, as in 2014; a fault inside a system call that keeps the GIL
            then stops the whole interpreter if its server is in Python.
        user_mode_only: Do without faults of system calls; every user may have that.

    Raises:
        OSError: EINVAL: other flags. EMFILE: no descriptors left.
        RefusedError: Faults of system calls are not permitted here; `.command` would change it.
    """
    if flags & ~(os.O_CLOEXEC | os.O_NONBLOCK):
        raise OSError(22, f"userfaultfd({flags:#x}): flags are os.O_CLOEXEC and os.O_NONBLOCK")
    seconds = None if timeout is None else parse_seconds(timeout, "timeout")
    refresh_handlers()
    nonblocking = bool(flags & os.O_NONBLOCK)
    opened = Userfaultfd2014(nonblocking=nonblocking, user_mode_only=user_mode_only, timeout_seconds=seconds)
    if handshake:
        opened.write(PROTOCOL.to_bytes(8, sys.byteorder))
        opened.read(8)
    return opened


@dataclass(frozen=True)
class FdInfo:
    """What /proc showed of a descriptor.

    Attributes:
        pending: Faults that nobody has read.
        total: Those, and those that were read and not woken.
        protocols: The one of the handshake.
        timeouts: Faults that ended because nobody answered in time.
    """

    pending: int
    total: int
    protocols: int
    timeouts: int


class Userfaultfd2014(_core.NativeUserfaultfd2014):
    """A descriptor as the proposal had it. Made by `userfaultfd`.

    Closing it never shows zeros: who waits, and who touches a hole later, gets SIGBUS. A Python thread may serve it: a thread
    that touches a hole while it holds the GIL is made to give it up. That happens in the middle of whatever C function touched
    the memory; a function that relies on the GIL for longer than that must find its pages there.
    """

    def __enter__(self) -> Userfaultfd2014:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        phase, unread, unwoken, _ = self.standing()
        return f"<Userfaultfd2014 {self.ident}: {phase}, {unread} unread, {unwoken} not woken>"

    def accept_fork(self, timeout: str | float | None = None) -> ForkedUserfaultfd:
        """Return the descriptor of the next forked child that has ranges registered here with `fork="follow"`.

        Args:
            timeout: How long to wait for a fork; None: for ever. Forks that happened before are given at once, in order.

        Raises:
            TimeoutError: There was none.
            ValueError: The descriptor is closed.

        Blocks: until a fork; Ctrl-C works. GIL: released.
        """
        forked = self.next_fork(None if timeout is None else parse_seconds(timeout))
        if forked is None:
            raise TimeoutError("no child was forked in time that follows this descriptor")
        return ForkedUserfaultfd(forked)

    def wake(self, address: int, length: int = mmap.PAGESIZE) -> None:
        """Wake those whose faults in the range were read.

        Raises:
            OSError: ENOENT: there are none. EINVAL, ERANGE, ENOMEM: the range makes no sense.
        """
        super().wake(address, length)

    @property
    def state(self) -> str:
        """Return "ask", "ack", "unknown", "running" or "closed"."""
        return self.standing()[0]

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self.state == "closed"

    @property
    def pending(self) -> int:
        """Return how many faults nobody has read."""
        return self.standing()[1]

    @property
    def unwoken(self) -> int:
        """Return how many faults were read and not woken."""
        return self.standing()[2]

    def fdinfo(self) -> FdInfo:
        """Return what /proc showed of a descriptor in 2014."""
        _, unread, unwoken, timeouts = self.standing()
        return FdInfo(unread, unread + unwoken, PROTOCOL, timeouts)

    def timed_out(self) -> list[TimedOut]:
        """Return the newest faults that ended because nobody answered in time, oldest first; 16 are kept.

        Of a system call, which can only say EFAULT, the program is told as well: by a RuntimeWarning at the next instruction of
        the main thread, and by the `__cause__` of the OSError, a `UserFault`, if its thread is still handling it then.
        """
        return [TimedOut(*line) for line in self.late()]
