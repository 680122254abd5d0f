"""A source that is one function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from userfault.errors import OptionError
from userfault.sources.base import Source
from userfault.sources.called import is_async
from userfault.units import parse_bytes

__all__ = ["Function"]


class Function(Source):
    """Memory whose bytes a function makes.

    Args:
        function: `function(offset, buffer)`, as `Source.read_into`; plain or `async`.
        length: Bytes, or a string such as "1TiB".
        unit: As `Source.unit`.
        preferred_size: As `Source.preferred_size`.

    Example:
        >>> def count(offset, buffer):
        ...     buffer[:] = bytes((offset + index) % 251 for index in range(len(buffer)))
        >>> source = Function(count, "1GiB")
    """

    def __init__(
        self,
        function: Callable[[int, memoryview], Any],
        length: int | str,
        *,
        unit: int | str | None = None,
        preferred_size: int | str | None = None,
    ) -> None:
        if not callable(function):
            raise OptionError(f"Function: must be callable as function(offset, buffer), and is of type {type(function).__name__}")
        self.function = function
        self.length = parse_bytes(length, "length")
        self.unit = unit
        self.preferred_size = preferred_size

    def read_into(self, offset: int, buffer: memoryview) -> int | None:
        """See `Source.read_into`."""
        filled: int | None = self.function(offset, buffer)
        return filled

    def _is_async(self) -> bool:
        return super()._is_async() or is_async(self.function)

    def __repr__(self) -> str:
        name = getattr(self.function, "__qualname__", repr(self.function))
        return f"Function({name}, {self.length} bytes)"
