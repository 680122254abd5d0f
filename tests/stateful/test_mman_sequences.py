"""The calls of 2014 in any order, against the model of their rules."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("userfault.mman")
pytestmark = [pytest.mark.kernel, pytest.mark.timeout(150)]


def sequences(child, *, examples: int, steps: int, seed: int | None, timeout: int) -> None:
    """Run them in a child, which says its seed first."""
    code = f"from stateful.mman_machine import run\nrun({examples}, {steps}, {seed})\nimport os; os._exit(0)"
    child(code, timeout=timeout).check()


@pytest.mark.parametrize("seed", [None, 11, 13, 101])
def test_calls_in_any_order_do_what_the_model_says(child, seed):
    """Flags, protections, descriptors, moves, mappings and touches of two threads, under all three policies."""
    sequences(child, examples=40, steps=60, seed=seed, timeout=120)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_calls_in_many_random_orders_do_what_the_model_says(child):
    """The same, for long, with other sequences each time."""
    sequences(child, examples=6000, steps=80, seed=random.randrange(1 << 32), timeout=1400)
