"""The byte-shuffle: what was packed comes back, by map, by load, and from what another zstd makes of the image."""

import io
import os
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import userfault as uf
from userfault.errors import ImageError, OptionError
from userfault.image import Shuffle, inspect, pack, unshuffle, verify
from userfault.image.shuffling import item_bytes_of, npy_data_offset

pyzstd = pytest.importorskip("pyzstd", reason="a second zstd to restore with")


def noisy(count, dtype="f4"):
    numbers = np.random.default_rng(5)
    return np.round(np.sin(np.arange(count) / 800) + numbers.normal(0, 1e-3, count), 4).astype(dtype)


def shuffled_by_hand(data, shuffle):
    """What the words of the format say, with nothing of ours."""
    out = bytearray(data)
    for at in range(0, len(data), shuffle.block_bytes):
        stop = min(at + shuffle.block_bytes, len(data))
        first = max(at, shuffle.offset)
        first += (shuffle.offset - first) % shuffle.item_bytes
        count = max(stop - first, 0) // shuffle.item_bytes
        items = np.frombuffer(data, np.uint8, count * shuffle.item_bytes, first if count else 0)
        out[first : first + items.size] = items.reshape(count, shuffle.item_bytes).T.tobytes() if count else b""
    return bytes(out)


def restored(image, shuffle):
    out = io.BytesIO()
    unshuffle(pyzstd.decompress(image), out, shuffle)
    return out.getvalue()


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 60_000),
    st.integers(2, 40) | st.sampled_from([2, 4, 8, 16, 255]),
    st.sampled_from([4096, 12288, 65536]),
    st.sampled_from([1, 2, 3, 8]),
    st.integers(0, 9000),
)
def test_any_bytes_come_back_by_our_way_and_by_zstds(length, item, frame, blocks, offset):
    """Every item size, block and offset; the bytes in the file are those that the words of the format say."""
    data = random.Random(length).randbytes(length // 3) + bytes(length // 3) + b"word" * (length // 12)
    offset, block = min(offset, len(data)), frame // blocks if frame % blocks == 0 and frame // blocks >= item else frame
    out = io.BytesIO()
    packed = pack(data, out, dtype=item, frame=frame, block=block, offset=offset)
    assert packed.shuffle == Shuffle(item, block, offset)
    assert pyzstd.decompress(out.getvalue()) == shuffled_by_hand(data, packed.shuffle)
    assert restored(out.getvalue(), packed.shuffle) == data


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c16", "i4", "S12"])
def test_packed_array_loads_as_it_was(tmp_path, dtype):
    """The header shifts no item, whatever reads it; and the image says how it was packed."""
    array = noisy(100_000).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    pack(tmp_path / "a.npy", tmp_path / "a.npy.zst", dtype=dtype)
    found = inspect(tmp_path / "a.npy.zst")
    assert found.shuffle == Shuffle(array.dtype.itemsize, 65536, 128)
    assert verify(tmp_path / "a.npy.zst").ok
    image = (tmp_path / "a.npy.zst").read_bytes()
    assert restored(image, found.shuffle) == (tmp_path / "a.npy").read_bytes()
    index = uf.sources.Image(tmp_path / "a.npy.zst").open()
    assert index.length == os.path.getsize(tmp_path / "a.npy")


def test_noisy_floats_become_smaller_and_a_pipe_gives_the_same(tmp_path):
    """The point of it; standard input has no name and no length, and its .npy header is found all the same."""
    np.save(tmp_path / "a.npy", noisy(300_000))
    data = (tmp_path / "a.npy").read_bytes()
    plain, path, stream = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pack(data, plain)
    pack(tmp_path / "a.npy", path, dtype="f4")
    pack(io.BytesIO(data), stream, dtype="f4")
    assert path.getvalue() == stream.getvalue()
    assert len(path.getvalue()) < 0.9 * len(plain.getvalue())


def test_where_the_items_of_npy_files_begin():
    """Each version of the header; and nothing is made of other bytes."""
    for version in [(1, 0), (2, 0), (3, 0)]:
        out = io.BytesIO()
        np.lib.format.write_array(out, np.zeros(100, "f4"), version)
        assert npy_data_offset(out.getvalue()[:64]) == len(out.getvalue()) - 400
    assert [npy_data_offset(head) for head in (b"", b"\x93NUMPY\1\0", b"ordinary bytes")] == [0, 0, 0]


def test_sizes_of_items():
    """A dtype, its name, or a number of bytes, as text too."""
    given_types = ["f4", "<f8", "complex128", np.float32, np.dtype("i2"), 3, "3", [("a", "i4"), ("b", "u1")], np.int64(7)]
    assert [item_bytes_of(one) for one in given_types] == [4, 8, 16, 4, 2, 3, 3, 5, 7]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "u1"}, "items of 1 bytes"),
        ({"dtype": 256}, "items of 256 bytes"),
        ({"dtype": -4}, "items of -4 bytes"),
        ({"dtype": "S300"}, "items of 300 bytes"),
        ({"dtype": "nonsense"}, "must be a NumPy dtype"),
        ({"dtype": ""}, "must be a NumPy dtype"),
        ({"dtype": "O"}, "Python objects"),
        ({"dtype": "f4", "block": "48KiB"}, "must be a multiple"),
        ({"dtype": "f4", "block": 2}, "must hold an item"),
        ({"dtype": "f4", "offset": 4001}, "items begin at byte 4001, and there are 4000"),
        ({"block": 4096}, "need a dtype"),
        ({"offset": 4}, "need a dtype"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    """Before a byte is written."""
    out = io.BytesIO()
    with pytest.raises(OptionError, match=words):
        pack(b"1234" * 1000, out, **options)
    assert out.getvalue() == b""


def test_header_that_promises_more_than_there_is_is_refused():
    """Of a stream that is known only when it ends."""
    head = b"\x93NUMPY\2\0" + (1 << 30).to_bytes(4, "little")
    with pytest.raises(OptionError, match="items begin at byte 1073741836, and 5012 bytes came"):
        pack(io.BytesIO(head + bytes(5000)), io.BytesIO(), dtype="f4")


def test_shuffles_that_cannot_be_are_refused():
    """The same limits as in a file."""
    for numbers in [(1, 64, 0), (256, 512, 0), (4, 3, 0), (4, 1 << 27, 0), (4, 64, -1)]:
        with pytest.raises(OptionError):
            Shuffle(*numbers)


def test_stream_of_another_length_is_an_error():
    """Cut off, or not what was decompressed from that image."""
    for length, words in [(5, "more than 5 bytes came"), (7, "6 bytes came, and 7")]:
        with pytest.raises(ImageError, match=words):
            unshuffle(b"acebdf", io.BytesIO(), Shuffle(2), length=length)


def test_streaming_takes_bounded_memory(child, tmp_path):
    """A gigabyte of zeros and a little goes through a few megabytes."""
    path = tmp_path / "big"
    with open(path, "wb") as file:
        file.write(b"x" * 100)
        file.truncate(1 << 30)
    code = """
        import resource, sys
        from userfault.image import Shuffle, unshuffle
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with open(sys.argv[1], "rb", buffering=0) as file, open("/dev/null", "wb") as out:
            assert unshuffle(file, out, Shuffle(4), length=1 << 30) == 1 << 30
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
    """
    assert int(child(code, args=[path], timeout=40).check().stdout) < 40
