"""Volatile buffers against a model of their pages, in any order of steps."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]


def test_volatile_buffers_in_any_order_of_steps_hold_what_their_model_holds(child):
    """Both deliveries, with a refill and without: unpin, pin, blocks, writes, reads, purges; bytes, losses and states agree."""
    child("from stateful.volatile_machine import run\nrun(examples=60, steps=30, seed=None)", timeout=90).check()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_volatile_buffers_in_many_random_orders_hold_what_their_model_holds(child):
    """The same, for long, with another seed each time."""
    child("from stateful.volatile_machine import run\nrun(examples=3000, steps=60, seed=1)", timeout=1200).check()
