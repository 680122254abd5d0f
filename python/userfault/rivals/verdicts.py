"""Who won, in sentences made of the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from userfault.rivals.contenders import ADVICE, CONTENDERS, FAULTING, GROUPS, MEASURES, Contender, Measure
from userfault.rivals.figures import shown
from userfault.rivals.results import Results, ScaleCell

OURS = "userfault"

Quartiles = tuple[float, float, float]


@dataclass(frozen=True)
class Verdict:
    """Of one measure within one group.

    Attributes:
        measure: what was asked.
        group: among whom.
        best: who has the least median.
        theirs: its quartiles.
        ours: userfault's best: of the group, or of all compressed files where the group has none of ours. None if it did not run.
        mine: its quartiles.
    """

    measure: Measure
    group: str
    best: Contender
    theirs: Quartiles
    ours: Contender | None
    mine: Quartiles | None

    @property
    def outcome(self) -> str:
        """One of userfault, rival, level (the quartiles overlap) and alone (userfault did not run)."""
        if self.mine is None:
            return "alone"
        if self.best.family == OURS or self.mine[1] < self.theirs[1]:
            return "userfault"
        return "level" if self.theirs[2] >= self.mine[0] else "rival"

    @property
    def sentence(self) -> str:
        """What the table says; with advice where a rival wins."""
        start = f"{self.best.name}: {self._shown(self.theirs)}"
        if self.mine is None or self.ours is None:
            return f"{start}; userfault did not run."
        mine = f"{self.ours.name}: {self._shown(self.mine)}"
        if self.outcome == "userfault":
            return f"{mine}, the least." if self.best is self.ours else f"{mine}, less than {start}."
        if self.outcome == "level":
            return f"{start}; {mine}: level, the spreads overlap."
        return f"{start}, {factor(self.mine[1] / self.theirs[1])} less than {mine}; {ADVICE[self.best.family]}."

    def _shown(self, quartiles: Quartiles) -> str:
        return shown(quartiles[1], self.measure.unit)


def factor(ratio: float) -> str:
    """How much less, in words."""
    return f"{ratio:.0f} times" if ratio >= 10 else f"{ratio:.1f} times" if ratio >= 1.95 else f"{(1 - 1 / ratio) * 100:.0f}%"


def best_of(results: Results, measure: Measure, contenders: Sequence[Contender]) -> tuple[Contender, Quartiles] | None:
    """The contender with the least median, and its quartiles."""
    cells = ((one, results.cell(one.name, measure.key)) for one in contenders)
    found = [(one, cell.quartiles) for one, cell in cells if cell and cell.quartiles]
    return min(found, key=lambda pair: pair[1][1], default=None)


def verdict(results: Results, measure: Measure, group: str, contenders: Sequence[Contender] = CONTENDERS) -> Verdict | None:
    """Who won a measure within a group; None if nobody of it has a number."""
    members = [one for one in contenders if one.group == group]
    best = best_of(results, measure, members)
    if best is None:
        return None
    ours = [one for one in members if one.family == OURS]
    ours = ours or [one for one in contenders if one.family == OURS and not one.raw]
    mine = best_of(results, measure, ours) or (None, None)
    return Verdict(measure, group, *best, *mine)


def verdicts(results: Results, contenders: Sequence[Contender] = CONTENDERS) -> list[Verdict]:
    """All of them, group by group."""
    found = (verdict(results, measure, group, contenders) for group in GROUPS for measure in MEASURES)
    return [one for one in found if one]


SENDING_AWAY = ("element", "column", "scan", "first")
"""Measures for which somebody might go elsewhere."""


def when_not_to_use_it(results: Results, contenders: Sequence[Contender] = CONTENDERS) -> list[str]:
    """For the page that sends people elsewhere: a sentence of each group in which a rival answers, reads or scans quicker."""
    found = verdicts(results, contenders)
    sentences = []
    for group, title in GROUPS.items():
        lost = [one for one in found if one.group == group and one.outcome == "rival" and one.measure.key in SENDING_AWAY]
        parts = [
            f"{one.measure.title} {shown(one.theirs[1], 'seconds')} with {one.best.title}, ours {shown(one.mine[1], 'seconds')}"
            for one in lost
            if one.mine
        ]
        if parts:
            advice = "; ".join(dict.fromkeys(ADVICE[one.best.family] for one in lost))
            sentences.append(f"{title[0].upper()}{title[1:]}: {'; '.join(parts)}. So {advice}.")
    return sentences


def least_of(cells: Sequence[ScaleCell]) -> list[ScaleCell]:
    """The cell with the least median for each span and number of threads."""
    least: dict[tuple[int, int], tuple[float, ScaleCell]] = {}
    for cell in cells:
        if cell.quartiles:
            known = least.get((cell.span, cell.threads))
            if known is None or cell.quartiles[1] < known[0]:
                least[cell.span, cell.threads] = cell.quartiles[1], cell
    return [cell for _, cell in least.values()]


def fault_verdict(cells: Sequence[ScaleCell]) -> str:
    """Who has the cheapest faults, and how often."""
    least = least_of(cells)
    advice = {one.name: ADVICE[one.family] for one in FAULTING}
    names = sorted({cell.contender for cell in least})
    parts = []
    for name in names:
        won = sum(cell.contender == name for cell in least)
        text = f"{name} has the least in {won} of {len(least)}"
        parts.append(f"{text}: {advice[name]}" if advice.get(name) else text)
    return "; ".join(parts) + "." if parts else "Nothing could be measured."
