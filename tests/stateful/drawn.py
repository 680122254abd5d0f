"""How the machines draw their sequences."""

from __future__ import annotations

from hypothesis import HealthCheck, settings


def drawn(examples: int, steps: int, seed: int | None, **more) -> settings:
    """So many sequences of so many steps; without a seed the same ones each time. Nothing is kept between runs."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=seed is None,
        suppress_health_check=list(HealthCheck),
        **more,
    )
