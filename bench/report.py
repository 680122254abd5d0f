"""Results as data, and as a table."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from bench.pairs import KernelCalls, Pair, WheelSize
from bench.peers import ROOT
from bench.scenarios import Imports, Scenario, from_data, to_data
from userfault.rivals.figures import quartiles
from userfault.rivals.machine import describe_machine


@dataclass(frozen=True)
class Compared:
    """One line of the table: userfault beside one thing, judged by one bar."""

    name: str
    samples: list[float]
    ratio: str
    bar: str
    ok: bool


@dataclass(frozen=True)
class Row:
    """A scenario and its samples: nanoseconds per touch, call or process; round i of all sides was played in turn.

    Attributes:
        scenario: what was played.
        floor: of the baseline; empty where there is none.
        ours: of userfault.
        others: of further baselines.
    """

    scenario: Scenario
    floor: list[float]
    ours: list[float]
    others: list[list[float]] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Median of the rounds' ratios: each round is compared with its own neighbour in time."""
        return ratio_of(self.ours, self.floor)

    @property
    def difference(self) -> float:
        """Median of the rounds' differences, in nanoseconds."""
        return statistics.median(ours - floor for floor, ours in zip(self.floor, self.ours, strict=True))

    @property
    def within_bar(self) -> bool:
        """Whether we are as good as we want to be."""
        return all(one.ok for one in self.compared())

    def compared(self) -> list[Compared]:
        """What this row is judged by."""
        scenario, median = self.scenario, statistics.median(self.ours)
        if isinstance(scenario, Pair):
            return compared_pair(self, scenario)
        if isinstance(scenario, WheelSize):
            return [Compared("", [], "", f"<= {scenario.limit:g} MB", median <= scenario.limit)]
        if isinstance(scenario, KernelCalls):
            bar = f"<= {scenario.at_most}x"
            return [Compared("C", self.floor, f"{self.ratio:.2f}x", bar, self.ratio <= scenario.at_most)]
        if isinstance(scenario, Imports):
            ok, bar = self.difference <= scenario.bar_ms * 1e6, f"<= +{scenario.bar_ms:.0f} ms"
            return [Compared("C", self.floor, f"{self.difference / 1e6:+.0f}ms", bar, ok)]
        if scenario.bar is None:
            ok, bar = median <= scenario.bar_us * 1e3, f"<= {scenario.bar_us:.0f} us"
        else:
            ok, bar = self.ratio <= scenario.bar, f"<= {scenario.bar}x"
        return [Compared("C", self.floor, f"{self.ratio:.2f}x", bar, ok)]


def ratio_of(ours: list[float], floor: list[float]) -> float:
    """Median of the pairs' ratios."""
    return statistics.median(own / other if other else math.inf for own, other in zip(ours, floor, strict=True))


def compared_pair(row: Row, pair: Pair) -> list[Compared]:
    """A line for each thing that userfault is compared to, and one for a bar without any."""
    compared = []
    for against, samples in zip(pair.against, [row.floor, *row.others] if row.floor else [], strict=True):
        ratio, faster = ratio_of(row.ours, samples), ratio_of(samples, row.ours)
        if against.at_least is not None:
            line = f"{faster:.2f}x", f">= {against.at_least}x speed", faster >= against.at_least
        elif against.at_most is not None:
            line = f"{ratio:.2f}x", f"<= {against.at_most}x", ratio <= against.at_most
        else:
            line = f"{ratio:.2f}x", "", True
        compared.append(Compared(against.label, samples, *line))
    median = statistics.median(row.ours)
    if pair.limit is not None:
        scale, unit = scaled(pair.limit, pair.unit)
        compared.append(Compared("", [], "", f"<= {pair.limit / scale:g} {unit}", median <= pair.limit))
    if pair.least_gbps is not None:
        speed = pair.bytes_each / median
        compared.append(Compared("", [], f"{speed:.1f}", f">= {pair.least_gbps:g} GB/s", speed >= pair.least_gbps))
    return compared


@dataclass(frozen=True)
class Report:
    """All rows of one run, and where they were measured."""

    rows: list[Row]
    machine: dict[str, Any] = field(default_factory=lambda: describe_machine() | describe_moment())
    revision: str = field(default_factory=lambda: describe_revision())
    at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def to_data(self) -> dict[str, Any]:
        """As JSON takes it."""
        rows = [{**asdict(row), "scenario": to_data(row.scenario)} for row in self.rows]
        return {"schema": 1, "at": self.at, "revision": self.revision, "machine": self.machine, "rows": rows}

    @staticmethod
    def from_data(data: dict[str, Any]) -> Report:
        """The opposite of `to_data`."""
        rows = [Row(**{**row, "scenario": from_data(row["scenario"])}) for row in data["rows"]]
        return Report(rows, data["machine"], data["revision"], data["at"])

    def save(self, folder: Path) -> Path:
        """Write a file named after the time and the revision."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.at.replace(':', '')}-{self.revision}.json"
        path.write_text(json.dumps(self.to_data(), indent=1) + "\n")
        return path

    def table(self) -> str:
        """For people: medians with their quartiles, and the ratio of the pairs."""
        lines = [f"{'scenario':34} {'beside':>22} {'userfault':>22} {'ratio':>7}  bar"]
        lines += [line for row in self.rows for line in lines_of(row)]
        machine = self.machine
        rounds = len(self.rows[0].ours) if self.rows else 0
        lines.append(f"\nmedian (quartiles) of {rounds} paired rounds; ratio: median of the pairs")
        lines.append(f"{machine['cpus']} CPUs, {machine['cpu']}, Linux {machine['kernel']}, revision {self.revision}")
        how = ", all at real-time priority" if machine.get("realtime") else ""
        lines.append(f"load average {machine.get('load', '?')}, this bench included{how}")
        return "\n".join(lines)


def lines_of(row: Row) -> list[str]:
    """A line of the table for each thing compared; only the first has the row's own name and numbers."""
    scenario, lines = row.scenario, []
    show = partial(spread, unit=unit_of(scenario), bytes_each=getattr(scenario, "bytes_each", 0))
    for number, one in enumerate(row.compared()):
        name = scenario.name if number == 0 else f"  beside {one.name}" if one.name else ""
        ours = show(row.ours) if number == 0 else ""
        verdict = "" if one.ok else "  MISSED"
        beside = show(one.samples) if one.samples else ""
        lines.append(f"{name:34} {beside:>22} {ours:>22} {one.ratio:>7}  {one.bar}{verdict}")
    return lines


def unit_of(scenario: Scenario) -> str:
    """Of its samples."""
    return scenario.unit if isinstance(scenario, Pair | KernelCalls | WheelSize) else "ns"


def spread(samples: list[float], unit: str = "ns", bytes_each: int = 0) -> str:
    """``6.2 us (6.1-6.4)``; of ``bytes_each`` bytes each: ``3.1 GB/s (3.0-3.2)``."""
    if bytes_each:
        samples, unit = [bytes_each / one for one in samples], "GB/s"
    low, middle, high = quartiles(samples)
    scale, unit = scaled(middle, unit)
    digits = 1 if scale > 1 or unit == "ns" else 2
    low, middle, high = (f"{one / scale:.{digits}f}" for one in (low, middle, high))
    return f"{middle} {unit} ({low}-{high})"


def scaled(value: float, unit: str) -> tuple[float, str]:
    """By what to divide nanoseconds for people, and what that is; other units stay."""
    if unit != "ns":
        return 1.0, unit
    return (1e6, "ms") if value >= 1e6 else (1e3, "us") if value >= 1e3 else (1.0, "ns")


def describe_moment() -> dict[str, Any]:
    """What else the machine did meanwhile, and who came first."""
    return {"realtime": os.sched_getscheduler(0) == os.SCHED_RR, "load": round(os.getloadavg()[0], 1)}


def describe_revision() -> str:
    """The commit, with a mark if something is not committed: a new file too."""

    def git(*command: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=False).stdout.strip()

    return (git("describe", "--always") + ("-dirty" if git("status", "--porcelain") else "")) or "unknown"
