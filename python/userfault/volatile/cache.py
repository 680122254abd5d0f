"""VolatileCache: a mapping whose values the kernel may take when it needs memory."""

from __future__ import annotations

import mmap
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from userfault import _core
from userfault.errors import RegionClosedError
from userfault.units import format_bytes, parse_count
from userfault.volatile import turns
from userfault.volatile.arena import Arena, Extent
from userfault.volatile.values import Form, form_of, show, write

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Buffer

__all__ = ["CacheStatistics", "VolatileCache"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
_NOTHING = object()
_PURGED = 3  # as `VolatileBuffer.page_states` says it


@dataclass(frozen=True)
class CacheStatistics:
    """What happened in a cache so far.

    Attributes:
        hits: Looks that found a value.
        misses: Looks that did not, because it never was there, was pushed out, or was taken by the kernel.
        purges: Values that the kernel took.
        evictions: Values pushed out by `maxsize`.
        entries: Values there are.
        stored_bytes: Their sizes.
        resident_bytes: The memory they take: whole pages.
    """

    hits: int
    misses: int
    purges: int
    evictions: int
    entries: int
    stored_bytes: int
    resident_bytes: int


@dataclass(eq=False, slots=True)
class _Entry:
    """A value. `holders` is how many read it just now; while it is above 0 the value is pinned."""

    extent: Extent | None  # None: it has no bytes
    form: Form | None
    holders: int = 0
    kept: bool = False
    doubtful: bool = False
    dropped: bool = False

    @property
    def memory(self) -> memoryview:
        return self.extent.memory if self.extent else memoryview(b"")

    @property
    def nbytes(self) -> int:
        return self.extent.stop - self.extent.start if self.extent else 0


class _Hold:
    """Somebody reads a value, as long as `release` was not called in a turn; more often is fine."""

    def __init__(self, cache: VolatileCache[Any]) -> None:
        self.cache = cache
        self.entry: _Entry | None = None

    def release(self) -> None:
        entry = self.entry
        if entry is None:
            return
        if entry.holders == 1:
            self.cache._let_go(entry)
        entry.holders -= 1
        self.entry = None  # again no call in between


class VolatileCache(Generic[K]):
    """A mapping from keys to bytes and arrays, kept in memory that the kernel may take.

    There is no size to guess and no thread that cleans up: values stay as long as there is memory. When there is not, the
    kernel takes those first that were not used for longest, before it would swap or kill anything. What it took is not found
    any more; a value that lost one page is gone as a whole.

    Each value takes whole pages of 4 KiB: results of a few hundred bytes are better kept in a dict.

    Args:
        maxsize: The most values there may be; the one not used for longest goes first. None: no limit.

    Raises:
        OptionError: A ValueError: maxsize below 1.
        RefusedError: A PermissionError, by the first value: this process may not have a userfaultfd.

    Threads: all methods are safe from any, and from what may run in the middle of one, of this cache or another: signal handlers,
    finalizers, the `__eq__` of keys. There nothing is found, and what they store or delete is stored or deleted once that method
    returns. Fork: a child cannot use it. Pickle: refused.

    Example:
        >>> cache = VolatileCache()
        >>> cache["tile"] = b"pixels"
        >>> cache.get("tile")
        b'pixels'
    """

    def __init__(self, maxsize: int | None = None) -> None:
        self.maxsize = None if maxsize is None else parse_count(maxsize, "maxsize", 1, sys.maxsize)
        self._entries: OrderedDict[K, _Entry] = OrderedDict()
        self._arena = Arena()
        self._hits = self._misses = self._purges = self._evictions = 0
        self._process = os.getpid()
        self._closed = False

    def __setitem__(self, key: K, value: Buffer | np.ndarray[Any, Any]) -> None:
        """Keep a copy of a value; one of the same key is replaced.

        Args:
            key: Anything hashable.
            value: A bytes-like object, which comes back as bytes; or an ndarray, which keeps its dtype, shape and order.

        Raises:
            TypeError: A value of another kind, or an array of Python objects.
            OSError: EINVAL: all memory of the process is locked (mlockall), so none can be volatile.
        """
        hash(key)
        form, length, data = form_of(value)
        self._must_be_usable()
        if turns.is_inside():
            kept = bytes(data) if form is None else data.copy(form.order)
            turns.later(turns.once(partial(self._replace, key, form, kept)))
            return
        entry = _Entry(None, form)
        abandon = partial(self._abandon, entry)
        try:
            if length:
                self._in_turn(self._find_room, entry, length)
                write(entry.memory, form, data)
            self._in_turn(self._keep, key, entry)
        except BaseException:
            turns.calls.append(abandon)
            turns.catch_up()
            raise

    def get(self, key: K, default: Any = None) -> Any:
        """A copy of a value.

        Args:
            key: As given.
            default: The answer if there is no such value, or the kernel took it.

        Returns:
            bytes or a new ndarray; or `default`.
        """
        hold = _Hold(self)
        with _core.Finally(hold.release, turns.calls, turns.catch_up, partial(self._found, key, hold)) as entry:
            return default if entry is None else show(entry.memory, entry.form, copy=True)

    def __getitem__(self, key: K) -> Any:
        """As `get`; KeyError if there is no such value or the kernel took it."""
        value = self.get(key, _NOTHING)
        if value is _NOTHING:
            raise KeyError(key)
        return value

    @contextmanager
    def borrow(self, key: K) -> Iterator[Any]:
        """Look at a value without copying it, for the length of a block.

        Args:
            key: As given.

        Yields:
            A read-only memoryview or ndarray; **None if there is no such value** or the kernel took it. The value is pinned,
            for the block and as long as anything of the view lives: an array kept after the block keeps its bytes, and its
            memory. A memoryview is released by the end of the block, if nothing else uses it.

        Example:
            >>> cache = VolatileCache()
            >>> with cache.borrow("tile") as view:
            ...     if view is not None:
            ...         print(len(view))
        """
        view = self._borrowed(key)
        try:
            yield view
        finally:
            if isinstance(view, memoryview):
                with suppress(BufferError):  # something else looks through it
                    view.release()
            del view

    def __delitem__(self, key: K) -> None:
        """Forget a value; KeyError if there is none. Its memory is given back once nobody looks at it."""
        if turns.is_inside() and key in self._entries:
            turns.later(turns.once(partial(self._drop, key)))
        elif turns.is_inside() or not self._in_turn(self._drop, key):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        """Whether there is a value that was not found to be taken yet: `get` may miss all the same."""
        return key in self._entries

    def __len__(self) -> int:
        """How many values there are that were not found to be taken yet."""
        return len(self._entries)

    def __iter__(self) -> Iterator[K]:
        """The keys there are now, those not used for longest first."""
        if turns.is_inside():
            self._must_be_usable()
            return iter(list(dict.keys(self._entries)))  # whatever else is in the middle of being done
        return iter(self._in_turn(list, self._entries))

    def clear(self) -> None:
        """Forget all values."""
        for key in list(self):
            with suppress(KeyError):
                del self[key]

    def statistics(self) -> CacheStatistics:
        """What happened so far. Looks at the state of every page, so that each value that was taken by now is counted.

        Returns:
            A snapshot.

        Cost: some 20 ns per page.
        """
        if turns.is_inside():
            self._must_be_usable()
            return self._count(is_inside=True)
        return self._in_turn(self._count)

    def close(self) -> None:
        """Forget all values and give the memory back; twice is fine. Views that live keep theirs until they die."""
        if self._process == os.getpid():
            self._closed = True
            turns.later(self._give_back)

    def __repr__(self) -> str:
        if self._closed or self._process != os.getpid():
            return "<VolatileCache: closed>"
        found = self.statistics()
        facts = f"{found.entries} values, {format_bytes(found.stored_bytes)}, {found.hits} hits, {found.misses} misses"
        return f"<VolatileCache: {facts}, {found.purges} taken by the kernel>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a VolatileCache cannot be pickled or copied: make another one there")

    def __enter__(self) -> VolatileCache[K]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _must_be_usable(self) -> None:
        """Of this process: in a forked child the lock may be taken for good."""
        if self._process != os.getpid():
            raise RegionClosedError("this VolatileCache belongs to the process this one was forked from; make another one here")
        if self._closed:
            raise RegionClosedError("the VolatileCache is closed")

    def _in_turn(self, function: Callable[..., T], *arguments: Any) -> T:
        self._must_be_usable()
        answer: T = turns.turn(self._if_usable, function, *arguments)
        return answer

    def _if_usable(self, function: Callable[..., T], *arguments: Any) -> T:
        self._must_be_usable()  # closed while this thread waited for its turn
        return function(*arguments)

    def _find_room(self, entry: _Entry, length: int) -> None:
        entry.extent = self._arena.allocate(length)

    def _found(self, key: K, hold: _Hold) -> _Entry | None:
        """Pin a value for who holds it; None if it is not there, or not whole, or not to be had now."""
        hash(key)
        self._must_be_usable()
        if turns.is_inside():
            self._misses += 1
            return None
        return self._in_turn(self._hold, key, hold)

    def _hold(self, key: K, hold: _Hold) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is not None:
            is_first = not entry.holders
            entry.holders += 1
            hold.entry = entry  # no call in between, after which an exception from outside could come
            if entry.extent and (is_first or entry.doubtful):
                # The loss is told once: an exception from outside may come after that, and the value is zeros.
                was_doubtful, entry.doubtful = entry.doubtful, True
                if not entry.extent.pin() or was_doubtful:
                    self._purges += 1
                    self._drop(key)
                    entry = None
                else:
                    entry.doubtful = False
        if entry is None:
            self._misses += 1
            return None
        self._hits += 1
        self._entries.move_to_end(key)
        return entry

    def _let_go(self, entry: _Entry) -> None:
        """The last who looks at it will do so no more. Called in a turn; twice is fine."""
        if self._closed or self._process != os.getpid():
            return
        if entry.dropped:
            self._free(entry)
        elif entry.extent:
            with suppress(OSError):  # all memory has been locked since (mlockall): then it stays
                entry.extent.unpin()

    def _borrowed(self, key: K) -> Any:
        """Look at a value; whatever looks through this view holds it."""
        hold = _Hold(self)
        holder = _core.Finally(hold.release, turns.calls, turns.catch_up, partial(self._found, key, hold))
        entry = holder.__enter__()
        if entry is None:
            return None
        return show(entry.extent.window(holder) if entry.extent else b"", entry.form, copy=False)

    def _keep(self, key: K, entry: _Entry) -> None:
        if entry.extent:
            entry.extent.unpin()
        self._drop(key)
        entry.kept = True
        self._entries[key] = entry
        while self.maxsize is not None and len(self._entries) > self.maxsize:
            self._drop(next(iter(self._entries)))
            self._evictions += 1

    def _abandon(self, entry: _Entry) -> None:
        """Nobody knows it, unless an exception from outside came after it was kept."""
        if not entry.kept:
            self._free(entry)

    def _drop(self, key: K) -> bool:
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        entry.dropped = True
        if not entry.holders:
            self._free(entry)
        return True

    def _free(self, entry: _Entry) -> None:
        extent, entry.extent = entry.extent, None  # first: after an exception from outside it is kept for good, never given twice
        if extent:
            self._arena.free(extent)

    def _replace(self, key: K, form: Form | None, data: Any) -> None:
        """In a turn: what came in the middle of one. Without room for it the kernel has taken it, so to speak."""
        if self._closed:
            return
        self._drop(key)
        entry = _Entry(None, form)
        with suppress(OSError):
            if data.nbytes if form else data:
                self._find_room(entry, data.nbytes if form else len(data))
                write(entry.memory, form, data)
            self._keep(key, entry)
        self._abandon(entry)

    def _count(self, is_inside: bool = False) -> CacheStatistics:
        states = {id(slab): found for slab, found in self._arena.states()}
        stored = resident = 0
        for key, entry in list(self._entries.items()):
            found = states[id(entry.extent.slab)][entry.extent.pages] if entry.extent else b""
            if _PURGED not in found or entry.holders:
                stored += entry.nbytes
                resident += len(found) * mmap.PAGESIZE
                continue
            if not is_inside:
                self._purges += 1
                self._drop(key)
        counts = self._hits, self._misses, self._purges, self._evictions
        return CacheStatistics(*counts, len(self._entries), stored, resident)

    def _give_back(self) -> None:
        self._entries.clear()
        self._arena.close()
