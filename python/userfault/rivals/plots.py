"""Bars and lines, drawn by hand as HTML and SVG: nothing to load, and they take the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from userfault.rivals.figures import shown
from userfault.rivals.results import ScaleCell

WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 38
CLASSES = 4
"""How many lines the style sheet tells apart."""

Quartiles = tuple[float, float, float]


class LogScale:
    """Places values between 0 and 1, the least and the greatest a little away from the ends.

    Args:
        values: what has to fit, all above 0.
    """

    def __init__(self, values: Sequence[float]) -> None:
        self.low = math.log10(min(values)) - 0.25
        self.high = math.log10(max(values)) + 0.05

    def place(self, value: float) -> float:
        """Where a value lies."""
        return min(max((math.log10(value) - self.low) / (self.high - self.low), 0.0), 1.0)

    @property
    def ticks(self) -> list[float]:
        """Round values within: powers of ten, with 2 and 5 between where there are few."""
        steps = (1,) if self.high - self.low > 2 else (1, 2, 5)
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        values = [step * 10.0**power for power in powers for step in steps]
        return [one for one in values if self.low <= math.log10(one) <= self.high]


class LinearScale:
    """Places values between 0 and 1, in proportion.

    Args:
        values: what has to fit.
    """

    def __init__(self, values: Sequence[float]) -> None:
        self.high = max(values)

    def place(self, value: float) -> float:
        """Where a value lies."""
        return value / self.high


def bar(quartiles: Quartiles, scale: LogScale | LinearScale) -> str:
    """A bar to the median, and a line over the quartiles."""
    low, middle, high = (scale.place(one) * 100 for one in quartiles)
    spread = f'<b style="left:{low:.1f}%;width:{high - low:.1f}%"></b>'
    return f'<div class="bar" aria-hidden="true"><i style="width:{middle:.1f}%"></i>{spread}</div>'


def lines(title: str, series: dict[str, list[tuple[str, Quartiles]]], below: str) -> str:
    """A figure with one line for each name; all have the same labels below.

    Args:
        title: what is shown.
        series: name -> (label below, quartiles of seconds) from left to right.
        below: what the labels mean.
    """
    values = [value for points in series.values() for _, quartiles in points for value in quartiles]
    if not values:
        return f"<figure><h3>{escape(title)}</h3><p>Nothing could be measured.</p></figure>"
    scale = LogScale(values)
    labels = list(dict.fromkeys(label for points in series.values() for label, _ in points))
    step = (WIDTH - LEFT - RIGHT) / len(labels)
    across = {label: LEFT + (number + 0.5) * step for number, label in enumerate(labels)}
    parts = [_grid(scale, across, below)]
    for number, points in enumerate(series.values()):
        parts.append(_line([(across[label], quartiles) for label, quartiles in points], scale, f"c{number % CLASSES}"))
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f"<figure><h3>{escape(title)}</h3>{picture}{_key(list(series))}</figure>"


def up(scale: LogScale, value: float) -> float:
    """How far down a value lies in the picture."""
    return TOP + (1 - scale.place(value)) * (HEIGHT - TOP - BOTTOM)


def _grid(scale: LogScale, across: dict[str, float], below: str) -> str:
    parts = []
    for tick in scale.ticks:
        y = up(scale, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{shown(tick, "seconds")}</text>')
    for label, x in across.items():
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{escape(label)}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">{escape(below)}</text>')
    return "".join(parts)


def _line(points: list[tuple[float, Quartiles]], scale: LogScale, style: str) -> str:
    path = " ".join(f"{x:.1f},{up(scale, middle):.1f}" for x, (_, middle, _) in points)
    parts = [f'<polyline class="line {style}" points="{path}"/>']
    for x, (low, middle, high) in points:
        parts.append(
            f'<line class="spread {style}" x1="{x:.1f}" x2="{x:.1f}" y1="{up(scale, low):.1f}" y2="{up(scale, high):.1f}"/>'
        )
        parts.append(f'<circle class="{style}" cx="{x:.1f}" cy="{up(scale, middle):.1f}" r="3.5"/>')
    return "".join(parts)


def _key(names: list[str]) -> str:
    parts = []
    for number, name in enumerate(names):
        sample = f'<line class="line c{number % CLASSES}" x1="0" x2="30" y1="6" y2="6"/>'
        parts.append(
            f'<svg viewBox="0 0 30 12" style="width:30px;height:12px" aria-hidden="true">{sample}</svg> {escape(name)}<br>'
        )
    return f'<p class="soft">{"".join(parts)}</p>'


def series_of(cells: list[ScaleCell], chosen: list[ScaleCell], label: dict[int, str]) -> dict[str, list[tuple[str, Quartiles]]]:
    """The lines of some cells; `label` names each cell of `chosen` by its identity."""
    names = dict.fromkeys(cell.contender for cell in cells)
    return {
        name: [(label[id(cell)], cell.quartiles) for cell in chosen if cell.contender == name and cell.quartiles]
        for name in names
    }
