"""No wait without a deadline: it holds whatever the keeper of deadlines was doing when the wait began."""

from __future__ import annotations

import pytest
from support.regions import run_quietly as run

pytestmark = pytest.mark.kernel


def test_a_short_deadline_holds_while_the_keeper_sleeps_for_a_long_one(child):
    """Waits that come and go leave it asleep until the first one's deadline; a shorter one wakes it, and the next as well."""
    run(
        child,
        """
from support.lazy import in_threads, raised
from userfault.testing import Chaos
data = bytes(range(1, 256)) * 4096
patient = uf.map(Chaos(uf.Bytes(data), delay=0.02), timeout="30s", unit="64KiB")
hasty = [uf.map(Chaos(uf.Bytes(data), delay=20), timeout=limit) for limit in ("400ms", "200ms")]
look = lambda at: memoryview(patient)[at]
for at in range(0, 4 << 16, 1 << 16):
    in_threads(*[lambda at=at: look(at)] * 3)
for region in hasty:
    began = time.monotonic()
    raised(uf.PageError, lambda: bytes(memoryview(region)[:1]))
    assert 0.1 < time.monotonic() - began < 12
    assert look(len(data) - 70_000 - 65_536 * hasty.index(region)) == data[len(data) - 70_000 - 65_536 * hasty.index(region)]
os._exit(0)  # the slow reads go on for long
""",
        timeout=40,
    )
