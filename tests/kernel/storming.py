"""Storms: many threads touch many regions at random, and compare every byte they see. Run in children only."""

from __future__ import annotations

import ctypes
import os
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from support.lazy import check_endings, in_threads, known_bytes, mixed_bytes

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
    """Regions of every source by both deliveries, with one shared and one writable one; `unit` None: huge units."""
    options = {"huge": True} if unit is None else {"unit": unit}
    found = []
    for kind, (source, expected) in sources(folder, length, seed).items():
        for delivery in BOTH:
            found.append(subject(f"{kind} by {delivery}", source, expected, delivery=delivery, **options))
    plain, expected = sources(folder, length, seed + 10)["file"]
    found.append(subject("file to write", plain, expected.copy(), mode="c", **options))
    if unit is not None:
        budget = max(length // 4, 8 * unit)
        found += [subject(f"budget by {how}", plain, expected, delivery=how, resident=budget, **options) for how in BOTH]
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
    """Let it blow; then look at everything once more, and at the law of endings."""
    length = length or (19 << 20 if unit is None else 5 << 20) + 4321
    with tempfile.TemporaryDirectory() as folder:
        targets = subjects(Path(folder), unit, length, seed)
        until = time.monotonic() + seconds
        touchers = [Toucher(targets, number, threads, until, seed, steps) for number in range(threads)]
        in_threads(*touchers, seconds=seconds + 30)
        touched = 0
        for target in targets:
            same(target, 0, length, target.lazy)
            if not target.writable:
                target.region.evict()
                same(target, 0, length, target.lazy)
            touched += check_endings(target.region).faults
        assert touched > len(targets)
        for target in targets:
            del target.lazy
            target.region.close()
