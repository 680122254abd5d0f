"""checked(): a false alarm is possible, silence is not."""

from __future__ import annotations

import pytest
from support.regions import run_quietly as run

pytestmark = pytest.mark.kernel

both = pytest.mark.parametrize("delivery", ["thread", "signal"])
BAD = """
import threading
from support.lazy import in_threads
from userfault.testing import Chaos
def bad(delivery, **options):
    return uf.map(Chaos(uf.Bytes(b"1" * 262144), fail=[range(4096)]), delivery=delivery, **options)
"""


@both
def test_a_region_that_is_closed_inside_raises_only_if_a_page_failed(child, delivery):
    """Its count goes with it."""
    run(
        child,
        BAD
        + f"""
region = bad({delivery!r})
with uf.checked(region):
    assert region.numpy()[8192] == ord("1")
    region.close()
region = bad({delivery!r})
try:
    with uf.checked(region):
        try:
            int(region.numpy()[0])
        except uf.PageError:
            pass
        region.close()
    raise SystemExit("silent")
except uf.PageError:
    pass
""",
    )


@both
def test_what_another_thread_failed_on_is_never_read_unnoticed(child, delivery):
    """Threads touch a page that fails again and again; whoever else reads it inside checked(), or by read(), gets an error."""
    run(
        child,
        BAD
        + f"""
region = bad({delivery!r}, unit="4KiB")
stop, silent = threading.Event(), []
def touch():
    while not stop.is_set():
        try:
            int(region.numpy()[0])
        except uf.PageError:
            pass
def look():
    try:
        limit = time.monotonic() + 1.5
        while time.monotonic() < limit:
            try:
                with uf.checked(region):
                    silent.append(int(region.numpy()[5]))
            except uf.PageError:
                silent.clear()
            assert not silent, silent
            try:
                raise SystemExit(region.read(5, 1))
            except uf.PageError:
                pass
            try:
                region.populate(slice(0, 4096))
                raise SystemExit("populated")
            except uf.PageError:
                pass
    finally:
        stop.set()
in_threads(touch, touch, look)
""",
    )


@both
def test_a_page_that_another_thread_touched_is_said_to_be_its(child, delivery):
    """And one that the block itself touched, and caught; nothing was replaced."""
    run(
        child,
        BAD
        + f"""
region = bad({delivery!r})
def touch():
    try:
        int(region.numpy()[0])
    except uf.PageError as error:
        assert "Chaos" in str(error), error
for touches in (lambda: in_threads(touch), touch):
    try:
        with uf.checked():
            touches()
        raise SystemExit("silent")
    except uf.PageError as error:
        assert "in another thread, or in this block" in str(error) and "replaced" not in str(error), error
""",
    )
