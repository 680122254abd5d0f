"""How values lie in memory: plain bytes, or the elements of an array."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Buffer

__all__ = ["Form", "form_of", "show", "write"]


class Form(NamedTuple):
    """What an array is besides its elements."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]

    def over(self, memory: Any) -> np.ndarray[Any, Any]:
        """The array whose elements lie there."""
        import numpy as np

        return np.ndarray(self.shape, self.dtype, buffer=memory, order=self.order)


def form_of(value: Any) -> tuple[Form | None, int, Any]:
    """Look at a value.

    Args:
        value: A bytes-like object or an ndarray.

    Returns:
        Its form (None: bytes), its size in bytes, and what `write` copies.

    Raises:
        TypeError: It is neither, or it holds Python objects.
    """
    np = sys.modules.get("numpy")  # where there is an array, it was imported
    if np is not None and isinstance(value, np.ndarray):
        if type(value) not in (np.ndarray, np.memmap):
            raise TypeError(f"{type(value).__name__} is more than its elements; keep numpy.asarray(value)")
        if value.dtype.hasobject:
            raise TypeError(f"dtype {value.dtype} holds Python objects, which cannot live in volatile memory")
        order: Literal["C", "F"] = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        return Form(value.dtype, value.shape, order), value.nbytes, value
    if np is not None and isinstance(value, np.generic):
        raise TypeError(f"{type(value).__name__} would come back as bytes; keep numpy.asarray(value)")
    view = memoryview(value)
    try:
        plain: Any = view.cast("B")
    except TypeError:  # not contiguous, or elements of a kind that memoryview does not know
        plain = view.tobytes()
    return None, view.nbytes, plain


def write(memory: memoryview, form: Form | None, data: Any) -> None:
    """Copy what `form_of` found.

    Args:
        memory: As many bytes as it said.
        form: As it said.
        data: As it said.
    """
    if form is None:
        memory[:] = data
    else:
        form.over(memory)[...] = data


def show(memory: Buffer, form: Form | None, *, copy: bool) -> Any:
    """The value that lies in memory.

    Args:
        memory: Its bytes.
        form: As `form_of` said.
        copy: A copy; if not, a view.

    Returns:
        bytes or an ndarray; without copying a memoryview or an ndarray.
    """
    if form is None:
        return bytes(memory) if copy else memoryview(memory)
    array = form.over(memory)
    return array.copy(form.order) if copy else array
