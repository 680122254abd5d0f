"""How a resolving operation ended: the errno has got its meaning, once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import IntEnum


class OutcomeKind(IntEnum):
    """The ways an operation can end."""

    DONE = 0
    """All of it was done."""
    PARTIAL = 1
    """Some of it was done and its waiters woken; go on after `Outcome.bytes`."""
    EXISTS = 2
    """The first page is already there. Nobody was woken: call `Userfaultfd.wake`, or a waiter may sleep for ever."""
    RETRY = 3
    """The address space is changing, or a race was lost: read the pending events, then try again."""
    GONE = 4
    """The process whose memory it was has ended."""
    FAILED = 5
    """Nothing was done, for the reason in `Outcome.errno`."""


_KINDS = tuple(OutcomeKind)


@dataclass(frozen=True, slots=True, repr=False)
class Outcome:
    """How an operation on pages ended.

    Attributes:
        kind: which way.
        bytes: how many bytes were done; counted from the start of the range.
        errno: what the kernel said; 0 when all was done.
    """

    kind: OutcomeKind
    bytes: int
    errno: int

    @classmethod
    def from_core(cls, ended: tuple[int, int, int]) -> Outcome:
        """Make one of the triple that the native module returns."""
        return cls(_KINDS[ended[0]], ended[1], ended[2])

    @property
    def done(self) -> bool:
        """Whether all of it was done."""
        return self.kind is OutcomeKind.DONE

    @property
    def partial(self) -> bool:
        """Whether only the first `bytes` were done."""
        return self.kind is OutcomeKind.PARTIAL

    @property
    def exists(self) -> bool:
        """Whether the first page was already there."""
        return self.kind is OutcomeKind.EXISTS

    @property
    def retry(self) -> bool:
        """Whether to read events and try again."""
        return self.kind is OutcomeKind.RETRY

    @property
    def gone(self) -> bool:
        """Whether the process is gone."""
        return self.kind is OutcomeKind.GONE

    @property
    def failed(self) -> bool:
        """Whether it failed for another reason."""
        return self.kind is OutcomeKind.FAILED

    def check(self) -> int:
        """Return the bytes that were done, all of them.

        Raises:
            OSError: with `errno`, in the subclass that fits, where not all was done.
        """
        if self.kind is not OutcomeKind.DONE:
            raise OSError(self.errno, f"{self.kind.name.lower()} after {self.bytes} bytes: {os.strerror(self.errno)}")
        return self.bytes

    def __repr__(self) -> str:
        why = f", {os.strerror(self.errno)}" if self.failed else ""
        return f"Outcome({self.kind.name.lower()}, {self.bytes} bytes{why})"
