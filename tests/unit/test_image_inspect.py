"""Reading images: ours and other writers'. Damaged and hostile ones are a matter of tests/threat."""

import io
import os
import struct

import pytest
from support.images import read_table, sample, write_table

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


# What is no image


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
