"""What is measured: each scenario is data, and its name is made of its parameters."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

UNITS_OF = {"4KiB": 4096, "2MiB": 2 << 20}


@dataclass(frozen=True)
class Touches:
    """Load one byte of each unit, every unit absent: what does a touch cost?

    Attributes:
        delivery: how a fault reaches userfault's handler.
        unit: bytes filled per fault, as `userfault.map` takes it.
        order: "random" or "sequential".
        units: how many are touched before all are evicted again. Evicted huge pages are filled again at once, by both
            sides; so many of them that userfault would not keep them all would compare that with allocating.
        repeats: how often that is done per round.
        floor: the C program that does the same.
        bar: the greatest ratio to it that we accept.
    """

    delivery: str
    unit: str
    order: str
    units: int
    repeats: int
    floor: str
    bar: float

    kind = "touches"

    @property
    def name(self) -> str:
        """For people and for file names."""
        return f"touch-{self.unit}-{self.order}-{self.delivery}"

    def scaled(self, share: float) -> Touches:
        """The same with fewer touches."""
        return Touches(**{**asdict(self), "units": max(2, int(self.units * share))})


@dataclass(frozen=True)
class Pins:
    """Unpin a written volatile buffer and pin it again, with nothing taken: what does that cost per page?

    Attributes:
        units: pages of 4 KiB.
        repeats: how often that is done per round.
        floor: the C program that makes the two system calls.
        bar: the greatest ratio to it that we accept.
    """

    units: int
    repeats: int
    floor: str
    bar: float

    kind = "pins"

    @property
    def name(self) -> str:
        """For people and for file names."""
        return "volatile-pin"

    def scaled(self, share: float) -> Pins:
        """The same with fewer pages."""
        return Pins(**{**asdict(self), "units": max(2, int(self.units * share))})


@dataclass(frozen=True)
class Imports:
    """Start a process that imports `module` besides `beside`: how much longer does it take?"""

    module: str
    beside: str
    bar_ms: float

    kind = "imports"

    @property
    def name(self) -> str:
        """For people and for file names."""
        return f"import-{self.module}-over-{self.beside}"

    def scaled(self, share: float) -> Imports:
        """The same: an import has no size."""
        return self


Scenario = Touches | Pins | Imports

SCENARIOS: tuple[Scenario, ...] = (
    Touches("signal", "4KiB", "random", 16384, 1, "touch_signal", bar=1.5),
    Touches("thread", "4KiB", "random", 16384, 1, "touch_thread", bar=1.5),
    Touches("signal", "2MiB", "sequential", 12, 8, "sequential_2m", bar=1.5),
    Touches("thread", "2MiB", "sequential", 12, 8, "sequential_2m", bar=1.5),
    Pins(16384, 4, "volatile_pin", bar=1.2),
    Imports("userfault", "numpy", bar_ms=60),
)


def to_data(scenario: Scenario) -> dict[str, Any]:
    """A scenario as JSON takes it."""
    return {"kind": scenario.kind, "name": scenario.name, **asdict(scenario)}


def from_data(data: dict[str, Any]) -> Scenario:
    """The opposite of `to_data`."""
    fields = {key: value for key, value in data.items() if key not in ("kind", "name")}
    return {"touches": Touches, "pins": Pins, "imports": Imports}[data["kind"]](**fields)
