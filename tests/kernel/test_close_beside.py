"""A region is closed while others use it in ways that are no views."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(90)]


@pytest.mark.parametrize("delivery", ["signal", "thread", "process"])
def test_a_read_beside_evictions_ends_with_the_region(child, delivery):
    """The page that the kernel copies from may leave in the middle of it, and nobody brings it any more."""
    code = f"""import threading, time
import userfault as uf

class Numbers(uf.Source):
    length, unit = 1 << 20, 4096

    def read_into(self, offset, buffer):
        buffer[:] = b"x" * len(buffer)

def read(region, data):
    while True:
        try:
            assert data is not None or region.read(0, 1 << 18) == b"x" * (1 << 18)
            if data is not None:
                region.evict()
        except uf.RegionClosedError:
            return

until = time.monotonic() + 6
while time.monotonic() < until:
    region = uf.map(Numbers(), delivery="{delivery}", timeout="20s")
    region.populate()
    threads = [threading.Thread(target=read, args=(region, what), daemon=True) for what in (None, None, "evict")]
    [thread.start() for thread in threads]
    time.sleep(0.01)
    region.close()
    [thread.join(15) for thread in threads]
    assert not any(thread.is_alive() for thread in threads)
"""
    child(code, timeout=60).check()
