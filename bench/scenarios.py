"""What is measured: each scenario is data, and its name is made of its parameters."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.pairs import PAIRS, KernelCalls, Pair, WheelSize

UNITS_OF = {"4KiB": 4096, "2MiB": 2 << 20}
SIZES_OF = UNITS_OF | {"64KiB": 64 << 10, "64MiB": 64 << 20, "1GiB": 1 << 30, "64GiB": 64 << 30}


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


@dataclass(frozen=True)
class Calls2014:
    """Use the calls of 2014: what does a touch of flagged memory cost, or a call?

    Attributes:
        case: which program of `bench.ours_2014`.
        size: bytes touched per round, or bytes of one call.
        calls: how many per round; touches are counted by their pages instead.
        floor: the C program that does the same, or the kernel's share of it.
        huge: of huge pages.
        full: the C program gets memory whose pages are there.
        bar: the greatest ratio to the C program that we accept.
        bar_us: the greatest median in microseconds, where the C program does much less.
    """

    case: str
    size: str
    floor: str
    calls: int = 0
    huge: bool = False
    full: bool = False
    bar: float | None = None
    bar_us: float | None = None

    kind = "calls-2014"

    @property
    def name(self) -> str:
        """For people and for file names."""
        size = "" if self.touches else f"-{self.size}"
        return f"{self.case}{size}{'-thp' if self.huge else ''}"

    @property
    def touches(self) -> bool:
        """Whether pages are touched; otherwise calls are made."""
        return self.calls == 0

    def scaled(self, share: float) -> Calls2014:
        """The same with fewer touches or calls; a call stays as large as it is, unless all its pages have to be there."""
        calls = 0 if self.touches else max(2, int(self.calls * share) // 2 * 2)
        if not (self.touches or self.full):
            return replace(self, calls=calls)
        smaller = [name for name, size in SIZES_OF.items() if size <= SIZES_OF[self.size] * share]
        return replace(self, calls=calls, size=max(smaller or ["4KiB"], key=SIZES_OF.__getitem__))


Scenario = Touches | Pins | Imports | Calls2014 | Pair | KernelCalls | WheelSize

SCENARIOS: tuple[Scenario, ...] = (
    Touches("signal", "4KiB", "random", 16384, 1, "touch_signal", bar=1.15),
    Touches("thread", "4KiB", "random", 16384, 1, "touch_thread", bar=1.20),
    Touches("signal", "2MiB", "sequential", 12, 8, "sequential_2m", bar=1.5),
    Touches("thread", "2MiB", "sequential", 12, 8, "sequential_2m", bar=1.5),
    Pins(16384, 4, "volatile_pin", bar=1.2),
    Imports("userfault", "numpy", bar_ms=60),
    Calls2014("flagged-source", "64MiB", "touch_signal", bar=1.15),
    Calls2014("flagged-callable", "64MiB", "touch_move", bar_us=15),
    Calls2014("descriptor-thread", "2MiB", "touch_thread", bar_us=120),
    Calls2014("remap", "64KiB", "remap", calls=2000, bar=1.15),
    Calls2014("remap", "2MiB", "remap", calls=200, bar=1.15),
    Calls2014("remap", "2MiB", "remap", calls=2000, huge=True, bar=1.15),
    Calls2014("flag", "1GiB", "watch", calls=2, full=True, bar_us=1000),
    Calls2014("switch", "64GiB", "watch", calls=20, bar_us=1000),
    *PAIRS,
)


def to_data(scenario: Scenario) -> dict[str, Any]:
    """A scenario as JSON takes it."""
    return {"kind": scenario.kind, "name": scenario.name, **asdict(scenario)}


def from_data(data: dict[str, Any]) -> Scenario:
    """The opposite of `to_data`."""
    fields = {key: value for key, value in data.items() if key not in ("kind", "name")}
    if data["kind"] == Pair.kind:
        return Pair.of({**fields, "name": data["name"]})
    return {one.kind: one for one in (Touches, Pins, Imports, Calls2014, KernelCalls, WheelSize)}[data["kind"]](**fields)
