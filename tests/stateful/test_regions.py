"""Regions against a model of their bytes, in any order of steps."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]


def test_regions_in_any_order_of_steps_hold_the_bytes_of_their_model(child):
    """Both deliveries, several units, all sources, both modes: touch, read, prefetch, populate, evict, write, close."""
    child("from stateful.machine import run\nrun(examples=60, steps=30, seed=None)", timeout=90).check()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_regions_in_many_random_orders_hold_the_bytes_of_their_model(child):
    """The same, for long, with another seed each time."""
    child("from stateful.machine import run\nrun(examples=3000, steps=60, seed=1)", timeout=1200).check()
