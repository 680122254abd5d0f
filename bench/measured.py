"""``python -m bench.measured RESULTS.json``: have README.md say what a run of ``userfault bench --report`` measured.

The sentences stand between two marks and are never written by hand: `bench/rivals.json` is the run they were made of, and a
test compares.
"""

from __future__ import annotations

import sys
import textwrap
from dataclasses import replace
from pathlib import Path

from userfault.rivals.results import Results
from userfault.rivals.verdicts import when_not_to_use_it
from userfault.units import format_bytes

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
KEPT = ROOT / "bench" / "rivals.json"
BEGIN, END = "<!-- measured: python -m bench.measured -->\n", "<!-- end -->\n"


def paragraph(results: Results) -> str:
    """What README says."""
    machine = results.machine
    where = f"{machine['cpus']} CPUs, Linux {machine['kernel']}, {format_bytes(results.size)} of float32"
    head = f"Where another way wins ({where}, medians of {results.rounds} rounds; `userfault bench --report DIR` for yours):\n"
    lines = (textwrap.fill(f"- {line}", 120, subsequent_indent="  ") for line in when_not_to_use_it(results))
    return "\n".join([head, *lines, ""])


def with_paragraph(page: str, results: Results) -> str:
    """The page with what stands between the marks replaced."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END, 1)
    return before + BEGIN + "\n" + paragraph(results) + "\n" + END + after


def main(source: str) -> None:
    """Keep the run and write the page."""
    results = Results.load(source)
    release = results.machine["kernel"].split("-")[0]  # the rest names somebody's build
    results = replace(results, machine={**results.machine, "kernel": release})
    results.save(KEPT)
    README.write_text(with_paragraph(README.read_text(), results))


if __name__ == "__main__":
    main(*sys.argv[1:])
