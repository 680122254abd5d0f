"""Sizes and times as people write them."""

import doctest
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from userfault import units
from userfault.errors import OptionError
from userfault.units import format_bytes, format_seconds, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1B", 1),
        ("64KiB", 65536),
        ("64K", 65536),
        ("64k", 65536),
        ("64kib", 65536),
        (" 64 KiB ", 65536),
        ("64KB", 64000),
        ("1.5GiB", 3 << 29),
        (".5MiB", 1 << 19),
        ("1.MiB", 1 << 20),
        ("2TiB", 2 << 40),
        ("0.1MB", 100_000),
        ("1EiB", 1 << 60),
    ],
)
def test_size_text_is_bytes(text, size):
    """Every way to write a size that the documents show."""
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "wrong", ["", "KiB", "64 KiBs", "-1", "-1KiB", "0.3KiB", "1e6", "0x10", "64,5", "1.2.3", "9EiB", "٣", "inf", "nan"]
)
def test_size_nonsense_is_refused_with_the_text(wrong):
    """A mistake is named, never guessed at."""
    with pytest.raises(OptionError) as error:
        parse_bytes(wrong)
    assert repr(wrong) in str(error.value)


@pytest.mark.parametrize(("number", "size"), [(0, 0), (65536, 65536), (2.0, 2), (1e9, 10**9), (np.int64(7), 7)])
def test_size_number_is_bytes(number, size):
    """Numbers are bytes, whatever whole number they are."""
    assert parse_bytes(number) == size


@pytest.mark.parametrize(
    "wrong", [-1, 1.5, math.nan, math.inf, 2**63, 10**400, 10**5000, "9" * 5000], ids=lambda wrong: type(wrong).__name__
)
def test_size_that_is_none_is_refused_with_the_parameter(wrong):
    """Negative, broken and endless sizes; what is shown of them is short."""
    with pytest.raises(OptionError, match=r"^unit=.{1,150}: must be ") as error:
        parse_bytes(wrong, "unit")
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("wrong", [None, True, [], b"64KiB"])
def test_size_of_another_type_is_a_type_error(wrong):
    """True is not one byte."""
    with pytest.raises(TypeError, match="a size must be"):
        parse_bytes(wrong)
    with pytest.raises(TypeError, match="timeout must be"):
        parse_seconds(wrong, "timeout")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("30s", 30.0),
        ("1.5", 1.5),
        ("100us", 1e-4),
        ("100µs", 1e-4),
        ("5ns", 5e-9),
        ("2min", 120.0),
        ("1h", 3600.0),
        (3, 3.0),
        (0.1, 0.1),
        (np.float32(0.5), 0.5),
    ],
)
def test_time_is_seconds(text, seconds):
    """Texts and numbers of seconds."""
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    "wrong", ["", "ms", "-1s", "1m", "5 sec", "1d", -0.1, math.nan, math.inf, 10**400, "9" * 400, "9" * 5000]
)
def test_time_nonsense_is_refused_with_the_parameter(wrong):
    """`m` could be minutes or milli-anything: neither. And no number is too large for an error of ours."""
    with pytest.raises(OptionError, match=r"^timeout=.{1,150}: must be "):
        parse_seconds(wrong, "timeout")


@given(st.integers(0, 2**63 - 1))
def test_sizes_are_written_to_two_decimals(size):
    """What is printed is the size, as far as two decimals of its unit can say it."""
    number, unit = re.fullmatch(r"([0-9.]+)([A-Z]?i?B)", format_bytes(size)).groups()
    assert abs(float(number) * parse_bytes(f"1{unit}") - size) <= 0.00501 * parse_bytes(f"1{unit}")
    assert float(number) >= 1 or size == 0
    assert parse_bytes(str(size)) == size


@pytest.mark.parametrize("power", range(7))
@pytest.mark.parametrize("factor", [1, 3, 64, 1023])
def test_whole_units_are_written_exactly(power, factor):
    """64 KiB is written 64KiB."""
    size = factor * 1024**power
    if size < 2**63:
        assert parse_bytes(format_bytes(size)) == size


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "250ms"), (90, "90s"), (1234.5, "1234s"), (0.0000123, "12.3us"), (0, "0us"), (1, "1s")]
)
def test_times_are_written_with_a_unit_that_suits(seconds, text):
    """Three digits are enough."""
    assert format_seconds(seconds) == text


def test_examples_of_the_documents_hold():
    """Docstrings do not lie."""
    assert doctest.testmod(units).failed == 0
