"""Exceptions from outside at any moment, as of an impatient user: in a child."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Callable


def interrupted(step: Callable[[], object], seconds: float, *expected: type[BaseException]) -> int:
    """Call `step` again and again in the main thread while KeyboardInterrupts come, each after 10 to 300 us.

    Args:
        step: What to call. It may raise what is `expected`, too.
        seconds: How long.
        *expected: Beside KeyboardInterrupt.

    Returns:
        How many calls ended by one of these.
    """
    dice, until, ended = random.Random(3), time.monotonic() + seconds, 0
    sys.unraisablehook = lambda _: None  # an interrupt while another is raised is told there
    signal.signal(signal.SIGALRM, signal.default_int_handler)

    def call_on() -> None:
        nonlocal ended
        while time.monotonic() < until:
            try:
                signal.setitimer(signal.ITIMER_REAL, dice.random() * 0.0003 + 1e-5)
                step()
            except (KeyboardInterrupt, *expected):
                ended += 1

    while True:
        try:
            call_on()
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            return ended
        except (KeyboardInterrupt, *expected):
            ended += 1
