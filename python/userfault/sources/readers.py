"""The threads that read Python sources where the touching thread cannot: system calls, prefetch, native threads."""

from __future__ import annotations

import os
import threading

from userfault import _core

__all__ = ["MOST_READERS", "ensure_readers"]

#: At once, over all sources; reads beyond wait for their turn.
MOST_READERS = 32
_FEWEST = 2

# Reentrant: a signal handler may open a source in the middle of it.
_LOCK = threading.RLock()
_numbers: set[int] = set()


def _forget() -> None:
    """A forked child has none of its parent's threads, and may find the lock taken for good."""
    global _LOCK
    _LOCK = threading.RLock()
    _numbers.clear()


os.register_at_fork(after_in_child=_forget)


def ensure_readers() -> None:
    """Have some threads ready; more are started while all are busy.

    Raises:
        RuntimeError: No thread can be started.
    """
    while len(_numbers) < _FEWEST:
        _start_another(MOST_READERS)


def _start_another(busy: int) -> None:
    """Start one more, if `busy` are all there are: one that was started a moment before has time."""
    with _LOCK:
        if len(_numbers) > busy:
            return
        number = next((number for number in range(MOST_READERS) if number not in _numbers), None)
        if number is None:
            return
        _numbers.add(number)
    try:
        threading.Thread(target=_serve, args=[number], name=f"userfault-source-{number}", daemon=True).start()
    except BaseException:
        _numbers.discard(number)
        raise


def _serve(number: int) -> None:
    try:
        while True:
            _core.serve_read(_start_another)
    finally:
        _numbers.discard(number)
