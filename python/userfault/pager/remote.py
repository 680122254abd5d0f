"""An exception of a pager in words, for its owner."""

from __future__ import annotations

import traceback

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
    try:
        message = str(error)
    except Exception:
        message = "(it cannot be shown)"
    trace = "".join(traceback.format_exception(error, limit=-8))
    return "\0".join(part.replace("\0", "") for part in (name[:200], message[:800], trace[-2800:]))
