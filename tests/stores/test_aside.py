"""The threads in which calls of stores run: those that hang take no turns of others."""

from __future__ import annotations

import threading

import pytest

from userfault.sources import aside as module


@pytest.fixture
def few(monkeypatch):
    """Four threads at most, fresh ones."""
    monkeypatch.setattr(module, "MOST_ASIDE", 4)
    monkeypatch.setattr(module, "_THREADS", None)


@pytest.mark.usefixtures("few")
def test_calls_that_hang_after_a_backlog_leave_threads_for_others():
    """A backlog does not make the pool believe that it has more threads at rest than there are."""
    gate, never = threading.Event(), threading.Event()
    callers = [threading.Thread(target=lambda: module.aside(gate.wait, seconds=20)) for _ in range(16)]
    for caller in callers:
        caller.start()
    gate.set()
    for caller in callers:
        caller.join()
    for _ in range(6):
        with pytest.raises(TimeoutError):
            module.aside(never.wait, seconds=0.2)
    assert module.aside(lambda: 7, seconds=10) == 7
    never.set()
