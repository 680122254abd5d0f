"""A source that fails and dawdles on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from userfault import _core
from userfault.sources import Source, native
from userfault.units import parse_seconds


@dataclass(frozen=True)
class Chaos(Source):
    """Wrap a source so that some of its reads fail, or all of them are slow.

    Args:
        source: Any source.
        fail: Byte ranges; a read that touches one of them fails.
        delay: Before every read; seconds, or a string such as "1s".
        failures: How many reads fail before all succeed; None: no end.
    """

    source: Source
    fail: Sequence[range | slice] = ()
    delay: float | str = 0.0
    failures: int | None = None

    def open(self) -> _core.NativeSource:
        """Open it; see `Source.open`."""
        ranges = [(bad.start or 0, bad.stop) for bad in self.fail]
        return native(self.source).chaos(ranges, parse_seconds(self.delay, "delay"), self.failures)
