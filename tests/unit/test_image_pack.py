"""Packing: any source, the same bytes back, and an output that is whole or absent."""

import errno
import io
import os
import random
import stat
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.images import read_table, sample

from userfault.errors import ImageError, OptionError
from userfault.image import inspect, pack, verify
from userfault.image import writing as writing_module

pyzstd = pytest.importorskip("pyzstd", reason="a second zstd to restore with")

SIZE = 1_500_000


def packed(source, **options):
    out = io.BytesIO()
    result = pack(source, out, **options)
    assert result.file_bytes == len(out.getvalue())
    return out.getvalue()


stretch = st.tuples(st.sampled_from(["zeros", "noise", "words"]), st.integers(1, 30_000))


@settings(max_examples=60, deadline=None)
@given(st.lists(stretch, max_size=8), st.sampled_from([4096, 8192, 65536, 12288]), st.integers(1, 3))
def test_any_bytes_come_back(stretches, frame, threads):
    """Whatever lies in a file, another zstd restores it, and the table accounts for every byte."""
    make = {"zeros": bytes, "noise": random.Random(1).randbytes, "words": lambda size: (b"words " * size)[:size]}
    data = b"".join(make[kind](size) for kind, size in stretches)
    image = packed(data, frame=frame, threads=threads)
    assert pyzstd.decompress(image) == data
    entries = read_table(image)
    assert sum(entry.decoded for entry in entries) == len(data)
    starts = np.cumsum([0, *(entry.decoded for entry in entries)])[:-2]
    assert all(start % frame == 0 for start in starts)


def test_every_kind_of_source_gives_the_same_image(tmp_path):
    """A path, a file object, bytes-like objects and a pipe that gives little at a time."""
    data = sample(1, SIZE)
    path = tmp_path / "data"
    path.write_bytes(data)
    wanted = packed(data)
    read_end, write_end = os.pipe()
    feeder = threading.Thread(target=lambda: [os.write(write_end, data[at : at + 999]) for at in range(0, SIZE, 999)])
    feeder.start()
    with open(read_end, "rb", buffering=0) as pipe:
        closer = threading.Thread(target=lambda: (feeder.join(), os.close(write_end)))
        closer.start()
        assert packed(pipe) == wanted
        closer.join()
    for source in (path, str(path), io.BytesIO(data), bytearray(data), memoryview(data), np.frombuffer(data, "u1")):
        assert packed(source) == wanted, source


@pytest.mark.parametrize("level", [-3, 1, 19])
def test_level_changes_the_size_and_nothing_else(level):
    """Any level of zstd restores."""
    data = sample(2, 300_000)
    assert pyzstd.decompress(packed(data, level=level)) == data


def test_runs_of_zeros_are_joined_across_pieces():
    """A long run is one frame, not one per piece or thread."""
    data = b"begin" + bytes(10 << 20) + b"end"
    entries = read_table(packed(data, frame="64KiB"))
    # The frame with the beginning, the zeros between, the frame with the end, and the guard of the table.
    assert [entry.decoded for entry in entries] == [65536, (10 << 20) - 65536, 8, 0]
    assert sum(entry.compressed for entry in entries) < 1000


def test_empty_source_is_an_image_of_nothing(tmp_path):
    """Nothing can be packed too."""
    out = tmp_path / "empty.img"
    result = pack(b"", out)
    assert (result.decoded_bytes, result.frames) == (0, 0)
    assert inspect(out).decoded_bytes == 0
    assert verify(out).ok
    assert pyzstd.decompress(out.read_bytes()) == b""


def test_file_that_does_not_tell_its_length_is_read_to_its_end(tmp_path):
    """What /proc holds has no size, but bytes; a file without any is an image of nothing."""
    with open("/proc/version", "rb") as file:
        data = file.read()
    assert os.stat("/proc/version").st_size == 0 < len(data)
    assert pyzstd.decompress(packed("/proc/version")) == data
    (tmp_path / "empty").touch()
    assert pyzstd.decompress(packed(tmp_path / "empty")) == b""


@pytest.mark.parametrize(
    "options", [{"frame": 0}, {"frame": 5000}, {"frame": "1GiB"}, {"frame": "some"}, {"level": 99}, {"threads": 0}]
)
def test_impossible_options_are_refused_before_anything_is_touched(tmp_path, options):
    """And the error is a ValueError that names the value."""
    with pytest.raises(OptionError):
        pack(b"data", tmp_path / "out", **options)
    assert os.listdir(tmp_path) == []


class Stuck(io.RawIOBase):
    def readable(self):
        return True

    def read(self, size=-1, /):
        return None


def test_stream_without_data_is_an_error_and_no_end():
    """A non-blocking stream that has nothing yet must not pass for an empty one."""
    with pytest.raises(BlockingIOError):
        packed(Stuck())


def test_progress_counts_to_the_end(tmp_path):
    """The total is known for files, and reached."""
    path = tmp_path / "data"
    path.write_bytes(sample(3, SIZE))
    seen = []
    pack(path, io.BytesIO(), progress=lambda *now: seen.append(now))
    assert seen == sorted(seen)
    assert seen[-1] == (SIZE, SIZE)
    pack(io.BytesIO(b"x"), io.BytesIO(), progress=lambda *now: seen.append(now))
    assert seen[-1] == (1, None)


# Sparse files


def test_holes_are_not_read(tmp_path, monkeypatch):
    """A file of 1 TiB with three pieces of data is packed in no time."""
    path = tmp_path / "sparse"
    places = {0: b"start", 300 << 30: b"middle", (1 << 40) - 3: b"end"}
    with open(path, "wb") as file:
        for place, data in places.items():
            file.seek(place)
            file.write(data)
    read = []
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: read.append(size) or real(fd, size, offset))
    result = pack(path, tmp_path / "out.img", frame="1MiB")
    assert (result.decoded_bytes, result.zero_bytes) == (1 << 40, (1 << 40) - (3 << 20))
    assert sum(read) <= 3 << 20
    info = inspect(tmp_path / "out.img")
    assert info.decoded_bytes == 1 << 40
    assert info.zero_bytes == result.zero_bytes


@pytest.mark.parametrize("seed", range(8))
def test_holes_at_odd_places_are_zeros(tmp_path, seed):
    """Holes and data that begin and end anywhere in a frame; one at the end of the file too."""
    numbers = random.Random(seed)
    path = tmp_path / "sparse"
    size = numbers.randrange(1, 3_000_000)
    with open(path, "wb") as file:
        for _ in range(numbers.randrange(6)):
            file.seek(numbers.randrange(size))
            file.write(numbers.randbytes(numbers.randrange(1, 50_000)))
        file.truncate(max(size, file.seek(0, os.SEEK_END)))
    image = packed(path, frame=numbers.choice(["4KiB", "64KiB", "1MiB", "12KiB"]))
    assert pyzstd.decompress(image) == path.read_bytes()


def test_filesystem_without_holes_is_read(tmp_path, monkeypatch):
    """Where SEEK_DATA is not known, all of it is data."""
    path = tmp_path / "data"
    path.write_bytes(sample(4, 500_000))
    wanted = packed(path)

    def no_holes(_fd, _offset, _whence):
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(os, "lseek", no_holes)
    assert packed(path) == wanted


def test_file_that_shrinks_meanwhile_is_an_error(tmp_path):
    """Missing bytes are not zeros."""
    path = tmp_path / "data"
    path.write_bytes(random.Random(5).randbytes(8 << 20))
    with pytest.raises(ImageError, match="was cut to"):
        pack(path, io.BytesIO(), threads=1, progress=lambda *_: os.truncate(path, 100))


# The output


def failing_stream():
    yield random.Random(6).randbytes(3 << 20)
    raise OSError(errno.EIO, "the disk is ill")


class Failing:
    def __init__(self):
        self.parts = failing_stream()

    def read(self, _size, /):
        return next(self.parts)


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.fixture(params=["nameless", "hidden"])
def way(request, monkeypatch):
    """Both ways to make a file that is not there yet."""
    if request.param == "hidden":
        real = os.open

        def refuse(path, flags, *more, **options):
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "not here")
            return real(path, flags, *more, **options)

        monkeypatch.setattr(writing_module.os, "open", refuse)
    return request.param


@pytest.mark.parametrize("before", [None, b"what was there"])
def test_output_is_whole_or_untouched(tmp_path, way, before):
    """An error or Ctrl-C on the way leaves what was there before, and nothing else."""
    out = tmp_path / "out.img"
    if before:
        out.write_bytes(before)
    names = os.listdir(tmp_path)
    for error, source, progress in ((OSError, Failing(), None), (KeyboardInterrupt, sample(7, SIZE), interrupt)):
        with pytest.raises(error):
            pack(source, out, progress=progress)
        assert os.listdir(tmp_path) == names
        assert before is None or out.read_bytes() == before
    pack(b"data" * 5000, out)
    assert pyzstd.decompress(out.read_bytes()) == b"data" * 5000
    assert os.listdir(tmp_path) == ["out.img"]


def test_existing_output_is_kept_if_asked(tmp_path, way):
    """Without `overwrite` a name that is taken is an error, even one taken while packing."""
    out = tmp_path / "out.img"
    with pytest.raises(FileExistsError):
        pack(sample(8, SIZE), out, overwrite=False, progress=lambda *_: out.write_bytes(b"taken"))
    with pytest.raises(FileExistsError):
        pack(b"", out, overwrite=False)
    assert out.read_bytes() == b"taken"
    out.unlink()
    pack(b"", out, overwrite=False)
    assert os.listdir(tmp_path) == ["out.img"]


def test_output_obeys_umask(tmp_path, way):
    """As if `open` had made it."""
    before = os.umask(0o027)
    try:
        pack(b"", tmp_path / "out.img")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "out.img").st_mode) == 0o640


def test_output_through_a_link_replaces_what_it_points_to(tmp_path, way):
    """The link stays a link."""
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    pack(b"new", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert pyzstd.decompress((tmp_path / "real").read_bytes()) == b"new"


def test_output_into_a_device_leaves_the_device(tmp_path):
    """Nobody loses their /dev/null."""
    null = tmp_path / "null"
    os.mkfifo(null)
    reader = threading.Thread(target=lambda: received.append(null.read_bytes()))
    received = []
    reader.start()
    pack(b"data", null)
    reader.join()
    assert stat.S_ISFIFO(os.stat(null).st_mode)
    assert pyzstd.decompress(received[0]) == b"data"


def test_output_that_cannot_be_is_named(tmp_path):
    """Folders and missing folders."""
    with pytest.raises(IsADirectoryError):
        pack(b"", tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        pack(b"", tmp_path / "missing" / "out.img")
    assert "missing" in str(error.value.filename)


def test_raw_output_that_takes_little_gets_all():
    """A raw file may take less than it is given."""

    class Slow(io.BytesIO):
        def write(self, data, /):
            return super().write(bytes(data[:1000]))

    slow, data = Slow(), sample(9, 200_000)
    pack(data, slow)
    assert pyzstd.decompress(slow.getvalue()) == data


def test_sources_are_given_back(tmp_path):
    """No descriptor stays open, even where nothing was read."""
    path = tmp_path / "data"
    path.write_bytes(b"data")
    (tmp_path / "taken").touch()
    before = os.listdir("/proc/self/fd")
    pack(path, tmp_path / "out")
    with pytest.raises(FileExistsError):
        pack(path, tmp_path / "taken", overwrite=False)
    assert os.listdir("/proc/self/fd") == before
