"""Rows that pair a case of `bench.cases` with programs that do the same: C programs, or another size of the case itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Self

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Against:
    """What userfault is compared to, and how good it has to be.

    Attributes:
        name: of the program: a C program of `bench/floor`, or "userfault" for the same case with other numbers.
        at_most: the greatest ratio of times that we accept.
        at_least: the least ratio of speeds that we accept. Without either the row only shows the numbers.
        numbers: other numbers than the row's.
    """

    name: str
    at_most: float | None = None
    at_least: float | None = None
    numbers: tuple[int, ...] | None = None

    @property
    def label(self) -> str:
        """For people."""
        return self.name if self.numbers is None else f"{self.name} ({self.numbers[-1]})"


@dataclass(frozen=True)
class Pair:
    """A case of `bench.cases`, and what it is compared to.

    Attributes:
        name: for people and for file names.
        case: which case.
        count: how many touches, units or regions: what each program takes as its first argument; a short form has fewer.
        numbers: further arguments of both sides.
        words: further arguments of userfault's side.
        against: programs; their rounds and ours take turns.
        least: the count of a short form, at least: a quarter of 32 units is the smallest budget of a region.
        short: the numbers of a short form, where they are sizes.
        data: a file of `bench.data` that both sides read; the count is put in its name.
        needs: "zstd": the C library's header is needed; "nginx": that and obstore are.
        unit: of the samples: "ns", or what else is counted.
        bytes_each: bytes of one of `count`; then the table shows GB/s.
        limit: the greatest median that we accept, in the unit.
        least_gbps: the least speed that we accept.
        single: one process plays both sides.
    """

    name: str
    case: str
    count: int
    numbers: tuple[int, ...] = ()
    words: tuple[str, ...] = ()
    against: tuple[Against, ...] = ()
    least: int = 4
    short: tuple[int, ...] | None = None
    data: str = ""
    needs: str = ""
    unit: str = "ns"
    bytes_each: int = 0
    limit: float | None = None
    least_gbps: float | None = None
    single: bool = False

    kind = "pair"

    def scaled(self, share: float) -> Pair:
        """The same with fewer touches."""
        numbers = self.short if self.short is not None and share < 1 else self.numbers
        return replace(self, count=max(self.least, int(self.count * share)), numbers=numbers)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """Made of what JSON kept."""
        kept = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        kept["against"] = tuple(against_of(one) for one in fields["against"])
        return cls(**kept)


def against_of(fields: dict[str, Any]) -> Against:
    """Made of what JSON kept."""
    numbers = fields["numbers"]
    return Against(**{**fields, "numbers": None if numbers is None else tuple(numbers)})


@dataclass(frozen=True)
class KernelCalls:
    """Count the system calls of a touch, with strace.

    Attributes:
        delivery: how a fault reaches userfault's handler.
        units: touches of each round.
        floor: the C program that does the same.
        at_most: the greatest ratio to it that we accept.
    """

    delivery: str
    units: int
    floor: str
    at_most: float = 1.005

    kind = "kernel-calls"
    unit = "calls"
    needs = "strace"

    @property
    def name(self) -> str:
        """For people and for file names."""
        return f"kernel-calls-{self.delivery}"

    def scaled(self, share: float) -> KernelCalls:
        """The same with fewer touches."""
        return KernelCalls(**{**asdict(self), "units": max(64, int(self.units * share))})


@dataclass(frozen=True)
class WheelSize:
    """Build the wheel and weigh it; the short form weighs the installed package, packed as a wheel is."""

    limit: float
    build: bool = True

    kind = "wheel"
    name = "wheel-size"
    unit = "MB"
    needs = "maturin"

    def scaled(self, share: float) -> WheelSize:
        """Without building anything."""
        return WheelSize(self.limit, self.build and share >= 1)


def thinking(think_ns: int, count: int) -> Pair:
    """A thread that nobody pinned works between its touches."""
    against = (Against("think_follow", at_most=1.3), Against("think_poll", at_least=3.0))
    return Pair(f"think-{think_ns // 1000}us-thread", "think", count, (think_ns,), ("thread", "unpinned"), against)


def called(delivery: str, limit_us: int) -> Pair:
    """A Python source in the touching thread, which nobody pinned; beside it a thread in C that copies the same pages."""
    against = (Against("think_follow"),)
    words = (delivery, "unpinned")
    return Pair(f"called-4KiB-{delivery}", "called", 4096, (0,), words, against, limit=limit_us * 1000)


def several(touchers: int, delivery: str) -> Pair:
    """Several threads touch a region each, on two CPUs."""
    numbers = (touchers, int(delivery == "signal"))
    return Pair(f"several-{touchers}-{delivery}", "several", 4096, numbers, (delivery,), (Against("several", at_most=1.2),))


def recycling(unit: str, delivery: str) -> Pair:
    """Units leave as others come."""
    signal = int(delivery == "signal")
    if unit == "64KiB":
        against = Against("recycle", at_most=1.15)
        return Pair(f"recycle-64KiB-random-{delivery}", "recycle", 1024, (64 * KIB, 0, signal), (delivery,), (against,), least=32)
    against = Against("recycle", at_least=0.95)
    return Pair(
        f"recycle-2MiB-sequential-{delivery}",
        "recycle",
        64,
        (2 * MIB, 1, signal),
        (delivery,),
        (against,),
        least=32,
        bytes_each=2 * MIB,
    )


def together(unit_bytes: int, count: int, delivery: str) -> Pair:
    """Two threads touch one region, units leaving: how much more than one does?"""
    against = (
        Against("userfault", at_least=1.5, numbers=(unit_bytes, 1)),
        Against("batched", numbers=(unit_bytes, 2)),
        Against("batched", numbers=(unit_bytes, 1)),
    )
    name = f"two-threads-{unit_bytes // KIB}KiB-{delivery}"
    return Pair(name, "together", count, (unit_bytes, 2), (delivery,), against, least=32, bytes_each=unit_bytes)


def scan(frame: int, *words: str) -> Pair:
    """Add up what an image holds: "one-cpu"; "units" of a frame, where huge pages are the rule."""
    one_cpu, count = "one-cpu" in words, 64 * MIB // frame
    against = (Against("decode_scan", at_least=0.90 if one_cpu else 1.4),)
    name = f"scan-{frame // KIB}KiB{'-units' if 'units' in words else ''}-{'one-cpu' if one_cpu else 'ahead'}"
    data = f"wave-{frame}.zst"
    # A quarter of it is the smallest budget of huge pages: there is no shorter form.
    return Pair(name, "scan", count, (frame,), words, against, least=count, data=data, needs="zstd", bytes_each=frame)


def image_touch(delivery: str) -> Pair:
    """Touch a page of each frame."""
    numbers, against = (64 * KIB, int(delivery == "signal")), (Against("decode_touch", at_most=1.25),)
    data = f"wave-{64 * KIB}.zst"
    return Pair(f"image-64KiB-random-{delivery}", "image_touch", 1024, numbers, (delivery,), against, data=data, needs="zstd")


def zeros(delivery: str) -> Pair:
    """Add up the zeros of an image."""
    unit = 2 * MIB
    return Pair(
        f"zeros-{delivery}",
        "zeros",
        128,
        (unit, int(delivery == "signal")),
        (delivery,),
        (Against("zeros"),),
        data="zeros.zst",
        bytes_each=unit,
        least_gbps=5,
    )


def crowd(delivery: str) -> Pair:
    """Touch a region that is one of many."""
    against = (Against("userfault", at_most=1.1, numbers=(1,)),)
    return Pair(f"crowd-10000-{delivery}", "crowd", 8192, (10_000,), (delivery,), against, short=(10,))


DELIVERIES = ("signal", "thread")
MANY_REGIONS = 10_000


def away(unit: int) -> Pair:
    """A native source by way of a pager, beside thread delivery; from 256 KiB on that moves pages, which a pager cannot."""
    bar = 1.3 if unit <= 64 * KIB else None
    name = f"away-{unit // KIB}KiB" if unit < MIB else f"away-{unit // MIB}MiB"
    return Pair(name, "away", max(16, 8 * MIB // unit), (unit,), (), (Against("in this process", at_most=bar),), single=True)


PAIRS: tuple[Pair | KernelCalls | WheelSize, ...] = (
    *(thinking(think * 1000, 200 if think == 1000 else 1000) for think in (0, 20, 100, 1000)),
    called("signal", 15),
    called("thread", 40),
    *(several(touchers, "thread") for touchers in (2, 3, 4)),
    *(several(touchers, "signal") for touchers in (2, 4)),
    *(recycling(unit, delivery) for unit in ("64KiB", "2MiB") for delivery in DELIVERIES),
    *(together(unit, count, delivery) for unit, count in ((4 * KIB, 16384), (64 * KIB, 1024)) for delivery in DELIVERIES),
    Pair(
        "prefetch-2MiB",
        "prefetch",
        12,
        (8,),
        (),
        (Against("pread_mapped", at_least=0.85),),
        short=(1,),
        data="numbered.bin",
        bytes_each=2 * MIB,
    ),
    *(scan(frame, *words) for frame in (256 * KIB, 2 * MIB) for words in (("one-cpu",), ())),
    *(scan(256 * KIB, "units", *words) for words in (("one-cpu",), ())),
    *(image_touch(delivery) for delivery in DELIVERIES),
    *(zeros(delivery) for delivery in DELIVERIES),
    Pair("idle-10000", "idle", MANY_REGIONS, (2000,), short=(50,), unit="% CPU", limit=0.05),
    *(crowd(delivery) for delivery in DELIVERIES),
    Pair("present-2MiB", "present", 32, (8,), (), (Against("ordinary", at_most=1.02),), bytes_each=2 * MIB, single=True),
    Pair(
        "object-256KiB",
        "store",
        128,
        (256 * KIB,),
        ("unpinned",),
        (Against("obstore", at_least=0.8),),
        needs="nginx",
        bytes_each=256 * KIB,
        single=True,
    ),
    Pair("called-4KiB-process", "away_called", 2048, (), ("unpinned",), (Against("ctypes handler"),), limit=40_000, single=True),
    Pair("pager-start", "away_start", 4, (), ("unpinned",), (Against("empty interpreter"),), least=1, limit=150e6, single=True),
    *(away(unit) for unit in (4 * KIB, 64 * KIB, 256 * KIB, 2 * MIB)),
    KernelCalls("signal", 2048, "touch_signal"),
    # Every sixteenth fault the reader looks where its toucher runs; the C program was told.
    KernelCalls("thread", 2048, "touch_thread", at_most=1.07),
    WheelSize(limit=6.0),
)
