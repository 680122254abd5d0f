"""Faults that ended because nobody answered within a descriptor's timeout: `TimedOut`, and how a program is told."""

from __future__ import annotations

import errno
import sys
import threading
import warnings
from dataclasses import dataclass
from typing import Any

from userfault import _core
from userfault.errors import UserFault

#: What a system call says of an unanswered fault; MADV_POPULATE_* says EHWPOISON, which the errno module has no name for.
SAID = (errno.EFAULT, 133)


@dataclass(frozen=True)
class TimedOut:
    """A fault that nobody answered in time.

    Attributes:
        address: Exact address.
        thread: Who waited: `threading.get_native_id()`.
        seconds: For how long.
        place: What the thread was doing: "user code" (it got `UserFault`), "a system call" (it got EFAULT), or "a system call
            that kept the GIL" (the same, and while it waited no Python thread could run to serve it).
        timeout: The descriptor's, in seconds.
    """

    address: int
    thread: int
    seconds: float
    place: str
    timeout: float

    @property
    def cause(self) -> str:
        """Return why, in a sentence."""
        kept = "; a server in Python cannot run meanwhile: have the pages there before" if "GIL" in self.place else ""
        return f"no answer within the descriptor's timeout of {self.timeout:g} s, in {self.place}{kept}"


def tell() -> None:
    """Say of each system call that ended so what it was: a RuntimeWarning, and the cause of its OSError if that is at hand.

    Runs in the main thread, between two instructions. An OSError is at hand while its thread handles it.
    """
    for line in _core.mman_take_late():
        late = TimedOut(*line)
        thread = next((one for one in threading.enumerate() if one.native_id == late.thread), None)
        error = _handled_by(thread)
        if isinstance(error, OSError) and error.errno in SAID and error.__cause__ is None:
            error.__cause__ = UserFault(late.address, late.cause)
        who = f"thread {late.thread}" + (f" ({thread.name})" if thread else "")
        warnings.warn(f"EFAULT in {who}: its fault at {late.address:#x} got {late.cause}", RuntimeWarning, stacklevel=2)


def _handled_by(thread: threading.Thread | None) -> Any:
    """Return the exception that a thread is handling."""
    found: Any = sys._current_exceptions().get(thread.ident or 0) if thread else None
    return found[1] if isinstance(found, tuple) else found  # Python 3.11 gives type, value and traceback


_core.mman_tell_late(tell)
