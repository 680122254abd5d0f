"""Python sources under everything at once: random touches, failures, signals, collections, forks. Every byte is compared."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel


def storm():
    """Four threads touch random pages of three regions whose sources fail now and then, for some seconds."""
    import gc
    import random
    import signal
    import subprocess
    import sys
    import threading
    import time

    from support.called import PAGE, Known
    from support.lazy import check_endings, in_threads, touched

    import userfault as uf
    from userfault.testing import ChaosSource

    delivery, seconds = sys.argv[1], float(sys.argv[2])

    class Dawdling(Known):
        def __init__(self, seed):
            super().__init__(1 << 20, seed)
            self.dice = random.Random(seed)

        def read_into(self, offset, buffer):
            fate = self.dice.random()
            if fate < 0.02:
                time.sleep(0.002)
            if fate < 0.03:
                gc.collect()
            super().read_into(offset, buffer)

    sources = [Dawdling(seed) for seed in range(3)]
    chaos = [
        ChaosSource(sources[0], fail=[range(300_000, 320_000)]),
        ChaosSource(sources[1], fail=[range(1 << 20)], failures=300, how="short"),
        ChaosSource(sources[2], fail=[range(500_000, 500_001)], delay="100us"),
    ]
    options = [{}, {"resident": "128KiB"}, {"unit": "16KiB"}]
    regions = [uf.map(source, delivery=delivery, **kind) for source, kind in zip(chaos, options, strict=True)]
    end = time.monotonic() + seconds
    touches = wrong = errors = 0
    count = threading.Lock()

    def touch(seed):
        nonlocal touches, wrong, errors
        dice = random.Random(seed)
        views = [memoryview(region) for region in regions]
        while time.monotonic() < end:
            which = dice.randrange(3)
            at = dice.randrange(1 << 20)
            length = dice.choice([1, 100, 2 * PAGE])
            try:
                with uf.checked(regions[which]):
                    got = bytes(views[which][at : at + length])
            except uf.PageError:
                with count:
                    errors += 1
                continue
            with count:
                touches += 1
                wrong += got != sources[which].bytes[at : at + length]
            if dice.random() < 0.02:
                regions[dice.randrange(3)].evict()
            if dice.random() < 0.02:
                regions[dice.randrange(3)].prefetch(slice(at, at + 50_000))

    def beside():
        while time.monotonic() < end:
            assert subprocess.run([sys.executable, "-c", "print(7)"], capture_output=True, check=True).stdout == b"7\n"

    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    in_threads(beside, *(lambda seed=seed: touch(seed) for seed in range(4)), seconds=seconds + 30)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert wrong == 0, (wrong, touches)
    regions[2].evict()  # its one bad byte is rarely met by few touches
    touched(lambda: bytes(memoryview(regions[2])[500_000:500_001]))
    assert touches > 100, touches
    assert errors > 10, errors
    assert all(region.statistics().source_errors > 0 for region in regions)
    for region in regions:
        check_endings(region)
    print(touches, errors)


@pytest.mark.timeout(90)
def test_a_storm_of_touches_finds_right_bytes_and_counted_failures(child, delivery):
    """The short form: no wrong byte, no hang, every fault ended."""
    child(storm, args=[delivery, "4"], timeout=60).check()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_long_storm_of_touches_finds_right_bytes_and_counted_failures(child, delivery):
    """The same for a minute."""
    child(storm, args=[delivery, "60"], timeout=200).check()
