"""Region: memory whose pages arrive when they are touched."""

from __future__ import annotations

import math
import operator
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from userfault import _core
from userfault.errors import OptionError, RefusedError, UnsupportedError
from userfault.sources import Source, native
from userfault.sources.called import name_of
from userfault.units import format_bytes, parse_bytes, parse_seconds

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Buffer

__all__ = ["Options", "Region", "Statistics", "open_region"]


@dataclass(frozen=True)
class Options:
    """How a region was asked for; what it pickles beside its source. Sizes in bytes, times in seconds.

    Attributes:
        delivery: "thread", "signal" or "process".
        unit: Bytes filled per fault; 0: the source's wish.
        huge: Whole 2 MiB pages.
        resident: Bytes kept, the oldest leaving as others come; 0: all.
        mode: "r" or "c".
        on_error: "raise" or "abort".
        timeout: How long a touch may wait.
        shared: Pages live in a memory file.
        fallback: None or "eager".
        on_pager_death: "restart", "poison" or "abort": with delivery="process".
    """

    delivery: str = "thread"
    unit: int = 0
    huge: bool = False
    resident: int = 0
    mode: str = "r"
    on_error: str = "raise"
    timeout: float = 30.0
    shared: bool = False
    fallback: str | None = None
    on_pager_death: str = "restart"

    def __post_init__(self) -> None:
        parse_bytes(self.unit, "unit")
        parse_bytes(self.resident, "resident")
        if parse_seconds(self.timeout, "timeout") == 0:
            raise OptionError(f"timeout={self.timeout!r}: must be above zero, or no page would ever be in time")


@dataclass(frozen=True)
class Statistics:
    """What happened in a region so far: counts of faults, units and bytes.

    Every fault that was received is still in flight or has exactly one ending:
    `faults == resolved + coalesced + poisoned + torn_down + requeued + in_flight` whenever nothing is moving.

    Attributes:
        faults: Faults received, duplicates included.
        in_flight: Received and not ended.
        resolved: Ended by our filling the page.
        coalesced: Ended because somebody else filled it, or was about to.
        poisoned: Ended with an error for the toucher.
        torn_down: Ended because the region was closed.
        requeued: Lost with a pager and asked again.
        demand_units: Units filled because somebody touched them.
        prefetched_units: Units filled ahead.
        evicted_units: Units given back.
        copied_bytes: Installed by UFFDIO_COPY.
        moved_bytes: Installed by UFFDIO_MOVE.
        zero_bytes: Installed by UFFDIO_ZEROPAGE.
        continued_bytes: Installed by UFFDIO_CONTINUE.
        move_fallbacks: MOVEs that had to become COPYs.
        retries: Kernel calls repeated after EAGAIN or a transient EBUSY.
        deferred: Faults put off to the timer queue.
        source_errors: Reads of the source that failed.
        source_retries: Reads that a `RemoteSource` or a `Retry` made again after a failure that may pass.
        exposed_pages: Pages that showed the error pattern to their toucher.
        dispatched: Faults handed to the worker pool.
        readaheads: Requests of sequential detection.
        helped_units: Units filled ahead by a toucher that would have had to wait for another one.
        frames_decoded: Frames of an image decoded to fill units.
        frames_found: Times a frame larger than the unit was there, decoded before for this region or another of the image.
        units: Units in all.
        present_units: Units filled now.
        failure_epoch: Rises with each exposed page.
        staging_slots: Recycled staging units ready for the next fill.
        copy_nanoseconds: Under a resident budget, what a unit costs by COPY, with its release in a batch; 0: not measured.
        move_nanoseconds: The same by MOVE, with its release into staging.
        fill_method: How a whole unit gets to its place at present: "copy", "move", "continue" (into a memory file), or "eager".
        fill_reason: Why so, in words.
    """

    faults: int = 0
    in_flight: int = 0
    resolved: int = 0
    coalesced: int = 0
    poisoned: int = 0
    torn_down: int = 0
    requeued: int = 0
    demand_units: int = 0
    prefetched_units: int = 0
    evicted_units: int = 0
    copied_bytes: int = 0
    moved_bytes: int = 0
    zero_bytes: int = 0
    continued_bytes: int = 0
    move_fallbacks: int = 0
    retries: int = 0
    deferred: int = 0
    source_errors: int = 0
    source_retries: int = 0
    exposed_pages: int = 0
    dispatched: int = 0
    readaheads: int = 0
    helped_units: int = 0
    frames_decoded: int = 0
    frames_found: int = 0
    units: int = 0
    present_units: int = 0
    failure_epoch: int = 0
    staging_slots: int = 0
    copy_nanoseconds: int = 0
    move_nanoseconds: int = 0
    fill_method: str = ""
    fill_reason: str = ""


class Region(_core.NativeRegion):
    """Memory whose pages arrive when they are touched. Made by `userfault.map`.

    It has the buffer protocol, so `memoryview(region)`, `numpy.frombuffer`, `os.write` and C code see ordinary memory.
    `with` closes it, at once or when the last view dies.

    Threads: safe from any, as are its views.
    """

    source: Source
    options: Options
    pager: Any
    #: Of a region that a pager serves: its source, where this process had to open it too.
    opened_here: _core.NativeSource | None = None

    def __new__(
        cls,
        source: Source,
        options: Options | None = None,
        *,
        eager: bool = False,
        served: tuple[_core.NativeSource, Any, bytes] | None = None,
    ) -> Self:
        """Open `source`; `userfault.map` is the way to make one.

        Args:
            source: Where pages come from.
            options: How; None for the defaults.
            eager: Load everything now, into ordinary memory.
            served: For delivery="process": the source as it is known here, the Pager, and the source as that gets it.

        Returns:
            The region.

        Raises:
            RefusedError: This process may not have a userfaultfd.
            OptionError: Options that make no sense together.
            OSError: No room, or the source cannot be opened.
        """
        options = Options() if options is None else options
        if not isinstance(options, Options):
            raise OptionError(f"options: must be userfault.region.Options, and are of type {type(options).__name__}")
        refresh_handlers()
        self = super().__new__(
            cls,
            native(source) if served is None else served[0],
            delivery=options.delivery,
            unit=options.unit,
            huge=options.huge,
            resident=options.resident,
            mode=options.mode,
            on_error=options.on_error,
            timeout_seconds=options.timeout,
            shared=options.shared,
            eager=eager,
            served=served and (served[1].native, served[2], options.on_pager_death),
        )
        self.source = source
        self.options = options
        self.pager = served and served[1]
        return self

    def __len__(self) -> int:
        return self.nbytes

    def __repr__(self) -> str:
        facts = [format_bytes(self.nbytes)]
        if self.is_eager:
            facts.append("loaded eagerly, no userfaultfd")
        else:
            facts += [f"delivery={self.options.delivery!r}", f"unit={format_bytes(self.unit)}"]
            if self.options.resident:
                facts.append(f"resident={format_bytes(self.options.resident)}")
            if _core.NativeRegion.state.__get__(self) in ("open", "closing"):
                facts.append(f"filled by {self.filling()[0]}")
            if not self.kernel_faults:
                facts.append("system calls on absent pages get EFAULT")
        return f"<Region of {name_of(self.source)}: {', '.join(facts)}, {self.state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return open_region, (self.source, self.options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close_when_free()

    def numpy(
        self,
        dtype: npt.DTypeLike = "u1",
        shape: tuple[int, ...] | int | None = None,
        offset: int = 0,
        order: Literal["C", "F"] = "C",
    ) -> np.ndarray[Any, Any]:
        """An ndarray over this memory; nothing is read.

        Args:
            dtype: Of the elements; a dtype with Python objects in it is refused.
            shape: Its shape; None: one dimension, as many whole elements as fit.
            offset: Of the first element, in bytes.
            order: Rows first or columns first.

        Returns:
            A view that keeps the region alive; writable with mode="c" only.

        Raises:
            OptionError: It does not fit.
        """
        import numpy as np

        kind = np.dtype(dtype)
        if kind.hasobject:
            raise OptionError(f"dtype {kind} holds Python objects: their pointers mean nothing in another process or file")
        if not 0 <= offset <= self.nbytes:
            raise OptionError(f"offset {offset} lies outside the region's {self.nbytes} bytes")
        left = self.nbytes - offset
        if shape is None:
            shape = left // kind.itemsize if kind.itemsize else 0
        lengths = tuple(map(operator.index, shape)) if isinstance(shape, Iterable) else (operator.index(shape),)
        need = math.prod(lengths) * kind.itemsize
        if min(lengths, default=0) < 0:
            raise OptionError(f"shape {shape}: no length may be negative")
        if need > left:
            raise OptionError(f"shape {shape} of {kind} needs {need} bytes; {left} are left at offset {offset}")
        try:
            # np.ndarray(buffer=self) would let its export go at once; frombuffer keeps it in a memoryview.
            return np.ndarray(lengths, kind, buffer=np.frombuffer(memoryview(self), "u1"), offset=offset, order=order)
        except ValueError as error:  # more dimensions, or more elements of no bytes, than NumPy has room for
            raise OptionError(f"shape {shape} of {kind}: {error}") from None

    def prefetch(self, where: slice | Buffer | None = None) -> None:
        """Start filling pages in the background; demand faults go first.

        Args:
            where: A view into the region (such as `a[10:20]`), a slice of bytes, or None for all of it.

        Blocks: no. A page that cannot be had is no error here: its touch will raise. Under a resident budget no more is
            started than that keeps.
        """
        self.fill_ahead(*self._range(where))

    def populate(self, where: slice | Buffer | None = None) -> None:
        """Fill pages and wait for them.

        Args:
            where: A view into the region (such as `a[10:20]`), a slice of bytes, or None for all of it.

        Raises:
            PageError: A page could not be had; nothing of it was shown.
            OptionError: More than the resident budget: it cannot all be there.

        Blocks: until the pages are there; Ctrl-C works. GIL: released.
        """
        refresh_handlers()
        self.fill_now(*self._range(where))

    def evict(self, where: slice | Buffer | None = None) -> int:
        """Give back the memory of the whole units inside `where`; they come back when touched.

        A unit that is being filled is waited for, at most 0.1 s, and stays if it takes longer.

        Args:
            where: A view into the region, a slice of bytes, or None for all of it.

        Returns:
            How many units left.

        Raises:
            OptionError: The region is of mode "c": a page that may have been modified is never dropped.
        """
        return self.drop_units(*self._range(where))

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """A copy of some bytes; a page that cannot be had raises before any byte is seen.

        Works where system calls on absent pages do not (`kernel_faults` is False).

        Args:
            offset: First byte.
            length: Bytes; None: to the end.

        Returns:
            The bytes, as many as asked for.

        Raises:
            PageError: A page could not be had.
            OptionError: The range does not lie in the region.

        Blocks: until the pages are there. GIL: released.
        """
        length = self.nbytes - offset if length is None else length
        if offset < 0 or length < 0 or offset + length > self.nbytes:
            raise OptionError(f"{length} bytes at offset {offset} do not lie in the region's {self.nbytes} bytes")
        piece = self.options.resident // 2 or length
        if length <= piece:
            return self.copy_bytes(offset, length)
        starts = range(offset, offset + length, piece)
        return b"".join(self.copy_bytes(start, min(piece, offset + length - start)) for start in starts)

    def statistics(self) -> Statistics:
        """What happened so far.

        Returns:
            A snapshot; each number is exact, sums only while nothing moves.
        """
        method, reason = self.filling()
        return Statistics(**self.counters(), fill_method=method, fill_reason=reason)

    def fileno(self) -> int:
        """The memory file of a region made with shared=True: other processes may map it.

        Returns:
            The descriptor, which the region owns. Pages that were not filled yet read as holes there.

        Raises:
            OptionError: The region is not shared.
        """
        number = self.file_descriptor()
        if number is None:
            raise OptionError("only a region made with shared=True has a file")
        return number

    def _range(self, where: slice | Buffer | None) -> tuple[int, int]:
        if where is None:
            return 0, self.nbytes
        if isinstance(where, slice):
            start, stop, step = where.indices(self.nbytes)
            if step != 1:
                raise OptionError("a slice of bytes has no step here")
            return start, max(start, stop)
        return self._range_of_view(where)

    def _range_of_view(self, view: Buffer) -> tuple[int, int]:
        import numpy as np

        try:
            low, high = np.lib.array_utils.byte_bounds(np.asarray(memoryview(view)))
        except TypeError:
            raise OptionError(f"{view!r}: a slice of bytes, a view of this region, or None is wanted") from None
        if not self.address <= low <= high <= self.address + self.nbytes:
            raise OptionError("that view does not lie in this region")
        return low - self.address, high - self.address


def open_region(source: Source, options: Options) -> Region:
    """Open a region; eagerly where that was allowed and lazily is not.

    Args:
        source: Where pages come from.
        options: As `userfault.map` makes them.

    Returns:
        The region.

    Raises:
        RefusedError: See `Region`; likewise for the others.
    """
    try:
        return OPENERS.get(options.delivery, Region)(source, options)
    except (RefusedError, UnsupportedError):
        if options.fallback != "eager":
            raise
        return Region(source, options, eager=True)


#: Who opens regions of a delivery that takes more than `Region`.
OPENERS: dict[str, Callable[[Source, Options], Region]] = {}


def refresh_handlers() -> None:
    """Put our handlers of SIGBUS and SIGINT in front of whatever was installed since."""
    _core.refresh_handlers(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
