"""A region that a pager serves, opened."""

from __future__ import annotations

from userfault import _core
from userfault.errors import OptionError, shown
from userfault.pager.described import describe
from userfault.pager.pinned import dumps
from userfault.pager.process import Pager, default_pager
from userfault.pager.protocol import VERSION, SourceMessage, encode
from userfault.region import Options, Region
from userfault.sources import Source, native
from userfault.sources.called import facts, name_of

__all__ = ["open_in_pager"]


def open_in_pager(source: Source, options: Options, pager: Pager | None = None) -> Region:
    """Open a region that a pager serves.

    Args:
        source: What it is to be filled from; it has to be picklable, by cloudpickle.
        options: As `userfault.map` makes them.
        pager: Which; None: the shared one.

    Returns:
        The region.

    Raises:
        OptionError: The source cannot be pickled, or the options make no sense.
        PageError: The source cannot be opened there; its `__cause__` says why.
        RegionClosedError: The pager is gone.
    """
    if pager is not None and not isinstance(pager, Pager):
        raise OptionError(f"pager: must be a userfault.pager.Pager, and is of type {type(pager).__name__}")
    known, opened = _known(source)
    pager = default_pager() if pager is None else pager
    if pager.path is None:
        message = encode(SourceMessage(VERSION, pickled=_pickled(source)))
    else:
        message = encode(SourceMessage(VERSION, described=describe(source)))
    region = Region(source, options, served=(known, pager, message))
    # What was looked up to open it here (the version of an object, say) travels with it; closed with the region, not before.
    region.opened_here = opened
    return region


def _pickled(source: Source) -> bytes:
    try:
        return dumps(source)
    except Exception as error:
        raise OptionError(
            f"delivery='process': {name_of(source)} cannot be sent to another process: {type(error).__name__}: {shown(error)}; "
            "open what cannot be pickled in read_into, not before"
        ) from error


def _known(source: Source) -> tuple[_core.NativeSource, _core.NativeSource | None]:
    """A stand-in with its length and name, and what had to be opened for it. A Python source is not opened here."""
    if isinstance(source, Source) and type(source).read_into is not Source.read_into:
        return _core.NativeSource.remote(*facts(source)), None
    opened = native(source)
    return _core.NativeSource.remote(opened.length, opened.name, opened.preferred_unit), opened
