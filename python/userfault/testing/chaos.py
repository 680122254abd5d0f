"""A source that fails and dawdles on purpose."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from userfault import _core
from userfault.errors import OptionError, PageError
from userfault.sources import Source, native
from userfault.units import parse_count, parse_seconds

__all__ = ["Chaos", "ChaosSource"]

How: TypeAlias = Literal["error", "short", "long", "hang", "die"]
_WAYS = ("error", "short", "long", "hang", "die")


class ChaosSource(Source):
    """Wrap a source so that some of its reads misbehave, or all of them are slow.

    Args:
        source: Any source.
        fail: Byte ranges; a read that touches one of them misbehaves.
        delay: Before every read; seconds, or a string such as "1s".
        failures: How many reads misbehave before all succeed; None: no end.
        how: What misbehaving is. "error": the read fails, in a way that `Retry` takes for transient; native where the source is.
            The others make a Python source of it: "short" fills up to the first bad byte and says so; "long" says that it
            filled more than was asked for; "hang" does not return; "die" kills the process that reads, with SIGKILL.

    Example:
        >>> region = userfault.map(ChaosSource(userfault.Bytes(data), fail=[range(4096, 8192)]))
        >>> region.read(0, 4096) == data[:4096]     # and a touch of the second page is a PageError
        True
    """

    def __init__(
        self,
        source: Source,
        fail: Sequence[range | slice] = (),
        delay: float | str = 0.0,
        failures: int | None = None,
        how: How = "error",
    ) -> None:
        if how not in _WAYS:
            raise OptionError(f"how={how!r}: must be one of {', '.join(_WAYS)}")
        self.source = source
        self.fail = tuple(fail)
        for bad in self.fail:
            if not isinstance(bad, range | slice) or bad.step not in (None, 1):
                raise OptionError(f"fail: {bad!r} is no range or slice of bytes, without a step")
        self.delay = delay
        self.failures = failures
        self.how = how
        self.unit = getattr(source, "unit", None)  # what is no source is refused when it is opened
        self._inner: _core.NativeSource | None = None
        #: One for each read that is still to misbehave: taking one is a single step, whatever threads there are.
        self._left = None if failures is None else [None] * parse_count(failures, "failures", 0, 2**31)

    @property
    def length(self) -> int:
        """Bytes."""
        return self._opened().length

    def open(self) -> _core.NativeSource:
        """Open it; see `Source.open`."""
        if self.how != "error":
            return super().open()
        inner = native(self.source)
        return inner.chaos(self._ranges(inner.length), parse_seconds(self.delay, "delay"), self.failures)

    def read_into(self, offset: int, buffer: memoryview) -> int | None:
        """See `Source.read_into`."""
        time.sleep(parse_seconds(self.delay, "delay"))
        bad = self._first_bad(offset, offset + len(buffer))
        if bad is not None and self._takes_a_turn():
            return self._misbehave(bad - offset, offset, buffer)
        self._read(offset, buffer)
        return None

    def close(self) -> None:
        """See `Source.close`."""
        self._inner = None

    def _opened(self) -> _core.NativeSource:
        if self._inner is None:
            self._inner = native(self.source)
        return self._inner

    def _ranges(self, length: int) -> list[tuple[int, int]]:
        spans = [bad.indices(length)[:2] if isinstance(bad, slice) else (bad.start, bad.stop) for bad in self.fail]
        return [(max(start, 0), stop) for start, stop in spans if start < stop]

    def _first_bad(self, start: int, stop: int) -> int | None:
        hits = [max(low, start) for low, high in self._ranges(self.length) if low < stop and start < high]
        return min(hits, default=None)

    def _takes_a_turn(self) -> bool:
        if self._left is None:
            return True
        try:
            self._left.pop()
        except IndexError:
            return False
        return True

    def _misbehave(self, good: int, offset: int, buffer: memoryview) -> int | None:
        if self.how == "short":
            self._read(offset, buffer[:good])
            return good
        if self.how == "long":
            self._read(offset, buffer)
            return len(buffer) + 1
        if self.how == "hang":
            threading.Event().wait()
        if self.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        error = OSError(f"{self!r} failed this read on purpose")
        error.transient = True  # type: ignore[attr-defined]
        raise error

    def _read(self, offset: int, buffer: memoryview) -> None:
        try:
            self._opened().read_into(offset, buffer)
        except PageError as error:
            raise error.cause if isinstance(error.cause, BaseException) else error from None

    def __repr__(self) -> str:
        return f"ChaosSource({self.source!r}, how={self.how!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return ChaosSource, (self.source, self.fail, self.delay, self.failures, self.how)


#: The name from when all it could do was to fail.
Chaos = ChaosSource
