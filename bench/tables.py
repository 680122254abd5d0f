"""``python -m bench.tables [RESULTS.json]``: have the tables of the docs say what a run of ``python -m bench.run`` measured.

A table stands between two marks and is never written by hand: `bench/speed.json` is the run they were made of, and a test
compares.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.report import Report, Row, spread, unit_of

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "bench" / "speed.json"
END = "<!-- end -->\n"


@dataclass(frozen=True)
class Table:
    """One table of a page.

    Attributes:
        page: its file.
        mark: the name in the mark before it.
        what: head of the first column.
        rows: what people call a scenario, by its name; a second label is for the second thing that it is compared to.
        judged: show the ratio and the bar, as the run printed them.
        more: rows that nothing measures.
    """

    page: str
    mark: str
    what: str
    rows: dict[str, tuple[str, ...]]
    judged: bool = False
    more: tuple[str, ...] = ()

    @property
    def begin(self) -> str:
        """The mark."""
        return f"<!-- {self.mark}: python -m bench.tables -->\n"


TABLES = (
    Table(
        "README.md",
        "touches",
        "an absent page is touched",
        {
            "touch-4KiB-random-signal": ('4 KiB, `delivery="signal"`',),
            "touch-4KiB-random-thread": ('4 KiB, `delivery="thread"` (default)',),
            "called-4KiB-signal": ('4 KiB, a source in Python, `delivery="signal"`',),
            "called-4KiB-thread": ('4 KiB, a source in Python, `delivery="thread"`',),
            "called-4KiB-process": ('4 KiB, a source in Python, `delivery="process"`; beside a ctypes handler process',),
            "flagged-source": ("4 KiB, flagged, a source behind `mman.on_sigbus`",),
            "flagged-callable": ("4 KiB, flagged, a Python function that moves a page in",),
            "descriptor-thread": ("4 KiB, registered, a Python thread serves it, the toucher holding the GIL; up to 150 us",),
        },
        more=("| a present page | | nothing: it is memory |",),
    ),
    Table(
        "docs/proposal-2014.md",
        "calls",
        "",
        {
            "remap-64KiB": ("`remap_anon_pages`, 64 KiB",),
            "remap-2MiB": ("`remap_anon_pages`, 2 MiB in small pages",),
            "remap-2MiB-thp": ("`remap_anon_pages`, one huge page of 2 MiB",),
            "flag-1GiB": ("`madvise`: flag 1 GiB of pages that are there, or clear it; beside a register",),
            "switch-64GiB": ("`register`, `unregister`: 64 GiB of holes change owner; beside a register",),
        },
    ),
    Table(
        "docs/speed.md",
        "speed",
        "",
        {
            "touch-4KiB-random-signal": ("4 KiB at random, signal",),
            "touch-4KiB-random-thread": ("4 KiB at random, thread",),
            "think-0us-thread": (
                "no work between touches, nobody pinned",
                "beside the usual handler with poll()",
            ),
            "think-20us-thread": ("20 us of work between touches, nobody pinned", "beside the usual handler with poll()"),
            "think-100us-thread": ("100 us of work between touches", "beside the usual handler with poll()"),
            "think-1000us-thread": ("1 ms of work between touches", "beside the usual handler with poll()"),
            "several-2-signal": ("two threads, a region each, signal",),
            "several-2-thread": ("two threads, a region each, thread",),
            "several-3-thread": ("three threads, a region each, thread",),
            "several-4-signal": ("four threads, a region each, signal",),
            "several-4-thread": ("four threads, a region each, thread",),
            "two-threads-4KiB-thread": ("two threads share a region of 4 KiB units, thread; beside one", "beside two of C"),
            "two-threads-4KiB-signal": ("two threads share a region of 4 KiB units, signal; beside one", "beside two of C"),
            "two-threads-64KiB-signal": ("two threads share a region of 64 KiB units, signal; beside one", "beside two of C"),
            "two-threads-64KiB-thread": ("two threads share a region of 64 KiB units, thread; beside one",),
            "recycle-64KiB-random-signal": ("64 KiB at random, a quarter may stay, signal",),
            "recycle-64KiB-random-thread": ("64 KiB at random, a quarter may stay, thread",),
            "recycle-2MiB-sequential-signal": ("huge pages in a row, a quarter may stay, signal",),
            "recycle-2MiB-sequential-thread": ("huge pages in a row, a quarter may stay, thread",),
            "touch-2MiB-sequential-signal": ("huge pages in a row, signal",),
            "touch-2MiB-sequential-thread": ("huge pages in a row, thread",),
            "kernel-calls-signal": ("calls of the kernel for a touch, signal",),
            "kernel-calls-thread": ("calls of the kernel for a touch, thread",),
            "crowd-10000-signal": ("random touches in 10,000 regions, signal; beside one region",),
            "crowd-10000-thread": ("random touches in 10,000 regions, thread; beside one region",),
            "zeros-signal": ("zeros of an image, by huge pages, signal",),
            "zeros-thread": ("zeros of an image, by huge pages, thread",),
            "present-2MiB": ("memory that is there; beside ordinary memory",),
            "volatile-pin": ("pin and unpin 64 MiB",),
            "image-64KiB-random-signal": ("random 4 KiB of an image, frames of 64 KiB, signal",),
            "image-64KiB-random-thread": ("random 4 KiB of an image, frames of 64 KiB, thread",),
            "scan-256KiB-one-cpu": ("scan of an image, `huge=True`, frames of 256 KiB, one CPU",),
            "scan-256KiB-ahead": ("the same, read ahead on the other CPU",),
            "scan-256KiB-units-one-cpu": ("the same in units of a frame, one CPU",),
            "scan-256KiB-units-ahead": ("the same in units of a frame, read ahead on the other CPU",),
            "scan-2048KiB-one-cpu": ("scan of an image, `huge=True`, frames of 2 MiB, one CPU",),
            "scan-2048KiB-ahead": ("the same, read ahead on the other CPU",),
            "prefetch-2MiB": ("prefetch by huge pages, on both CPUs; beside one pread on one",),
            "object-256KiB": ("256 KiB of an object, beside obstore itself",),
            "away-4KiB": ("a native source in a pager, 4 KiB; beside COPY in this process",),
            "away-64KiB": ("the same, 64 KiB",),
            "away-256KiB": ("the same, 256 KiB; beside MOVE in this process",),
            "away-2MiB": ("the same, 2 MiB; beside MOVE in this process",),
            "import-userfault-over-numpy": ("import; beside numpy alone",),
            "pager-start": ("from no pager to its first byte; beside an empty Python",),
        },
        judged=True,
    ),
)


def middle(row: Row, samples: list[float]) -> str:
    """A median, for people."""
    shown = spread(samples, unit_of(row.scenario), getattr(row.scenario, "bytes_each", 0))
    return shown.partition(" (")[0].replace("e+00", "")


def lines_of(table: Table, rows: dict[str, Row]) -> list[str]:
    """The table as Markdown."""
    head = ["| " + table.what + " | C | userfault |" + (" | asked for |" if table.judged else "")]
    head.append("|---|---|---|" + ("---|---|" if table.judged else ""))
    body = []
    for name, labels in table.rows.items():
        row = rows[name]
        compared = [one for one in row.compared() if one.samples]
        for number, (label, one) in enumerate(zip(labels, compared, strict=False)):
            ours = middle(row, row.ours) if number == 0 else ""
            missed = "" if one.ok else ": missed"
            judged = f" {one.ratio} | {one.bar}{missed} |" if table.judged else ""
            body.append(f"| {label} | {middle(row, one.samples)} | {ours} |{judged}")
    return [*head, *body, *table.more]


def with_table(page: str, table: Table, report: Report) -> str:
    """The page with what stands between the marks replaced."""
    before, rest = page.split(table.begin)
    _, after = rest.split(END, 1)
    rows = {row.scenario.name: row for row in report.rows}
    return before + table.begin + "\n" + "\n".join(lines_of(table, rows)) + "\n\n" + END + after


def main(*source: str) -> None:
    """Keep the results, if other ones are given, and write the tables."""
    if source:
        results = json.loads(Path(source[0]).read_text())
        results["machine"]["kernel"] = results["machine"]["kernel"].split("-")[0]  # the rest names somebody's build
        KEPT.write_text(json.dumps(results, indent=1) + "\n")
    report = Report.from_data(json.loads(KEPT.read_text()))
    for table in TABLES:
        path = ROOT / table.page
        path.write_text(with_table(path.read_text(), table, report))


if __name__ == "__main__":
    main(*sys.argv[1:])
