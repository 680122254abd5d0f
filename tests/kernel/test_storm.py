"""Storms: threads x regions x deliveries x units x sources, every byte compared, the law of endings after each."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

UNITS = {"4KiB": 4 << 10, "64KiB": 64 << 10, "256KiB": 256 << 10, "huge": None}
units = pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)


def run(child, unit, seconds, timeout, **more):
    arguments = ", ".join(f"{name}={value}" for name, value in {"unit": unit, "seconds": seconds, **more}.items())
    child(f"from kernel.storming import storm\nstorm({arguments})", timeout=timeout).check()


@units
def test_storm_of_touches_prefetch_and_evict_sees_only_right_bytes(child, unit):
    """Whatever is prefetched and evicted beside them, touching threads see the source's bytes."""
    run(child, unit, 2.0, 60)


@units
def test_storm_without_evict_ends_every_fault_once(child, unit):
    """Many threads that fault on the same few units get one answer each."""
    run(child, unit, 0.5, 60, threads=12, length=(1 << 21) + 5, steps=False, seed=5)


@units
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_storm_for_a_minute_sees_only_right_bytes(child, unit):
    """The same, for long, with more threads than CPUs."""
    run(child, unit, 60, 300, threads=16, seed=9)


def run_failing(child, unit, seconds, timeout, **more):
    arguments = ", ".join(f"{name}={value}" for name, value in {"unit": unit, "seconds": seconds, **more}.items())
    child(f"from kernel.storming_failures import storm_of_failures\nstorm_of_failures({arguments})", timeout=timeout).check()


@units
def test_storm_over_failing_sources_raises_for_each_bad_page_and_no_other(child, unit):
    """PageError where a page cannot be had, right bytes where one can, beside prefetch and evict; every fault accounted for."""
    run_failing(child, unit, 1.5, 60)


@units
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_storm_over_failing_sources_for_a_minute(child, unit):
    """The same, for long, with more threads than CPUs."""
    run_failing(child, unit, 60, 300, threads=16, seed=8)


def storm_of_all_under_load(child, seconds, timeout):
    def code():
        import sys

        from kernel.storming import storm_of_all, under_load

        with under_load() as rings:
            storm_of_all(float(sys.argv[1]))
        assert min(rings.values()) > 50, rings

    child(code, args=[str(seconds)], timeout=timeout).check()


def test_storm_of_all_units_under_load_sees_only_right_bytes(child):
    """Forty-odd regions by COPY, MOVE, whole huge pages and CONTINUE at once, on a machine that a profiler keeps busy."""
    storm_of_all_under_load(child, 3, 90)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_storm_of_all_units_under_load_for_a_minute_sees_only_right_bytes(child):
    """The same, for long."""
    storm_of_all_under_load(child, 60, 300)


def test_storm_under_timers_sees_only_right_bytes(child):
    """SIGALRM and SIGPROF at 1 kHz interrupt waits for pages of one unit; nothing is lost, doubled or zero."""

    def code():
        from kernel.storming import storm, under_load

        with under_load(burners=0) as rings:
            storm(unit=64 << 10, seconds=2.0, seed=21)
            storm(unit=4 << 10, seconds=1.0, seed=22)
        assert min(rings.values()) > 50, rings

    child(code, timeout=60).check()


@pytest.mark.parametrize("delivery", ["thread", "signal"])
def test_storm_of_open_and_close_beside_touches_sees_only_right_bytes(child, delivery):
    """Regions come and go in some threads while others touch, prefetch and populate theirs."""

    def code():
        import random
        import sys
        import time

        from support.lazy import check_endings, in_threads, known_bytes

        import userfault as uf

        data = known_bytes(700_001)
        source = uf.Bytes(data.tobytes())
        delivery, until = sys.argv[1], time.monotonic() + 2

        def come_and_go(number):
            choose = random.Random(number)
            while time.monotonic() < until:
                unit = choose.choice([4 << 10, 64 << 10, 256 << 10])
                with uf.map(source, delivery=delivery, unit=unit) as region:
                    step = choose.randrange(4)
                    if step == 0:
                        region.prefetch()
                    elif step == 1:
                        region.populate(slice(0, 300_000))
                    elif step == 2:
                        at = choose.randrange(len(data))
                        assert memoryview(region)[at] == data[at]
                    else:
                        region.prefetch()
                        assert (region.numpy()[::4096] == data[::4096]).all()
                        check_endings(region)

        in_threads(*[lambda number=number: come_and_go(number) for number in range(6)])

    child(code, args=[delivery], timeout=60).check()


@pytest.mark.parametrize("delivery", ["thread", "signal"])
def test_one_page_touched_by_many_threads_at_once_is_read_once(child, delivery):
    """Twenty threads at one absent unit: one fill, everybody gets the bytes."""

    def code():
        import sys
        import threading

        from support.lazy import check_endings, in_threads, known_bytes

        import userfault as uf

        data = known_bytes(64 << 10)
        for _ in range(30):
            region = uf.map(uf.Bytes(data.tobytes()), delivery=sys.argv[1])
            view, start = region.numpy(), threading.Barrier(20)

            def touch(view=view, start=start):
                start.wait()
                assert (view == data).all()

            in_threads(*[touch] * 20)
            found = check_endings(region)
            assert found.demand_units == 1, found

    child(code, args=[delivery], timeout=60).check()
