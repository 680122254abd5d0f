"""Storms over sources of which some pages cannot be had: each touch of one is an error, and no other byte is wrong for it.

Run in children only.
"""

from __future__ import annotations

import ctypes
import random
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from support.lazy import PAGE, check_endings, in_threads, raised

import userfault as uf
from kernel.storming import BOTH, sources
from userfault.testing import Chaos


@dataclass
class Failing:
    """A region, what it holds where it holds something, and which of its pages cannot be had."""

    name: str
    region: uf.Region
    expected: np.ndarray
    bad: np.ndarray
    heals: bool = False
    whole_units: bool = False
    raised: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def hits(self, start: int, stop: int) -> bool:
        """Is a page among them that cannot be had?"""
        return bool(self.bad[start // PAGE : -(-stop // PAGE)].any())

    def hits_unit(self, start: int, stop: int) -> bool:
        """Or a unit with one?"""
        unit = self.region.unit
        return self.hits(start // unit * unit, min(-(-stop // unit) * unit, len(self.expected)))

    def may_fail(self, start: int, stop: int) -> bool:
        """May a touch be an error? A source that gives single pages, where a unit cannot be had, loses no other page."""
        return self.hits_unit(start, stop) if self.whole_units else self.hits(start, stop)

    def look(self, start: int, stop: int, seen: bytes) -> None:
        """Bytes that no error came with: right, or the pattern of another thread's error; never zeros.

        A thread with an error on its way is shown the pattern wherever it touches, so others may see it in any page:
        `checked()` is for that.
        """
        found, expected = np.frombuffer(seen, np.uint8), self.expected[start:stop]
        wrong = (found != expected) & (found != 0xFF)
        assert not wrong.any(), f"{self.name}: wrong from {start + int(wrong.argmax()):#x}: {found[wrong.argmax()]}"

    def account(self, error: uf.PageError, start: int, stop: int) -> None:
        """An error names a page that cannot be had, and came with a touch of one."""
        assert self.may_fail(start, stop), f"{self.name}: {error} for {start:#x} to {stop:#x}, which can be had"
        assert self.may_fail(error.offset, error.offset + 1), f"{self.name}: {error}"
        with self.lock:
            self.raised += 1


def failing(folder: Path, unit: int | None, length: int, seed: int) -> list[Failing]:
    """Regions of every source and delivery, with budgets, a slow one, and one that gets well again."""
    options: dict[str, object] = {"huge": True} if unit is None else {"unit": unit}
    choose = random.Random(seed)
    places = sorted(choose.sample(range(length // PAGE), 12))
    ranges = [range(page * PAGE + 5, page * PAGE + 6 + PAGE * (page % 3)) for page in places]
    bad = np.zeros(length // PAGE + 1, bool)
    for one in ranges:
        bad[one.start // PAGE : (one.stop - 1) // PAGE + 1] = True
    made = sources(folder, length, seed)
    found = []
    for delivery in BOTH:
        for kind in ("bytes", "file", "image"):
            source, expected = made[kind]
            region = uf.map(Chaos(source, fail=ranges), delivery=delivery, **options)
            found.append(Failing(f"{kind} by {delivery}", region, expected, bad, whole_units=kind == "image"))
        source, expected = made["file"]
        budget = max(length // 4, 8 * (unit or 2 << 20))
        region = uf.map(Chaos(source, fail=ranges), delivery=delivery, resident=budget, **options)
        found.append(Failing(f"budget by {delivery}", region, expected, bad))
        region = uf.map(Chaos(source, fail=ranges, failures=60), delivery=delivery, **options)
        found.append(Failing(f"healing by {delivery}", region, expected, bad, heals=True))
    region = uf.map(Chaos(made["file"][0], fail=ranges, delay="2ms"), **options)
    found.append(Failing("slow", region, made["file"][1], bad, whole_units=True))
    return found


class Toucher:
    """One thread of it."""

    def __init__(self, subjects: list[Failing], number: int, until: float, seed: int) -> None:
        self.subjects, self.until = subjects, until
        self.random = random.Random(seed * 1000 + number)

    def __call__(self) -> None:
        while time.monotonic() < self.until:
            self.turn(self.random.choice(self.subjects))

    def turn(self, subject: Failing) -> None:
        size = len(subject.expected)
        start = self.random.randrange(size)
        stop = min(size, start + self.random.choice([1, 100, 5000, 70_000]))
        turns = [self.touch, self.touch, self.touch_natively, self.touch_checked, self.read, self.fill, self.drop]
        self.random.choice(turns)(subject, start, stop)

    def touch(self, subject: Failing, start: int, stop: int) -> None:
        self.plain(subject, start, stop, lambda: bytes(memoryview(subject.region)[start:stop]))

    def touch_natively(self, subject: Failing, start: int, stop: int) -> None:
        self.plain(subject, start, stop, lambda: ctypes.string_at(subject.region.address + start, stop - start))

    @staticmethod
    def plain(subject: Failing, start: int, stop: int, copy) -> None:
        try:
            seen = copy()
        except uf.PageError as error:
            return subject.account(error, start, stop)
        return subject.look(start, stop, seen)

    @staticmethod
    def touch_checked(subject: Failing, start: int, stop: int) -> None:
        try:
            with uf.checked(subject.region):
                seen = bytes(memoryview(subject.region)[start:stop])
        except uf.PageError:
            return  # this thread's, or another's
        assert subject.heals or not subject.hits(start, stop), f"{subject.name}: checked() was silent"
        assert seen == subject.expected[start:stop].tobytes(), subject.name

    @staticmethod
    def read(subject: Failing, start: int, stop: int) -> None:
        try:
            seen = subject.region.read(start, stop - start)
        except uf.PageError:
            assert subject.hits_unit(start, stop), f"{subject.name}: read() of pages that can be had"
            return
        assert subject.heals or not subject.hits(start, stop), f"{subject.name}: read() was silent"
        assert seen == subject.expected[start:stop].tobytes(), subject.name

    @staticmethod
    def fill(subject: Failing, start: int, stop: int) -> None:
        try:
            subject.region.populate(slice(start, stop))
        except uf.PageError:
            assert subject.hits_unit(start, stop), f"{subject.name}: populate() of pages that can be had"
            return
        assert subject.heals or not subject.hits(start, stop), f"{subject.name}: populate() was silent"

    def drop(self, subject: Failing, start: int, stop: int) -> None:
        self.random.choice([subject.region.evict, subject.region.prefetch])(slice(start, stop))


def storm_of_failures(unit: int | None, seconds: float, threads: int = 6, seed: int = 3) -> None:
    """Let it blow; then every page that cannot be had raises still, every other one is right, and all is accounted for."""
    length = (19 << 20 if unit is None else 3 << 20) + 4321
    with tempfile.TemporaryDirectory() as folder:
        subjects = failing(Path(folder), unit, length, seed)
        until = time.monotonic() + seconds
        in_threads(*[Toucher(subjects, number, until, seed) for number in range(threads)], seconds=seconds + 60)
        for subject in subjects:
            look_once_more(subject)
        assert sum(subject.raised for subject in subjects) > len(subjects)


def look_once_more(subject: Failing) -> None:
    """By one thread, page by page."""
    ended = check_endings(subject.region)
    assert ended.exposed_pages >= subject.raised, (subject.name, subject.raised, ended)
    assert ended.source_errors > 0, (subject.name, ended)
    assert subject.heals or ended.poisoned > 0, (subject.name, ended)
    for page in range(len(subject.bad)):
        start, stop = page * PAGE, min((page + 1) * PAGE, len(subject.expected))
        copy = lambda start=start, stop=stop: bytes(memoryview(subject.region)[start:stop])  # noqa: E731
        if subject.bad[page] and not subject.heals:
            subject.account(raised(uf.PageError, copy), start, stop)
        elif not subject.may_fail(start, stop):
            assert copy() == subject.expected[start:stop].tobytes(), (subject.name, page)
    check_endings(subject.region)
