"""What a source is, and how to write one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from userfault import _core
from userfault.errors import OptionError
from userfault.sources.called import Opened, facts, hold_open, is_async, wish_of
from userfault.sources.readers import ensure_readers

__all__ = ["Source", "native"]


class Source:
    """Where pages come from. Subclass it, or choose one of the sources of this package.

    A source of your own has `length` (an attribute or property, or `__len__`) and `read_into`. Its other attributes are wishes:

    Attributes:
        length: Bytes in all, or a string such as "1TiB"; fixed while it is open.
        unit: Bytes filled for one touch, a power of two from one page to 64 MiB, or a string such as "64KiB"; None: 64 KiB.
        preferred_size: Bytes that one read of many likes to have (prefetch, populate), or a string; None: one unit.
        readahead: Whether a sequential reader's next units are read by other threads before they are touched.

    With `delivery="thread"` or `"signal"` a touch runs `read_into` in the thread that touched, in the middle of whatever it was
    doing; what that forbids is in docs/sources.md. With `delivery="process"` it runs in another process.

    Example:
        >>> class Squares(Source):
        ...     length = 1 << 40
        ...
        ...     def read_into(self, offset, buffer):
        ...         numbers = memoryview(buffer).cast("Q")
        ...         for index in range(len(numbers)):
        ...             numbers[index] = (offset // 8 + index) ** 2
    """

    length: Any
    unit: int | str | None = None
    preferred_size: int | str | None = None
    readahead: bool = False

    def read_into(self, offset: int, buffer: memoryview) -> int | None:
        """Fill `buffer` with the bytes from `offset` on. May be `async def`; then it runs on the library's event loop.

        Called from several threads at once. What it leaves unwritten reads as 0xFF.

        Args:
            offset: Of the first byte; `offset + len(buffer) <= length`.
            buffer: Writable bytes. They are gone when this returns: keep no view of them.

        Returns:
            None, or how many bytes were filled; fewer than asked for is a `PageError`.

        Raises:
            Exception: Any: it becomes the `__cause__` of a `PageError` at the touch. One with a true attribute `transient`, a
                ConnectionError or a TimeoutError may pass: `Retry` reads again.
        """
        raise NotImplementedError(f"{type(self).__name__} must define read_into(offset, buffer)")

    def prefetch_hint(self, offset: int, length: int) -> None:
        """Hear that these bytes will be wanted soon. Must not wait; does nothing unless overridden.

        Args:
            offset: Of the first byte.
            length: Bytes.
        """

    def close(self) -> None:
        """Let go of everything: no region reads from this source any more. It may be opened again later."""

    def open(self) -> _core.NativeSource:
        """Open it: the native half, as `userfault.map` uses it.

        Returns:
            A handle that keeps files open and buffers exported as long as it lives.

        Raises:
            OSError: A file cannot be opened.
            OptionError: The parameters do not fit what was found, or the class lacks `read_into` or `length`.
        """
        if type(self).read_into is Source.read_into:
            raise OptionError(f"{type(self).__name__} is no source yet: it must define read_into(offset, buffer)")
        length, name, unit = facts(self)
        piece = wish_of(self, "preferred_size")
        ensure_readers()
        opened = Opened(
            read_into=self._waiting_read_into(),
            prefetch_hint=None if type(self).prefetch_hint is Source.prefetch_hint else self.prefetch_hint,
            length=length,
            name=name,
            unit=unit,
            piece=piece,
            readahead=bool(self.readahead),
            close=hold_open(self),
        )
        return _core.NativeSource.called(opened)

    def _waiting_read_into(self) -> Callable[[int, memoryview], Any]:
        read_into: Callable[[int, memoryview], Any] = self.read_into
        if not self._is_async():
            return read_into
        from userfault.sources.waiting import waited_for  # brings asyncio, 20 ms that others need not wait for

        return waited_for(read_into)

    def _is_async(self) -> bool:
        return is_async(self.read_into)


def native(source: Source) -> _core.NativeSource:
    """Open a source, if it is one: for those who were given it.

    Args:
        source: What should be a source.

    Returns:
        As `Source.open`.

    Raises:
        OptionError: It is none; otherwise as `Source.open`.
    """
    if isinstance(source, Source):
        return source.open()
    raise OptionError(
        f"source: must be a Source, such as File, Bytes or Image, and is of type {type(source).__name__}; "
        "only userfault.map takes paths and bytes themselves"
    )
