"""Sizes and times as people write them: ``64MiB``, ``250ms``, or plain numbers of bytes and seconds.

Binary units are powers of 1024 (``KiB`` or just ``K``), decimal ones powers of 1000 (``KB``); capital letters do not
matter. Fractions are exact: ``1.5GiB`` is 1610612736 bytes, and ``0.3KiB`` is refused, for it is no whole number.
"""

from __future__ import annotations

import operator
import re
import sys
from fractions import Fraction
from typing import SupportsFloat, SupportsIndex

from userfault.errors import OptionError

__all__ = ["format_bytes", "format_seconds", "parse_bytes", "parse_count", "parse_seconds"]

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
_MOST_SECONDS = sys.float_info.max


def parse_bytes(size: str | SupportsIndex | float, name: str = "") -> int:
    """Read a size.

    Args:
        size: a number of bytes, or a text such as ``"64KiB"``, ``"1.5 GiB"``, ``"4096"``, ``"2MB"``.
        name: the parameter that it was given for; errors begin with it.

    Returns:
        Bytes, 0 or more.

    Raises:
        OptionError: a ValueError: no size, a negative one, or no whole number of bytes.
        TypeError: neither a number nor a text.

    Example:
        >>> parse_bytes("64KiB")
        65536
    """
    try:
        if isinstance(size, str):
            exact = _parse(size, _BYTES, "a size such as 64KiB, 1.5GiB or 4096")
        elif isinstance(size, float):
            exact = _finite(size)
        else:
            exact = Fraction(_index(size, name or "a size"))
        if exact.denominator != 1:
            raise _Wrong("a whole number of bytes")
        return int(_within(exact, _MOST_BYTES))
    except _Wrong as wrong:
        raise OptionError(f"{_shown(size, name)}: must be {wrong}") from None


def parse_seconds(time: str | SupportsFloat, name: str = "") -> float:
    """Read a time.

    Args:
        time: a number of seconds, or a text such as ``"250ms"``, ``"30s"``, ``"1.5"``, ``"2min"``.
        name: the parameter that it was given for; errors begin with it.

    Returns:
        Seconds, 0 or more.

    Raises:
        OptionError: a ValueError: no time, or a negative one.
        TypeError: neither a number nor a text.

    Example:
        >>> parse_seconds("250ms")
        0.25
    """
    try:
        if isinstance(time, str):
            exact = _parse(time, _SECONDS, "a time such as 250ms, 30s or 1.5")
        elif isinstance(time, bool) or not isinstance(time, SupportsFloat):
            raise TypeError(f"{name or 'a time'} must be a number or a text, not {type(time).__name__}")
        else:
            exact = _finite(time)
        return float(_within(exact, _MOST_SECONDS))
    except _Wrong as wrong:
        raise OptionError(f"{_shown(time, name)}: must be {wrong}") from None


def parse_count(count: SupportsIndex, name: str, least: int, most: int) -> int:
    """Read a whole number.

    Args:
        count: the number.
        name: the parameter that it was given for.
        least: the smallest that makes sense.
        most: the largest.

    Raises:
        OptionError: it is less or more.
        TypeError: no whole number.

    Example:
        >>> parse_count(3, "attempts", 1, 10)
        3
    """
    try:
        number = None if isinstance(count, bool) else operator.index(count)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be a whole number, not {type(count).__name__}")
    if not least <= number <= most:
        raise OptionError(f"{_shown(number, name)}: must be from {least} to {most}")
    return number


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


class _Wrong(Exception):
    """What a value must be, and is not."""


def _shown(given: object, name: str) -> str:
    """A value as it was given, cut where it is long, with the name of its parameter."""
    try:
        text = repr(given)
    except ValueError:  # Python writes no number of more than some thousand digits
        text = "a number of thousands of digits"
    text = text if len(text) <= 80 else f"{text[:60]}…"
    return f"{name}={text}" if name else text


def _parse(text: str, units: dict[str, int] | dict[str, Fraction], wanted: str) -> Fraction:
    match = _NUMBER.fullmatch(text)
    unit = units.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise _Wrong(wanted)
    number = match[1] + "0" if match[1].endswith(".") else match[1]
    try:
        return Fraction(number) * unit
    except ValueError:  # Python reads no number of more than some thousand digits
        raise _Wrong(wanted) from None


def _finite(number: SupportsFloat) -> Fraction:
    try:
        return Fraction(float(number))
    except (OverflowError, ValueError):  # infinite, no number, or too large for a float
        raise _Wrong("finite") from None


def _index(number: SupportsIndex, what: str) -> int:
    try:
        if not isinstance(number, bool):
            return operator.index(number)
    except TypeError:
        pass
    raise TypeError(f"{what} must be a number or a text, not {type(number).__name__}")


def _within(exact: Fraction, most: float) -> Fraction:
    if exact < 0:
        raise _Wrong("0 or more")
    if exact > most:
        raise _Wrong(f"at most {most}")
    return exact
