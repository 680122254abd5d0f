"""The calls of 2014 in any order, against the model of their rules."""

from __future__ import annotations

import pytest

pytest.importorskip("userfault.mman")
pytestmark = [pytest.mark.kernel, pytest.mark.timeout(150)]


def test_calls_in_any_order_do_what_the_model_says(child):
    """Flags, protections, descriptors, moves, mappings and touches of two threads, under all three policies."""
    child(
        "from stateful.mman_machine import run\nrun(examples=120, steps=40, seed=None)\nimport os; os._exit(0)", timeout=120
    ).check()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_calls_in_many_random_orders_do_what_the_model_says(child):
    """The same, for long, with other sequences each time."""
    child(
        "from stateful.mman_machine import run\nrun(examples=6000, steps=80, seed=1)\nimport os; os._exit(0)", timeout=1400
    ).check()
