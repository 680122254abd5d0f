"""What was measured: as data, and back."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from userfault.errors import OptionError
from userfault.rivals.figures import quartiles

SCHEMA = 1


@dataclass(frozen=True)
class Cell:
    """One measure of one contender: samples, or the reason why there are none.

    Attributes:
        contender: its name.
        measure: key of the measure.
        samples: seconds or bytes, one of each round.
        reason: why there are none.
        wrong: whether that is an error: a wrong answer, a crash or no end. Otherwise it is not possible here.
    """

    contender: str
    measure: str
    samples: list[float] = field(default_factory=list)
    reason: str | None = None
    wrong: bool = False

    @property
    def quartiles(self) -> tuple[float, float, float] | None:
        """Lower quartile, median, upper quartile."""
        return quartiles(self.samples) if self.samples else None


@dataclass(frozen=True)
class ScaleCell:
    """What a fault costs over a span, with so many threads: wall time, divided by all threads' faults."""

    contender: str
    span: int
    threads: int
    samples: list[float] = field(default_factory=list)
    reason: str | None = None
    wrong: bool = False

    @property
    def quartiles(self) -> tuple[float, float, float] | None:
        """Lower quartile, median, upper quartile."""
        return quartiles(self.samples) if self.samples else None


@dataclass(frozen=True)
class Results:
    """One run.

    Attributes:
        at: when it began, UTC.
        size: bytes of the array.
        rounds: how many were measured, after one to warm up.
        machine: see `machine.describe_machine`.
        versions: of the contenders.
        cells: contender by contender.
        scale: the costs of one fault.
    """

    at: str
    size: int
    rounds: int
    machine: dict[str, Any]
    versions: dict[str, str | None]
    cells: list[Cell]
    scale: list[ScaleCell]

    def cell(self, contender: str, measure: str) -> Cell | None:
        """The cell of a contender's measure, if both took part."""
        return next((one for one in self.cells if (one.contender, one.measure) == (contender, measure)), None)

    @property
    def errors(self) -> list[str]:
        """What went wrong, once for each contender and reason."""
        cells: list[Cell | ScaleCell] = [*self.cells, *self.scale]
        return sorted({f"{cell.contender}: {cell.reason}" for cell in cells if cell.wrong})

    def to_data(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"schema": SCHEMA, **asdict(self)}

    @staticmethod
    def from_data(data: dict[str, Any]) -> Results:
        """The opposite of `to_data`."""
        fields = {key: value for key, value in data.items() if key != "schema"}
        cells = [Cell(**one) for one in fields.pop("cells")]
        scale = [ScaleCell(**one) for one in fields.pop("scale")]
        return Results(**fields, cells=cells, scale=scale)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Results:
        """Read a file that `save` wrote; OptionError if it is another."""
        try:
            return Results.from_data(json.loads(Path(path).read_text()))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            why = f"{type(error).__name__}: {error}"
            raise OptionError(f"{path}: no results.json of `userfault bench --report` ({why})") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file, replacing one that is there."""
        Path(path).write_text(json.dumps(self.to_data(), indent=1) + "\n")
