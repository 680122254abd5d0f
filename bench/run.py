"""``python -m bench.run``: play the scenarios, save the samples, print the table."""

from __future__ import annotations

import argparse
import json
import mmap
import os
import sys
from pathlib import Path
from typing import Protocol

from bench.counted import ROUNDS, Straced, Wheel, missing
from bench.data import made
from bench.pairs import Against, KernelCalls, Pair, WheelSize
from bench.peers import ROOT, FreshImport, Peer, build_decoders, build_floor
from bench.report import Report, Row
from bench.scenarios import SCENARIOS, SIZES_OF, Calls2014, Imports, Pins, Scenario
from userfault.rivals.figures import take_turns

PAGE = mmap.PAGESIZE
TIMES = ("ns_per_touch", "ns_per_call", "ns", "value")
"""What a round may have measured; it has one of them."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="bench.run", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="scenarios whose names contain one of these; all without")
    parser.add_argument("--rounds", type=int, default=11, help="measured rounds of each side, after one to warm up")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the touches per round")
    parser.add_argument("--cpu", type=int, default=min(os.sched_getaffinity(0)), help="where the touching thread runs")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder for the JSON file")
    parser.add_argument("--realtime", action="store_true", help="let no other process get in between; for busy machines, as root")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    return parser.parse_args(argv)


def chosen(names: list[str]) -> list[Scenario]:
    """The scenarios that were asked for."""
    return [one for one in SCENARIOS if not names or any(name in one.name for name in names)]


class Side(Protocol):
    """Whatever can be told to play a round."""

    def play(self) -> dict[str, float]:
        """Have one round played."""

    def close(self) -> None:
        """Let it end."""


def sides(scenario: Scenario, built: Path, cpu: int) -> tuple[list[Side], Side]:
    """What userfault is compared to, and userfault, ready to play."""
    if isinstance(scenario, Pair):
        return sides_of_pair(scenario, built, cpu)
    if isinstance(scenario, WheelSize):
        return [], Wheel(build=scenario.build)
    if isinstance(scenario, Imports):
        return [FreshImport(scenario.beside)], FreshImport(scenario.beside, scenario.module)
    if isinstance(scenario, Calls2014):
        floor, ours = sides_2014(scenario, built, cpu)
        return [floor], ours
    repeats = 1 if isinstance(scenario, KernelCalls) else scenario.repeats
    floor = [str(built / scenario.floor), str(scenario.units), str(cpu), str(repeats)]
    if isinstance(scenario, Pins):
        return [Peer(floor)], Peer([sys.executable, "-m", "bench.volatile", str(scenario.units), str(cpu), str(scenario.repeats)])
    ours = [sys.executable, "-m", "bench.ours", str(built / "toucher.so"), scenario.delivery]
    if isinstance(scenario, KernelCalls):
        case = case_command(built, scenario.units, cpu, "once", (max(ROUNDS),), (scenario.delivery,))
        return [Straced(floor)], Straced(case)
    return [Peer(floor)], Peer([*ours, scenario.unit, scenario.order, str(scenario.units), str(cpu), str(scenario.repeats)])


def case_command(
    built: Path, count: int, cpu: int, case: str, numbers: tuple[int, ...], words: tuple[str, ...], path: object = ""
) -> list[str]:
    """How a case of `bench.cases` is started."""
    given = {"toucher": built / "toucher.so", "count": count, "cpu": cpu, "numbers": numbers, "words": words, "path": path}
    return [sys.executable, "-m", "bench.cases", case, json.dumps(given, default=str)]


def sides_of_pair(pair: Pair, built: Path, cpu: int) -> tuple[list[Side], Side]:
    """A case, and C programs or the case itself with other numbers."""
    path = made(built / "data", pair.data, pair.count, pair.bytes_each or pair.numbers[0]) if pair.data else ""
    if pair.needs == "zstd":
        build_decoders()

    def case(numbers: tuple[int, ...]) -> Peer:
        return Peer(case_command(built, pair.count, cpu, pair.case, numbers, pair.words, path))

    def other(against: Against) -> Peer:
        numbers = pair.numbers if against.numbers is None else against.numbers
        if against.name == "userfault":
            return case(numbers)
        return Peer([str(part) for part in (built / against.name, pair.count, cpu, *numbers, path) if part != ""])

    started: list[Side] = []
    try:
        started.append(case(pair.numbers))
        for one in () if pair.single else pair.against:
            started.append(other(one))
    except BaseException:
        for side in started:
            side.close()
        raise
    return started[1:], started[0]


def sides_2014(scenario: Calls2014, built: Path, cpu: int) -> tuple[Peer, Peer]:
    """Both sides for the calls of 2014."""
    length, calls = SIZES_OF[scenario.size], scenario.calls
    numbers = [length // PAGE, cpu, 1] if scenario.touches else [length, cpu, calls, int(scenario.huge or scenario.full)]
    ours = ["-m", "bench.ours_2014", built / "toucher.so", scenario.case, length, cpu, calls, int(scenario.huge)]
    return Peer([str(part) for part in (built / scenario.floor, *numbers)]), Peer([sys.executable, *map(str, ours)])


def measure(scenario: Scenario, built: Path, *, rounds: int, cpu: int) -> Row:
    """Play one round to warm up, then `rounds` rounds in turn; who begins changes with every round."""
    others, ours = sides(scenario, built, cpu)
    everybody = [*others, ours]
    try:
        answers = take_turns(everybody, lambda side, _: side.play(), rounds)
    finally:
        for side in everybody:
            side.close()
    for results in zip(*answers, strict=True):
        if len({result.get("sum") for result in results}) != 1:
            raise RuntimeError(f"{scenario.name}: the sides saw different bytes")
    samples = [[time_of(one) for one in side] for side in answers]
    floor = [one["floor"] for one in answers[-1] if "floor" in one]
    compared = samples[:-1] or ([floor] if floor else [])
    return Row(scenario, compared[0] if compared else [], samples[-1], compared[1:])


def time_of(result: dict[str, float]) -> float:
    """What a round measured, in the scenario's unit."""
    return next(result[key] for key in TIMES if key in result)


def main(argv: list[str] | None = None) -> int:
    """Run; the status is 1 if a bar was missed or a row could not be played to its end."""
    options = arguments(argv)
    scenarios = [one.scaled(options.scale) for one in chosen(options.names)]
    if options.list or not scenarios:
        print("\n".join(one.name for one in scenarios or SCENARIOS))
        return 0 if options.list else 2
    built = build_floor()
    if options.realtime:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))  # all that is started from here inherits it
    rows, failed = [], False
    for scenario in scenarios:
        if reason := missing(getattr(scenario, "needs", "")):
            print(f"{scenario.name}: skipped: {reason}", file=sys.stderr)
            continue
        print(f"{scenario.name} ...", file=sys.stderr)
        try:
            rows.append(measure(scenario, built, rounds=options.rounds, cpu=options.cpu))
        except RuntimeError as error:
            failed = True
            print(f"{scenario.name}: failed: {error}", file=sys.stderr)
    report = Report(rows)
    print(report.table())
    print(f"samples: {os.path.relpath(report.save(options.out))}", file=sys.stderr)
    return 0 if all(row.within_bar for row in rows) and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
