"""Storms: many threads touch many regions at random, and compare every byte they see. Run in children only."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from support.lazy import check_endings, in_threads, known_bytes, libc, mixed_bytes

import userfault as uf
from userfault import image

KIB = 1024
BOTH = ("thread", "signal")


@dataclass
class Subject:
    """A region, what it must hold, and who may write where."""

    name: str
    region: uf.Region
    expected: np.ndarray
    lazy: np.ndarray
    writable: bool = False
    system_calls: bool = False
    address: int = field(default=0)


def sources(folder: Path, length: int, seed: int) -> dict[str, tuple[uf.Source, np.ndarray]]:
    """One source of each kind, with the bytes it must give."""
    plain, mixed = known_bytes(length, seed), mixed_bytes(length, seed + 1)
    file = folder / f"plain-{seed}"
    file.write_bytes(b"skipped" + plain.tobytes() + b"not seen")
    packed = folder / f"packed-{seed}.zst"
    image.pack(mixed.tobytes(), packed, frame="64KiB")
    return {
        "bytes": (uf.Bytes(plain.tobytes()), plain),
        "file": (uf.File(file, 7, length), plain),
        "zero": (uf.Zero(length), np.zeros(length, np.uint8)),
        "image": (uf.Image(packed), mixed),
    }


def subjects(folder: Path, unit: int | None, length: int, seed: int) -> list[Subject]:
    """Regions of every source by both deliveries, with budgets, a shared one and a writable one; `unit` None: huge units."""
    options = {"huge": True} if unit is None else {"unit": unit}
    found = []
    for kind, (source, expected) in sources(folder, length, seed).items():
        for delivery in BOTH:
            found.append(subject(f"{kind} by {delivery}", source, expected, delivery=delivery, **options))
    plain, expected = sources(folder, length, seed + 10)["file"]
    found.append(subject("file to write", plain, expected.copy(), mode="c", **options))
    budget = max(length // 4, 8 * (unit or 2 << 20))
    found += [subject(f"budget by {how}", plain, expected, delivery=how, resident=budget, **options) for how in BOTH]
    if unit is not None:
        found.append(subject("shared", plain, expected, shared=True, on_error="abort", **options))
    return found


def subject(name: str, source: uf.Source, expected: np.ndarray, **options) -> Subject:
    """Map one."""
    region = uf.map(source, **options)
    return Subject(
        name,
        region,
        expected,
        region.numpy(),
        writable=options.get("mode") == "c",
        system_calls=region.kernel_faults,
        address=region.address,
    )


def same(subject: Subject, start: int, stop: int, seen) -> None:
    """Compare, and say where the first difference is."""
    expected = subject.expected[start:stop]
    seen = np.frombuffer(seen, np.uint8)
    if not np.array_equal(seen, expected):
        bad = np.flatnonzero(seen != expected) if len(seen) == len(expected) else []
        where = start + int(bad[0]) if len(bad) else len(seen)
        raise AssertionError(f"{subject.name}: {len(bad)} wrong bytes, first at {where:#x}: {seen[where - start]}")


def drop_from_here(subject: Subject, start: int, stop: int) -> None:
    """Unmap pages and leave them in the memory file: the next touch finds them there (CONTINUE)."""
    page = mmap.PAGESIZE
    start, stop = start // page * page, -(-stop // page) * page
    libc.madvise(subject.address + start, stop - start, mmap.MADV_DONTNEED)


class Toucher:
    """One thread of a storm. Threads write in stripes of pages of their own, so that nobody races for bytes."""

    def __init__(self, subjects: list[Subject], number: int, of: int, until: float, seed: int, steps: bool) -> None:
        self.subjects, self.number, self.of, self.until = subjects, number, of, until
        self.random = random.Random(seed * 1000 + number)
        self.steps = steps

    def __call__(self) -> None:
        null = os.open("/dev/null", os.O_WRONLY)
        read, write = os.pipe()
        try:
            while time.monotonic() < self.until:
                self.turn(self.random.choice(self.subjects), read, write)
        finally:
            for descriptor in (null, read, write):
                os.close(descriptor)

    def turn(self, subject: Subject, read: int, write: int) -> None:
        size = len(subject.expected)
        start = self.random.randrange(size)
        stop = min(size, start + self.random.choice([1, 100, 5000, 70_000, 300_000]))
        if subject.writable:
            return self.write_stripe(subject, start)
        step = self.random.randrange(12)
        if step < 4:
            same(subject, start, stop, subject.lazy[start:stop])
        elif step < 6:
            same(subject, start, stop, bytes(memoryview(subject.region)[start:stop]))
        elif step == 6 and subject.system_calls:
            stop = min(stop, start + 60_000)  # a pipe holds 64 KiB
            count = os.write(write, memoryview(subject.region)[start:stop])
            same(subject, start, start + count, os.read(read, count))
        elif step == 7:
            same(subject, start, stop, subject.region.read(start, stop - start))
        elif step == 8:
            same(subject, start, stop, ctypes.string_at(subject.address + start, stop - start))
        elif step == 9 and subject.region.options.shared:
            drop_from_here(subject, start, stop)
        elif self.steps:
            where = slice(start, min(size, start + self.random.choice(self.steps_of(subject))))
            self.random.choice([subject.region.prefetch, subject.region.evict, subject.region.populate])(where)
        return None

    @staticmethod
    def steps_of(subject: Subject) -> list[int]:
        budget = subject.region.options.resident
        return [size for size in (1, 1 << 16, 1 << 21, 1 << 23) if not budget or size <= budget // 2]

    def write_stripe(self, subject: Subject, start: int) -> None:
        start = start // (4 * KIB * self.of) * (4 * KIB * self.of) + 4 * KIB * self.number
        stop = min(start + 4 * KIB, len(subject.expected))
        if start >= stop:
            return
        same(subject, start, stop, subject.lazy[start:stop])
        value = self.random.randrange(1, 256)
        subject.lazy[start:stop:3] = value
        subject.expected[start:stop:3] = value


def storm(
    unit: int | None, seconds: float, threads: int = 6, length: int | None = None, seed: int = 1, steps: bool = True
) -> None:
    """Regions of one unit."""
    length = length or (19 << 20 if unit is None else 5 << 20) + 4321
    with tempfile.TemporaryDirectory() as folder:
        blow(subjects(Path(folder), unit, length, seed), seconds, threads, seed, steps)


def storm_of_all(seconds: float, threads: int = 8, seed: int = 31) -> None:
    """Regions of all units at once, so many that the ways of filling meet: COPY, MOVE, whole huge pages, CONTINUE."""
    units = {4 * KIB: 1 << 20, 64 * KIB: 2 << 20, 256 * KIB: 4 << 20, None: 19 << 20}
    with tempfile.TemporaryDirectory() as folder:
        targets = [
            one for unit, length in units.items() for one in subjects(Path(folder), unit, length + 4321, seed + (unit or 0))
        ]
        assert len(targets) >= 20
        found = blow(targets, seconds, threads, seed, steps=True)
        ways = ("copied_bytes", "moved_bytes", "zero_bytes", "continued_bytes", "evicted_units", "prefetched_units")
        assert all(found[way] for way in ways), found


def blow(targets: list[Subject], seconds: float, threads: int, seed: int, steps: bool) -> dict[str, int]:
    """Let it blow; then look at everything once more, and at the law of endings. The statistics of all, in sum."""
    until = time.monotonic() + seconds
    touchers = [Toucher(targets, number, threads, until, seed, steps) for number in range(threads)]
    in_threads(*touchers, seconds=seconds + 30)
    sums: dict[str, int] = {}
    for target in targets:
        same(target, 0, len(target.expected), target.lazy)
        if not target.writable:
            target.region.evict()
            same(target, 0, len(target.expected), target.lazy)
        ended = check_endings(target.region)
        for one in fields(ended):
            value = getattr(ended, one.name)
            sums[one.name] = sums.get(one.name, 0) + (value if isinstance(value, int) else 0)
    assert sums["faults"] > len(targets)
    for target in targets:
        del target.lazy
        target.region.close()
    return sums


@contextmanager
def under_load(burners: int = 2) -> Iterator[dict[int, int]]:
    """What a profiler on a busy machine does: threads that burn the CPU without the GIL, and SIGPROF and SIGALRM at 1 kHz.

    Yields how often each signal's handler ran.
    """
    rings = {signal.SIGALRM: 0, signal.SIGPROF: 0}

    def ring(number: int, frame: object) -> None:
        rings[signal.Signals(number)] += 1

    over, block = threading.Event(), bytes(4 << 20)

    def burn() -> None:
        while not over.is_set():
            hashlib.sha256(block)

    threads = [threading.Thread(target=burn, daemon=True) for _ in range(burners)]
    for number in rings:
        signal.signal(number, ring)
    for timer in (signal.ITIMER_REAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0.001, 0.001)
    for thread in threads:
        thread.start()
    try:
        yield rings
    finally:
        over.set()
        for timer in (signal.ITIMER_REAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
        for thread in threads:
            thread.join()
