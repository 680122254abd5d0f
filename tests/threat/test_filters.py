"""Filters made to harm: refused with what and where, and shuffled bytes are never handed out for those that were packed."""

import io
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.images import read_table, sample, write_table
from support.xxh64 import xxh64

import userfault as uf
from userfault.errors import ImageError
from userfault.image import Shuffle, inspect, pack, verify

pyzstd = pytest.importorskip("pyzstd", reason="a second zstd to compare with")

DATA = sample(13, 300_000)
RECORD_BYTES, GUARD_BYTES = 40, 24


def image_of(data, **options):
    out = io.BytesIO()
    pack(data, out, dtype="f4", offset=128, **options)
    return out.getvalue()


IMAGE = image_of(DATA)
TABLE = len(IMAGE) - 9 - 12 * len(read_table(IMAGE)) - 8
RECORD = TABLE - GUARD_BYTES - RECORD_BYTES


def signed(record):
    """The image with another record, and a guard that vouches for it: what a hostile writer makes."""
    entries = bytearray(IMAGE[TABLE + 8 : -9])
    entries[-24:-20] = struct.pack("<I", len(record))
    guard = IMAGE[TABLE - GUARD_BYTES : TABLE - 8] + struct.pack("<Q", xxh64(bytes(entries) + record))
    return IMAGE[:RECORD] + record + guard + IMAGE[TABLE : TABLE + 8] + bytes(entries) + IMAGE[-9:]


def record_of(*, version=1, kind=1, spare=0, item=4, block=65536, more=0, start=128, tag=b"uffilter", magic=0x184D2A5C):
    return struct.pack("<II8sBBHIIIQ", magic, 32, tag, version, kind, spare, item, block, more, start)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "image"


def test_hand_made_record_is_the_one_that_is_written():
    """So the cases below differ from a good image in what they say they do."""
    assert signed(record_of()) == IMAGE


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (record_of(version=2), "it is of version 2, and this reader knows version 1"),
        (record_of(version=0), "it is of version 0"),
        (record_of(version=2) + bytes(100), "it is of version 2"),
        (record_of(kind=2), "it is of kind 2"),
        (record_of(kind=0), "it is of kind 0"),
        (record_of(spare=1), "malformed"),
        (record_of(more=1), "malformed"),
        (record_of(magic=0x184D2A50), "malformed"),
        (record_of() + b"\0", "malformed"),
        (record_of()[:-1], "malformed"),
        (record_of()[:16], "malformed"),
        (record_of(item=0), "items of 0 bytes"),
        (record_of(item=1), "items of 1 bytes"),
        (record_of(item=2**32 - 1), "items of 4294967295 bytes"),
        (record_of(block=0), "blocks of 0 bytes"),
        (record_of(block=3), "blocks of 3 bytes"),
        (record_of(block=2**32 - 1), "blocks of 4294967295 bytes"),
        (record_of(block=65532), "frame 1 begins at byte 65536"),
        (record_of(start=300_001), "items begin at byte 300001 of 300000"),
        (record_of(start=2**64 - 1), "items begin at byte 18446744073709551615"),
    ],
)
def test_record_that_cannot_be_is_refused_by_whoever_opens_the_image(path, record, words):
    """Even though its guard is right; the error says where it lies."""
    path.write_bytes(signed(record))
    for opens in (inspect, verify, lambda path: uf.sources.Image(path).open()):
        with pytest.raises(ImageError) as error:
            opens(path)
        assert words in str(error.value)
        assert f"the filter at offset {RECORD} cannot be undone" in str(error.value)


def test_record_that_the_guard_does_not_vouch_for_is_refused(path):
    """A filter that was changed, or taken out with its entry, or put into an image that has none."""
    changed = IMAGE[:RECORD] + record_of(item=8) + IMAGE[RECORD + RECORD_BYTES :]
    entries = IMAGE[TABLE + 8 : -9]
    entries = entries[:-24] + entries[-12:]
    table = struct.pack("<II", 0x184D2A5E, len(entries) + 9) + entries + struct.pack("<IBI", len(entries) // 12, 0x80, 0x8F92EAB1)
    taken_out = IMAGE[:RECORD] + IMAGE[RECORD + RECORD_BYTES : TABLE] + table
    for image in (changed, taken_out):
        path.write_bytes(image)
        with pytest.raises(ImageError, match="is damaged: its checksum"):
            inspect(path)


def test_record_without_a_guard_or_elsewhere_is_refused(path):
    """Where a tool that knows no filters has put something behind the data, or made a table of its own."""
    frame = pyzstd.compress(b"x" * 65536)
    data, filters = (len(frame), 65536), (RECORD_BYTES, 0)
    for frames, table in [
        ([frame, record_of()], [data, filters]),
        ([record_of(), frame], [filters, data]),
        ([frame, record_of(), frame], [data, filters, data]),
        ([frame, record_of(), record_of()], [data, filters, filters]),
    ]:
        path.write_bytes(b"".join(frames) + write_table(table))
        with pytest.raises(ImageError, match="must be the last but one frame"):
            inspect(path)


def test_reader_from_before_there_were_filters_refuses():
    """It compares the guard with the entries alone, and finds the table damaged; of an image without filter it is right."""
    plain = io.BytesIO()
    pack(DATA, plain)
    for image, same in ((plain.getvalue(), True), (IMAGE, False)):
        start = len(image) - 9 - 12 * len(read_table(image))
        guard = image[start - 8 - GUARD_BYTES : start - 8]
        assert guard[8:16] == b"uftable1"
        assert (struct.unpack("<Q", guard[16:])[0] == xxh64(image[start:-9])) is same


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 2**32 - 1) | st.integers(2, 300),
    st.integers(0, 2**32 - 1) | st.sampled_from([4096, 16384, 32768, 65536]),
    st.integers(0, 2**64 - 1) | st.integers(0, 300_000),
)
def test_any_record_is_refused_or_undone(path, item, block, start):
    """No numbers make us crash, take much memory, or read what is not there: each that opens is a shuffle that could be."""
    path.write_bytes(signed(record_of(item=item, block=block, start=start)))
    try:
        found = inspect(path)
    except ImageError:
        return
    assert found.shuffle == Shuffle(item, block, start)
    assert 65536 % block == 0
    assert verify(path).ok
