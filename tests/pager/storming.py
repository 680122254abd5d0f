"""The storm: threads touch random pages of several regions while the pager is killed again and again. Run in children only."""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from support.lazy import check_endings

import userfault as uf
from pager.killing import start
from pager.sources import Known, known

KIB = 1024


def storm(kills: int, seed: int, seconds: float) -> None:
    """Compare every byte that is read; all touches end; the law of endings holds."""
    pager = uf.pager.Pager(restarts=10 * kills + 10, within="1h")
    specs = [(4 * KIB * KIB, "4KiB", 7), (16 * KIB * KIB, "64KiB", 11), (8 * KIB * KIB + 4096, "16KiB", 13)]
    regions = [_region(pager, length, unit, mark) for length, unit, mark in specs]
    views = [region.numpy() for region in regions]
    over, counts, wrong = threading.Event(), [0] * 4, []

    def touch(number: int) -> None:
        chance = random.Random(seed * 100 + number)
        while not over.is_set() and not wrong:
            which = chance.randrange(len(specs))
            length, _, mark = specs[which]
            at = chance.randrange(length // 8 - 512) * 8
            size = chance.choice([8, 4096, 40960])
            size = min(size, length - at)
            got = views[which][at : at + size]
            got = got.copy() if chance.random() < 0.7 else memoryview(got).tobytes()
            if bytes(got) != known(at, size, mark).tobytes():
                wrong.append((which, at, size))
            counts[number] += 1
            if chance.random() < 0.02 and which < 2:
                start_ = chance.randrange(length)
                regions[which].evict(slice(start_, start_ + length // 4))
            if chance.random() < 0.01:
                regions[which].prefetch(slice(at, at + 1 << 20))
            if chance.random() < 0.005:
                regions[which].populate(slice(at, at + 100_000))

    threads = [threading.Thread(target=touch, args=(number,), daemon=True) for number in range(4)]
    end = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    killed = _kill_until_something_is_asked_again(regions, kills, seed, lambda: time.monotonic() < end and not wrong)
    assert killed == 0, f"{killed}: {pager!r} {counts}"
    over.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), (pager, [region.statistics() for region in regions])
    assert not wrong, wrong
    found = [check_endings(region) for region in regions]
    print(f"kills={kills} restarts={pager.restarts} touches={sum(counts)} requeued={sum(one.requeued for one in found)}")
    assert pager.restarts >= kills, pager
    assert any(one.requeued for one in found), found
    views.clear()
    for region in regions:
        region.close_when_free()


def _kill_until_something_is_asked_again(regions: list[uf.Region], kills: int, seed: int, may: Callable[[], bool]) -> int | None:
    """How the killer ended. A slow machine needs more than so many kills until one comes between a message and its answer."""
    with tempfile.TemporaryDirectory() as room:
        enough = Path(room) / "enough"
        with start("storm", os.getpid(), kills, seed, enough) as killer:
            while killer.poll() is None and may():
                if any(region.statistics().requeued for region in regions):
                    enough.touch()
                time.sleep(0.05)
            ended = killer.poll()
            killer.kill()
    return ended


def _region(pager: uf.pager.Pager, length: int, unit: str, mark: int) -> uf.Region:
    source = Known(length, seed=mark, unit=unit, delay=0.002 if mark == 11 else 0.0)
    return uf.map(source, delivery="process", pager=pager, mode="c" if mark == 13 else "r", timeout="60s")
