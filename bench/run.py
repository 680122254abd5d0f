"""``python -m bench.run``: play the scenarios, save the samples, print the table."""

from __future__ import annotations

import argparse
import mmap
import os
import sys
from pathlib import Path

from bench.peers import ROOT, FreshImport, Peer, build_floor
from bench.report import Report, Row
from bench.scenarios import SCENARIOS, SIZES_OF, Calls2014, Imports, Pins, Scenario
from userfault.rivals.figures import take_turns

PAGE = mmap.PAGESIZE
TIMES = ("ns_per_touch", "ns_per_call", "ns")
"""What a round may have measured; it has one of them."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="bench.run", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="scenarios whose names contain one of these; all without")
    parser.add_argument("--rounds", type=int, default=11, help="measured rounds of each side, after one to warm up")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the touches per round")
    parser.add_argument("--cpu", type=int, default=min(os.sched_getaffinity(0)), help="where the touching thread runs")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder for the JSON file")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    return parser.parse_args(argv)


def chosen(names: list[str]) -> list[Scenario]:
    """The scenarios that were asked for."""
    return [one for one in SCENARIOS if not names or any(name in one.name for name in names)]


def sides(scenario: Scenario, built: Path, cpu: int) -> tuple[Peer | FreshImport, Peer | FreshImport]:
    """The baseline and userfault, ready to play."""
    if isinstance(scenario, Imports):
        return FreshImport(scenario.beside), FreshImport(scenario.beside, scenario.module)
    if isinstance(scenario, Calls2014):
        return sides_2014(scenario, built, cpu)
    floor = [str(built / scenario.floor), str(scenario.units), str(cpu), str(scenario.repeats)]
    if isinstance(scenario, Pins):
        return Peer(floor), Peer([sys.executable, "-m", "bench.volatile", str(scenario.units), str(cpu), str(scenario.repeats)])
    ours = [sys.executable, "-m", "bench.ours", str(built / "toucher.so"), scenario.delivery, scenario.unit]
    return Peer(floor), Peer([*ours, scenario.order, str(scenario.units), str(cpu), str(scenario.repeats)])


def sides_2014(scenario: Calls2014, built: Path, cpu: int) -> tuple[Peer, Peer]:
    """Both sides for the calls of 2014."""
    length, calls = SIZES_OF[scenario.size], scenario.calls
    numbers = [length // PAGE, cpu, 1] if scenario.touches else [length, cpu, calls, int(scenario.huge or scenario.full)]
    ours = ["-m", "bench.ours_2014", built / "toucher.so", scenario.case, length, cpu, calls, int(scenario.huge)]
    return Peer([str(part) for part in (built / scenario.floor, *numbers)]), Peer([sys.executable, *map(str, ours)])


def measure(scenario: Scenario, built: Path, *, rounds: int, cpu: int) -> Row:
    """Play one round to warm up, then `rounds` rounds in turn; who begins changes with every round."""
    floor, ours = sides(scenario, built, cpu)
    try:
        answers = take_turns((floor, ours), lambda side, _: side.play(), rounds)
    finally:
        floor.close()
        ours.close()
    for theirs, mine in zip(*answers, strict=True):
        if theirs.get("sum") != mine.get("sum"):
            raise RuntimeError(f"{scenario.name}: the two sides saw different bytes")
    return Row(scenario, *([time_of(one) for one in side] for side in answers))


def time_of(result: dict[str, float]) -> float:
    """What a round measured, in nanoseconds."""
    return next(result[key] for key in TIMES if key in result)


def main(argv: list[str] | None = None) -> int:
    """Run; the status is 1 if a bar was missed."""
    options = arguments(argv)
    scenarios = [one.scaled(options.scale) for one in chosen(options.names)]
    if options.list or not scenarios:
        print("\n".join(one.name for one in scenarios or SCENARIOS))
        return 0 if options.list else 2
    built = build_floor()
    rows = []
    for scenario in scenarios:
        print(f"{scenario.name} ...", file=sys.stderr)
        rows.append(measure(scenario, built, rounds=options.rounds, cpu=options.cpu))
    report = Report(rows)
    print(report.table())
    print(f"samples: {os.path.relpath(report.save(options.out))}", file=sys.stderr)
    return 0 if all(row.within_bar for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
