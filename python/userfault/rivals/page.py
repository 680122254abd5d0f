"""One page with everything: tables, bars, lines, verdicts. It loads nothing, and follows the reader's light or dark."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from userfault.rivals import plots
from userfault.rivals.contenders import CONTENDERS, GROUPS, MEASURES, Contender, Measure
from userfault.rivals.figures import shown
from userfault.rivals.results import Cell, Results, ScaleCell
from userfault.rivals.verdicts import Verdict, fault_verdict, least_of, verdict, when_not_to_use_it
from userfault.units import format_bytes

TEMPLATE = Path(__file__).with_name("page.html")


def write_report(results: Results, folder: str | os.PathLike[str], contenders: Sequence[Contender] = CONTENDERS) -> Path:
    """Write ``index.html`` and ``results.json`` into a folder, which is made if need be; return the page.

    Raises:
        OSError: it cannot be written.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    results.save(place / "results.json")
    page = place / "index.html"
    page.write_text(page_of(results, contenders))
    return page


def page_of(results: Results, contenders: Sequence[Contender] = CONTENDERS) -> str:
    """The page."""
    machine = results.machine
    about = "".join(f"<li><strong>{escape(one.title)}</strong>: {escape(one.about)}.</li>" for one in MEASURES)
    where = (
        f"{machine['cpus']} CPUs ({machine['cpu']}), {format_bytes(machine['memory_bytes'])} of memory, Linux {machine['kernel']}"
    )
    links = [(one.key, one.title) for one in MEASURES]
    elsewhere = when_not_to_use_it(results, contenders) or ["No rival read or scanned quicker in its group."]
    return Template(TEMPLATE.read_text()).substitute(
        intro=f"{format_bytes(results.size)} of float32, kept and read in different ways: medians, less is better. "
        f"Rounds: {results.rounds}.",
        machine=escape(f"{results.at}, {where}, load {machine['load']:.1f} when it began, Python {machine['python']}"),
        versions=escape(", ".join(f"{name} {number or 'not installed'}" for name, number in results.versions.items())),
        errors="".join(f'<p class="error">Error: {escape(one)}</p>' for one in results.errors),
        contents="".join(f'<a href="#{key}">{escape(title)}</a>' for key, title in [*links, ("fault", "one fault")]),
        elsewhere="".join(f'<p class="verdict rival">{escape(one)}</p>' for one in elsewhere),
        measures="".join(section(results, measure, contenders) for measure in MEASURES),
        plots=scale_plots(results.scale),
        fault_verdict=escape(fault_verdict(results.scale)),
        scale=scale_table(results.scale),
        about=about,
    )


def section(results: Results, measure: Measure, contenders: Sequence[Contender]) -> str:
    """One measure: a table for each group."""
    cells = [results.cell(one.name, measure.key) for one in contenders]
    values = [value for cell in cells if cell and cell.quartiles for value in cell.quartiles]
    draw = plots.LinearScale if measure.unit == "bytes" else plots.LogScale
    scale = draw(values) if values else None
    tables = []
    for group, title in GROUPS.items():
        members = [one for one in contenders if one.group == group]
        if members:
            judged = verdict(results, measure, group, contenders)
            rows = "".join(row(one, results.cell(one.name, measure.key), measure, scale, judged) for one in members)
            tables.append(f"<div><h3>{escape(title)}</h3><table>{rows}</table>{said(judged)}</div>")
    head = f'<h2 id="{measure.key}">{escape(measure.title.capitalize())}</h2><p class="soft">{escape(measure.about)}</p>'
    return f'{head}<div class="groups">{"".join(tables)}</div>'


def row(
    one: Contender, cell: Cell | None, measure: Measure, scale: plots.LogScale | plots.LinearScale | None, judged: Verdict | None
) -> str:
    """One contender: its number and its bar, or the reason why it has none."""
    ours = "ours" if one.family == "userfault" else "theirs"
    if cell is None or cell.quartiles is None or scale is None:
        reason = cell.reason if cell and cell.reason else "not measured"
        style = "reason wrong" if cell and cell.wrong else "reason"
        name = f'<td class="name">{escape(one.name)}</td>'
        return f'<tr class="{ours}">{name}<td class="{style}" colspan="2">{escape(reason)}</td></tr>'
    best = judged is not None and judged.best is one
    star = " &#9733;" if best else ""
    low, middle, high = (shown(value, measure.unit) for value in cell.quartiles)
    bar = plots.bar(cell.quartiles, scale)
    return (
        f'<tr class="{ours}{" best" if best else ""}"><td class="name">{escape(one.name)}{star}</td>'
        f'<td class="number" title="quartiles: {low} to {high}">{middle}</td><td class="plot">{bar}</td></tr>'
    )


def said(judged: Verdict | None) -> str:
    """The verdict below a table."""
    return f'<p class="verdict {judged.outcome}">{escape(judged.sentence)}</p>' if judged else ""


def scale_plots(cells: list[ScaleCell]) -> str:
    """By span with one thread, and by threads over the greatest span."""
    if not cells:
        return "<p>Not measured.</p>"
    span = max(cell.span for cell in cells)
    alone = [cell for cell in cells if cell.threads == 1]
    widest = [cell for cell in cells if cell.span == span]
    by_span = plots.series_of(cells, alone, {id(cell): format_bytes(cell.span) for cell in alone})
    by_threads = plots.series_of(cells, widest, {id(cell): str(cell.threads) for cell in widest})
    title = f"By number of threads, over {format_bytes(span)}"
    return plots.lines("By span, one thread", by_span, "bytes of the range") + plots.lines(title, by_threads, "threads")


def scale_table(cells: list[ScaleCell]) -> str:
    """All of them: a line for each contender and span, a column for each number of threads."""
    threads = sorted({cell.threads for cell in cells})
    head = "".join(f"<th>{number} thread{'s' if number > 1 else ''}</th>" for number in threads)
    names, spans = (list(dict.fromkeys(getattr(cell, what) for cell in cells)) for what in ("contender", "span"))
    found = {(cell.contender, cell.span, cell.threads): cell for cell in cells}
    least = least_of(cells)
    lines = []
    for name in names:
        for span in spans:
            columns = "".join(f"<td>{scale_number(found.get((name, span, number)), least)}</td>" for number in threads)
            lines.append(f"<tr><td>{escape(name)}, over {format_bytes(span)}</td>{columns}</tr>")
    return f"<table><tr><th>one fault</th>{head}</tr>{''.join(lines)}</table>"


def scale_number(cell: ScaleCell | None, least: list[ScaleCell]) -> str:
    """A median with its quartiles, marked if it is one of the least, or a reason."""
    if cell is None or cell.quartiles is None:
        return f'<span class="reason">{escape((cell and cell.reason) or "not measured")}</span>'
    low, middle, high = (shown(value, "seconds") for value in cell.quartiles)
    star = "&#9733; " if any(cell is one for one in least) else ""
    return f'{star}{middle}<br><span class="soft">{low} to {high}</span>'
