"""Results as data, and as a table."""

from __future__ import annotations

import json
import statistics
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.peers import ROOT
from bench.scenarios import Imports, Scenario, from_data, to_data
from userfault.rivals.figures import quartiles
from userfault.rivals.machine import describe_machine


@dataclass(frozen=True)
class Row:
    """A scenario and its samples: nanoseconds per touch, call or process; round i of both sides was played in turn."""

    scenario: Scenario
    floor: list[float]
    ours: list[float]

    @property
    def ratio(self) -> float:
        """Median of the rounds' ratios: each round is compared with its own neighbour in time."""
        return statistics.median(ours / floor for floor, ours in zip(self.floor, self.ours, strict=True))

    @property
    def difference(self) -> float:
        """Median of the rounds' differences, in nanoseconds."""
        return statistics.median(ours - floor for floor, ours in zip(self.floor, self.ours, strict=True))

    @property
    def within_bar(self) -> bool:
        """Whether we are as good as we want to be."""
        if isinstance(self.scenario, Imports):
            return self.difference <= self.scenario.bar_ms * 1e6
        if self.scenario.bar is None:
            return statistics.median(self.ours) <= self.scenario.bar_us * 1e3
        return self.ratio <= self.scenario.bar


@dataclass(frozen=True)
class Report:
    """All rows of one run, and where they were measured."""

    rows: list[Row]
    machine: dict[str, Any] = field(default_factory=describe_machine)
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
        lines = [f"{'scenario':36} {'C':>24} {'userfault':>24} {'ratio':>7}  bar"]
        lines += [line_of(row) for row in self.rows]
        machine = self.machine
        rounds = len(self.rows[0].ours) if self.rows else 0
        lines.append(f"\nmedian (quartiles) of {rounds} paired rounds; ratio: median of the pairs")
        lines.append(f"{machine['cpus']} CPUs, {machine['cpu']}, Linux {machine['kernel']}, revision {self.revision}")
        return "\n".join(lines)


def line_of(row: Row) -> str:
    """One line of the table."""
    scenario = row.scenario
    if isinstance(scenario, Imports):
        compared, bar = f"{row.difference / 1e6:+5.0f}ms", f"<= +{scenario.bar_ms:.0f} ms"
    else:
        compared = f"{row.ratio:6.2f}x"
        bar = f"<= {scenario.bar}x" if scenario.bar is not None else f"<= {scenario.bar_us:.0f} us"
    verdict = "" if row.within_bar else "  MISSED"
    return f"{scenario.name:36} {spread(row.floor):>24} {spread(row.ours):>24} {compared}  {bar}{verdict}"


def spread(samples: list[float]) -> str:
    """``6.2 us (6.1-6.4)``."""
    low, middle, high = quartiles(samples)
    scale, unit = (1e6, "ms") if middle >= 1e6 else (1e3, "us") if middle >= 1e3 else (1, "ns")
    return f"{middle / scale:.1f} {unit} ({low / scale:.1f}-{high / scale:.1f})"


def describe_revision() -> str:
    """The commit, with a mark if something is not committed."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
