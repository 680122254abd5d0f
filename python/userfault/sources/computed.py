"""Arrays that are computed, a page at a time."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from userfault.errors import OptionError
from userfault.sources.base import Source

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Computed"]


class Computed(Source):
    """An array whose elements a function computes from their indices, as `numpy.fromfunction`, but when they are touched.

    Args:
        function: `function(*indices)`, one array of integers for each dimension, all flat and of one length; returns the elements
            at these indices, or something that broadcasts to them. Not called for memory that is not touched.
        shape: Of the array, rows first.
        dtype: Of its elements.
        unit: As `Source.unit`.

    Example:
        >>> table = Computed(lambda row, column: row * column, (1 << 20, 1 << 20), "i8")     # 8 TiB
        >>> array = userfault.map(table).numpy(table.dtype, table.shape)
    """

    def __init__(
        self,
        function: Callable[..., Any],
        shape: int | Iterable[int],
        dtype: npt.DTypeLike = "f8",
        *,
        unit: int | str | None = None,
    ) -> None:
        import numpy as np

        if not callable(function):
            raise OptionError(f"Computed: must be callable as function(*indices), and is of type {type(function).__name__}")
        self.function = function
        self.shape = tuple(map(operator.index, shape)) if isinstance(shape, Iterable) else (operator.index(shape),)
        self.dtype = np.dtype(dtype)
        self.unit = unit
        if self.dtype.hasobject or not self.dtype.itemsize:
            raise OptionError(f"Computed: elements of {self.dtype} have no bytes of their own")
        if self.dtype.subdtype is not None:
            raise OptionError(f"Computed: {self.dtype} is an array itself: its lengths belong to shape")
        if min(self.shape, default=0) < 0:
            raise OptionError(f"Computed: shape {self.shape}: no length may be negative")

    @property
    def length(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See `Source.read_into`. Elements that begin or end outside of the buffer are computed whole."""
        import numpy as np

        size = self.dtype.itemsize
        first, last = offset // size, -(-(offset + len(buffer)) // size)
        out = np.frombuffer(buffer, "u1")
        if offset % size == 0 and len(buffer) % size == 0:
            self._compute(first, out.view(self.dtype))
        else:
            whole = np.empty(last - first, self.dtype)
            self._compute(first, whole)
            out[:] = whole.view("u1")[offset - first * size :][: len(out)]

    def _compute(self, first: int, out: np.ndarray[Any, Any]) -> None:
        import numpy as np

        flat = np.arange(first, first + len(out))
        out[:] = self.function(*(np.unravel_index(flat, self.shape) if self.shape else ()))

    def __repr__(self) -> str:
        name = getattr(self.function, "__qualname__", repr(self.function))
        return f"Computed({name}, {self.shape}, '{self.dtype}')"
