"""Reading images: ours, other writers', damaged ones, and ones made to harm."""

import io
import os
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.images import read_table, sample, write_table

from userfault import _core
from userfault.errors import ImageError
from userfault.image import frames, inspect, pack, verify

pyzstd = pytest.importorskip("pyzstd", reason="another writer of seekable zstd")

DATA = sample(11, 600_000)


def image_of(data, **options):
    out = io.BytesIO()
    pack(data, out, **options)
    return out.getvalue()


IMAGE = image_of(DATA)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "image"


# What is good


def test_inspect_tells_what_was_packed(path):
    """Sizes, frames, zeros and checksums, from the table and a few bytes."""
    path.write_bytes(image_of(b"x" * 100_000 + bytes(1 << 20) + b"y" * 100_000, frame="32KiB"))
    info = inspect(path)
    assert (info.path, info.decoded_bytes, info.file_bytes) == (str(path), 1_248_576, path.stat().st_size)
    assert (info.frame_bytes, info.largest_frame_bytes, info.checksums) == (32768, 32768, True)
    assert (info.zero_frames, info.zero_bytes) == (1, 31 * 32768)
    assert info.ratio > 1000


def test_frames_agree_with_the_table(path):
    """Each frame as another reader of the table sees it."""
    path.write_bytes(IMAGE)
    entries = read_table(IMAGE)
    offset = decoded_offset = 0
    for entry, frame in zip(entries, frames(path), strict=True):
        assert (frame.offset, frame.decoded_offset) == (offset, decoded_offset)
        assert (frame.compressed_bytes, frame.decoded_bytes, frame.checksum) == (
            entry.compressed,
            entry.decoded,
            entry.checksum,
        )
        data = DATA[decoded_offset : decoded_offset + entry.decoded]
        assert frame.zero == (bool(data) and not any(data))
        assert pyzstd.decompress(IMAGE[offset : offset + entry.compressed]) == data
        offset += entry.compressed
        decoded_offset += entry.decoded


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_verify_of_a_good_image_finds_nothing(path, threads):
    """All frames, any number of threads, progress to the end."""
    path.write_bytes(IMAGE)
    seen = []
    found = verify(path, threads=threads, progress=lambda *now: seen.append(now))
    assert found.ok
    assert found.bad == ()
    assert found.decoded_bytes == len(DATA)
    assert seen[-1] == (len(DATA), len(DATA))


# Other writers and readers


@pytest.mark.parametrize("frame", [4096, 65536, 100_001, 1 << 20])
def test_file_of_another_writer_opens(path, frame):
    """Any frame size, no checksums, no guard."""
    with pyzstd.SeekableZstdFile(path, "w", max_frame_content_size=frame) as file:
        file.write(DATA)
    info = inspect(path)
    assert info.decoded_bytes == len(DATA)
    assert not info.checksums
    assert info.frame_bytes == frame or len(DATA) <= frame
    assert verify(path).ok


def test_file_with_flushes_and_skippable_frames_opens(path):
    """Frames of odd sizes, and frames to be skipped, if the table accounts for them."""
    skipped = struct.pack("<II", 0x184D2A53, 100) + bytes(100)
    parts = [pyzstd.compress(DATA[:777]), skipped, pyzstd.compress(b""), pyzstd.compress(DATA[777:])]
    sizes = [777, 0, 0, len(DATA) - 777]
    path.write_bytes(b"".join(parts) + write_table(list(zip(map(len, parts), sizes, strict=True))))
    info = inspect(path)
    assert (info.frames, info.frame_bytes, info.decoded_bytes) == (2, None, len(DATA))
    assert verify(path).ok


def test_another_reader_finds_any_byte_of_ours(path):
    """Random access by a reader that knows nothing of guards and frames of zeros."""
    path.write_bytes(IMAGE)
    with pyzstd.SeekableZstdFile(path) as file:
        for place in range(0, len(DATA), 77_777):
            file.seek(place)
            assert file.read(1000) == DATA[place : place + 1000]


# What is not an image


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


def test_what_cannot_be_read_is_an_os_error(tmp_path):
    """With the errno and the name, as open() gives."""
    with pytest.raises(FileNotFoundError) as error:
        inspect(tmp_path / "missing")
    assert error.value.filename == str(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        inspect(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="seek"):
        verify(tmp_path / "pipe")


ZSTD = pyzstd.compress(b"x" * 1000)


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
