"""The threads that read Python sources where the touching thread cannot: system calls, prefetch, native threads."""

from __future__ import annotations

import os
import threading

from userfault import _core

__all__ = ["MOST_READERS", "ensure_readers"]

#: At once, over all sources; reads beyond wait for their turn.
MOST_READERS = 32
_FEWEST = 2

_LOCK = threading.Lock()
_STARTED: dict[int, int] = {}  # by process: a forked child has none


def ensure_readers() -> None:
    """Have some threads ready; more are started while all are busy."""
    while _STARTED.get(os.getpid(), 0) < _FEWEST:
        _start_another()


def _start_another() -> None:
    with _LOCK:
        number = _STARTED.get(os.getpid(), 0)
        if number >= MOST_READERS:
            return
        _STARTED[os.getpid()] = number + 1
    threading.Thread(target=_serve, name=f"userfault-source-{number}", daemon=True).start()


def _serve() -> None:
    while _core.serve_read(_start_another):
        pass
