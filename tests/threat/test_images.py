"""Images made to harm, and damaged ones: refused or named, never a wrong page, a crash, or much memory."""

import io
import os
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.images import read_table, sample, write_table

from userfault import _core
from userfault.errors import ImageError
from userfault.image import inspect, pack, verify

pyzstd = pytest.importorskip("pyzstd", reason="a second zstd to compare with")

DATA = sample(11, 600_000)
ZSTD = pyzstd.compress(b"x" * 1000)


def image_of(data):
    out = io.BytesIO()
    pack(data, out)
    return out.getvalue()


IMAGE = image_of(DATA)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "image"


# Stumps, and tables that lie


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a zstd image"),
        (b"hello, this is text", "begins with 0x6c6c6568"),
        (pyzstd.compress(DATA), "zstd -dc FILE | userfault pack - -o OUT"),
        (IMAGE[:-1], "no seek table"),
        (IMAGE + b"\0", "no seek table"),
        (IMAGE[: len(IMAGE) // 2], "no seek table"),
        (IMAGE[:100] + IMAGE[200:], "does not end before the seek table"),
        (IMAGE[:100] + IMAGE[:100] + IMAGE[100:], "100 bytes belong to no frame"),
    ],
)
def test_what_is_no_image_says_what_and_where(path, content, words):
    """The error is a ValueError that names the file and the first thing wrong."""
    path.write_bytes(content)
    for look in (inspect, verify):
        with pytest.raises(ImageError) as error:
            look(path)
        assert str(path) in str(error.value)
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([(len(ZSTD), 2**32 - 1)], "cannot hold 4294967295"),
        ([(len(ZSTD), (len(ZSTD) // 4) * (1 << 17) + 1)], "cannot hold"),
        ([(2**32 - 1, 1000)], "does not end before the seek table"),
        ([(0, 0), (len(ZSTD), 1000)], "frame 0 at offset 0: 0 compressed bytes"),
        ([(len(ZSTD), 1000), (len(ZSTD), 1000)], "frame 1"),
        ([(len(ZSTD) - 1, 1000)], "1 bytes belong to no frame"),
        ([], "bytes belong to no frame"),
    ],
)
def test_table_that_lies_about_sizes_is_refused(path, table, words):
    """Overlaps, gaps, bombs."""
    path.write_bytes(ZSTD + write_table(table))
    with pytest.raises(ImageError, match=words):
        inspect(path)


@pytest.mark.parametrize("frames", [2, 1000, 0x0800_0000, 0x0800_0001, 2**32 - 1])
def test_table_that_lies_about_its_length_is_refused(path, frames):
    """The number of frames is believed only as far as the file is long."""
    path.write_bytes(ZSTD + write_table([(len(ZSTD), 1000)], frames=frames))
    with pytest.raises(ImageError):
        inspect(path)
    os.truncate(path, 17 * 0x0800_0000)
    with open(path, "r+b") as file:
        file.seek(-9, os.SEEK_END)
        file.write(struct.pack("<IBI", frames, 0, 0x8F92EAB1))
    with pytest.raises(ImageError):
        inspect(path)


def test_reserved_bits_are_refused(path):
    """A later format is not guessed at."""
    path.write_bytes(ZSTD + write_table([(len(ZSTD), 1000)], descriptor=0x04))
    with pytest.raises(ImageError, match="bits 2 to 6"):
        inspect(path)


# Damage


def test_each_damaged_frame_is_named(path):
    """Verify goes on after the first one, and says what is lost."""
    damaged = bytearray(IMAGE)
    table = read_table(IMAGE)
    offsets = [sum(entry.compressed for entry in table[:number]) for number in range(len(table))]
    for number in (1, 5):
        damaged[offsets[number] + table[number].compressed // 2] ^= 1
    path.write_bytes(damaged)
    found = verify(path)
    assert [bad.frame for bad in found.bad] == [1, 5]
    assert found.bad[0].decoded_offset == table[0].decoded
    assert found.bad[1].decoded_bytes == table[5].decoded
    assert f"frame 5 at offset {offsets[5]}" in found.bad[1].error


def test_frame_that_decodes_to_another_length_is_bad(path):
    """Longer or shorter than the table says, and found without room for more."""
    for length in (999, 1001):
        path.write_bytes(ZSTD + write_table([(len(ZSTD), length)]))
        assert f"the seek table says {length}" in verify(path).bad[0].error


def test_zeros_with_a_wrong_checksum_are_bad(path):
    """They are not decompressed, but they are checked."""
    frame, entry = _core.zero_frame(1 << 20)
    wrong = bytearray(entry)
    wrong[-1] ^= 1
    path.write_bytes(frame + _core.seek_table(bytes(wrong)))
    assert "checksum" in verify(path).bad[0].error
    path.write_bytes(frame + _core.seek_table(entry))
    assert verify(path).ok


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, len(IMAGE) - 1), st.integers(0, 7)), min_size=1, max_size=4),
    st.booleans(),
    st.none() | st.integers(0, len(IMAGE)),
)
def test_damage_is_found_or_harmless(path, flips, at_end, cut):
    """Flipped bits and cuts: refused, or named by verify, or they change nothing."""
    damaged = bytearray(IMAGE)
    for place, bit in flips:
        damaged[-1 - place % 200 if at_end else place] ^= 1 << bit
    path.write_bytes(damaged[:cut])
    try:
        found = verify(path)
    except ImageError:
        return
    if found.ok:
        assert pyzstd.decompress(bytes(damaged[:cut])) == DATA


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1) | st.integers(0, 100), st.integers(0, 2**32 - 1)), max_size=6),
    st.none() | st.integers(0, 2**32 - 1),
    st.integers(0, 255),
    st.binary(max_size=300),
)
def test_hostile_tables_are_refused_or_verified_false(path, entries, frame_count, descriptor, body):
    """No table makes us crash or take much memory."""
    path.write_bytes(ZSTD[:4] + body + write_table(entries, frames=frame_count, descriptor=descriptor))
    try:
        found = verify(path)
    except ImageError:
        return
    assert found.decoded_bytes == 0 or not found.ok
