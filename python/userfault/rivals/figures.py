"""Taking turns, and what is made of the samples: shared by all benches."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TypeVar

from userfault.units import format_bytes, format_seconds

Side = TypeVar("Side")
Result = TypeVar("Result")


def take_turns(
    sides: Sequence[Side], play: Callable[[Side, int], Result], rounds: int, *, warm_up: bool = True
) -> list[list[Result]]:
    """Have each side play once to warm up, then `rounds` times; who begins changes with every round.

    A disturbance so hits all alike, and nobody always plays after the same neighbour.

    Args:
        sides: who plays.
        play: called with a side and the number of the round; 0 is the warm-up, whose result is dropped.
        rounds: how many are kept.
        warm_up: False for a look at whether all works.

    Returns:
        The results of each side, in the order of `sides`.
    """
    results: list[list[Result]] = [[] for _ in sides]
    for number in range(0 if warm_up else 1, rounds + 1):
        for turn in range(len(sides)):
            index = (turn + number) % len(sides)
            result = play(sides[index], number)
            if number > 0:
                results[index].append(result)
    return results


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile, none outside of what was measured."""
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, middle, high


def shown(value: float, unit: str) -> str:
    """A median, for people: ``6.2 us``, ``31.0 MiB``."""
    return format_bytes(round(value)) if unit == "bytes" else format_seconds(value)
