"""checked: a block that no failed page leaves unnoticed."""

from __future__ import annotations

from types import TracebackType

from userfault import _core
from userfault.errors import OptionError, PageError, RegionClosedError, UserFault, of_block
from userfault.region import Region, refresh_handlers

__all__ = ["checked"]


def _is_there(region: Region) -> bool:
    return _core.NativeRegion.state.__get__(region) in ("open", "closing")  # subclasses may hide it


def _failed_since(region: Region, epoch: int, anywhere: int) -> bool:
    try:
        return _core.NativeRegion.failed_since(region, epoch)
    except RegionClosedError:
        return _core.failed_since(anywhere)  # its own count went with it: a false alarm rather than silence


class checked:
    """A block that no failed page leaves unnoticed.

    An error in a page surfaces at the end of the call that touched it, which may be after the statement you expect, or be
    swallowed by code that hides exceptions. Leaving this block raises `PageError` if a page of a region showed the error
    pattern during the block, whichever thread touched it: a false alarm is possible, silence is not.

    Args:
        *regions: Only these; none: all regions of the process.

    Raises:
        OptionError: Something else than regions was given.
        PageError: On leaving; `UserFault` for memory flagged with `mman`. Another exception of the block becomes its
            `__context__`; KeyboardInterrupt, SystemExit and these two pass through.

    Example:
        >>> with checked():
        ...     total = array[0] + array[-1]
    """

    def __init__(self, *regions: Region) -> None:
        for region in regions:
            if not isinstance(region, Region):
                kind = type(region).__name__
                raise OptionError(f"checked: takes regions and was given a {kind}; give none to watch all regions")
        self._regions = regions
        self._before = 0
        self._each: list[tuple[Region, int]] = []

    def _any_failed(self) -> bool:
        if not self._regions:
            return _core.failed_since(self._before)
        return any(_failed_since(region, epoch, self._before) for region, epoch in self._each)

    def __enter__(self) -> checked:
        refresh_handlers()
        # First: a page that fails from now on counts.
        self._before = _core.failure_epoch()
        native = _core.NativeRegion.counters
        self._each = [(region, native(region)["failure_epoch"]) for region in self._regions if _is_there(region)]
        _core.rearm_failed()  # a page that shows the pattern already would fault on nothing in here
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._any_failed() or isinstance(error, KeyboardInterrupt | SystemExit):
            return
        _core.rearm_failed()
        if isinstance(error, PageError | UserFault):
            return
        failure = of_block(_core.noted_failure())
        _core.drop_pending_error()
        raise failure from error
