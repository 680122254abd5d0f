"""Sizes and times as people write them: ``64MiB``, ``250ms``, or plain numbers of bytes and seconds.

Binary units are powers of 1024 (``KiB`` or just ``K``), decimal ones powers of 1000 (``KB``); capital letters do not
matter. Fractions are exact: ``1.5GiB`` is 1610612736 bytes, and ``0.3KiB`` is refused, for it is no whole number.
"""

from __future__ import annotations

import math
import operator
import re
from fractions import Fraction
from typing import SupportsFloat, SupportsIndex

__all__ = ["format_bytes", "format_seconds", "parse_bytes", "parse_seconds"]

_LETTERS = "kmgtpe"
_BYTES = (
    {"": 1, "b": 1}
    | {letter + ending: 1024**power for power, letter in enumerate(_LETTERS, 1) for ending in ("", "ib")}
    | {letter + "b": 1000**power for power, letter in enumerate(_LETTERS, 1)}
)
_SECONDS = {
    "": Fraction(1),
    "ns": Fraction(1, 10**9),
    "us": Fraction(1, 10**6),
    "µs": Fraction(1, 10**6),  # the micro sign
    "μs": Fraction(1, 10**6),  # the Greek letter
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "min": Fraction(60),
    "h": Fraction(3600),
}
_SHOWN = (("s", 1.0), ("ms", 1e3), ("us", 1e6))
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zµμ]*)\s*", re.IGNORECASE)
_MOST_BYTES = 2**63 - 1  # what a file offset can say


def parse_bytes(size: str | SupportsIndex | float) -> int:
    """Read a size.

    Args:
        size: a number of bytes, or a text such as ``"64KiB"``, ``"1.5 GiB"``, ``"4096"``, ``"2MB"``.

    Returns:
        Bytes, 0 or more.

    Raises:
        ValueError: no size, a negative one, or no whole number of bytes.
        TypeError: neither a number nor a text.

    Example:
        >>> parse_bytes("64KiB")
        65536
    """
    if isinstance(size, str):
        exact = _parse(size, _BYTES, "a size such as 64KiB, 1.5GiB or 4096")
    elif isinstance(size, float):
        exact = _finite(size, "a size")
    else:
        exact = Fraction(_index(size, "a size"))
    if exact.denominator != 1:
        raise ValueError(f"{size!r} is no whole number of bytes")
    return int(_within(exact, size, _MOST_BYTES))


def parse_seconds(time: str | SupportsFloat) -> float:
    """Read a time.

    Args:
        time: a number of seconds, or a text such as ``"250ms"``, ``"30s"``, ``"1.5"``, ``"2min"``.

    Returns:
        Seconds, 0 or more.

    Raises:
        ValueError: no time, or a negative one.
        TypeError: neither a number nor a text.

    Example:
        >>> parse_seconds("250ms")
        0.25
    """
    if isinstance(time, str):
        exact = _parse(time, _SECONDS, "a time such as 250ms, 30s or 1.5")
    elif isinstance(time, bool) or not isinstance(time, SupportsFloat):
        raise TypeError(f"a time must be a number or a text, not {type(time).__name__}")
    else:
        exact = _finite(float(time), "a time")
    return float(_within(exact, time, math.inf))


def format_bytes(size: int) -> str:
    """Write a size with the largest unit that leaves at least 1, with at most two decimals.

    Args:
        size: bytes.

    Example:
        >>> format_bytes(65536), format_bytes(1500)
        ('64KiB', '1.46KiB')
    """
    power = min(max(abs(size).bit_length() - 1, 0) // 10, len(_LETTERS))
    if power == 0:
        return f"{size}B"
    digits = f"{size / 1024**power:.2f}".rstrip("0").rstrip(".")
    return f"{digits}{_LETTERS[power - 1].upper()}iB"


def format_seconds(seconds: float) -> str:
    """Write a time with a unit that suits it, with three digits.

    Args:
        seconds: seconds, 0 or more.

    Example:
        >>> format_seconds(0.25), format_seconds(90)
        ('250ms', '90s')
    """
    unit, scale = next(((unit, scale) for unit, scale in _SHOWN if seconds * scale >= 1), _SHOWN[-1])
    value = seconds * scale
    return f"{value:.0f}{unit}" if value >= 100 else f"{value:.3g}{unit}"


def _parse(text: str, units: dict[str, int] | dict[str, Fraction], wanted: str) -> Fraction:
    match = _NUMBER.fullmatch(text)
    unit = units.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f"{text!r} is not {wanted}")
    number = match[1] + "0" if match[1].endswith(".") else match[1]
    return Fraction(number) * unit


def _finite(number: float, wanted: str) -> Fraction:
    if not math.isfinite(number):
        raise ValueError(f"{number!r} is not {wanted}")
    return Fraction(number)


def _index(number: SupportsIndex, wanted: str) -> int:
    if isinstance(number, bool):
        raise TypeError(f"{wanted} must be a number or a text, not bool")
    try:
        return operator.index(number)
    except TypeError:
        raise TypeError(f"{wanted} must be a number or a text, not {type(number).__name__}") from None


def _within(exact: Fraction, given: object, most: float) -> Fraction:
    if exact < 0:
        raise ValueError(f"{given!r} is negative")
    if exact > most:
        raise ValueError(f"{given!r} is more than {int(most)}")
    return exact
