"""An exception of a pager in words, for its owner."""

from __future__ import annotations

import traceback

from userfault.errors import shown

__all__ = ["described"]


def described(error: BaseException) -> str:
    """Class, message and traceback, with zero bytes between them.

    Args:
        error: What a source raised.

    Returns:
        The text; the owner makes a `RemoteError` of it.
    """
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    message = shown(error)
    trace = "".join(traceback.format_exception(error, limit=-8))
    text = "\0".join(part.replace("\0", "") for part in (name[:200], message[:800], trace[-2800:]))
    return text.encode("utf-8", "backslashreplace").decode()  # lone surrogates have no UTF-8 form
