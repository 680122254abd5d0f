"""Chunks in a directory: bounded, shared by processes, and never shown if they are damaged."""

import errno
import fcntl
import os
import subprocess
import sys
import textwrap
import time
from contextlib import suppress

import pytest

import userfault as uf
from userfault.sources import chunks, disk, native

from .test_caching import CHUNK, Counted, Named, read


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch):
    """Each test begins with one."""
    monkeypatch.setattr(chunks, "_SHARED", None)


def on_disk(source, folder, **options):
    return uf.Cached(source, chunk=CHUNK, memory=0, directory=folder, **options)


def test_chunks_on_disk_outlive_the_process(tmp_path, data):
    """The next one fetches nothing."""
    assert read(native(on_disk(Named(data), tmp_path)), 0, 9500) == data[:9500]
    again = Named(data)
    cached = on_disk(again, tmp_path)
    opened = native(cached)
    assert read(opened, 0, 9500) == data[:9500]
    assert again.reads == []
    assert cached.statistics().disk == 10


def test_another_version_is_not_found_on_disk(tmp_path, data):
    """Nor are chunks of another size."""
    read(native(on_disk(Named(data, "one"), tmp_path)), 0, 5000)
    other = Named(data[::-1], "two")
    assert read(native(on_disk(other, tmp_path)), 0, 5000) == data[::-1][:5000]
    assert other.reads


@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "empty", "swap", "head"])
def test_a_damaged_chunk_is_fetched_again(tmp_path, data, damage):
    """Never shown."""
    read(native(on_disk(Named(data), tmp_path)), 0, 5000)
    files = sorted(tmp_path.rglob("*.chunk"))
    assert len(files) == 5
    whole = [file.read_bytes() for file in files]
    for number, file in enumerate(files):
        spoil(file, whole, number, damage)
    source = Named(data)
    cached = on_disk(source, tmp_path)
    opened = native(cached)
    assert read(opened, 0, 5000) == data[:5000]
    assert cached.statistics().corrupt == 5
    assert sum(length for _, length in source.reads) == 5000
    assert read(native(on_disk(Named(data), tmp_path)), 0, 5000) == data[:5000]


def spoil(file, whole, number, damage):
    body = bytearray(whole[number])
    if damage == "flip":
        body[500] ^= 1
    elif damage == "cut":
        del body[-1:]
    elif damage == "longer":
        body += b"x"
    elif damage == "empty":
        body.clear()
    elif damage == "swap":
        body[:] = whole[number - 1]
    else:
        body[0] ^= 1
    file.write_bytes(body)


def size_of(folder):
    total = 0
    for file in list(folder.rglob("*.chunk")):
        with suppress(FileNotFoundError):  # another process has just deleted it
            total += file.stat().st_size
    return total


def size_with_parts(folder):
    """While others write: unfinished files too, each once should it be renamed meanwhile, and nobody may make or delete one."""
    with open(folder / "lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = {}
        for file in folder.glob("??/*"):
            with suppress(FileNotFoundError):  # it has just got its name
                about = file.stat()
                found[about.st_ino] = about.st_size
        return sum(found.values())


def test_the_directory_is_bounded(tmp_path, data):
    """In bytes, headers included; what was read last stays."""
    opened = native(on_disk(Named(data), tmp_path, disk=20_000))
    for start in range(0, 100_000, CHUNK):
        assert read(opened, start, start + CHUNK) == data[start : start + CHUNK]
        assert size_of(tmp_path) <= 20_000
    again = Named(data)
    read(native(on_disk(again, tmp_path, disk=20_000)), 99_000, 100_000)
    assert again.reads == []


def test_a_directory_needs_an_identity(tmp_path, data):
    """Or the chunks of one source were taken for another's."""
    with pytest.raises(uf.OptionError, match="identity"):
        native(on_disk(Counted(data), tmp_path))


def test_a_disk_that_is_full_costs_only_time(tmp_path, data, monkeypatch):
    """The chunks are fetched each time."""
    from userfault.sources.disk import os as disk_os

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    source = Named(data)
    opened = native(on_disk(source, tmp_path))
    monkeypatch.setattr(disk_os, "replace", full)
    for _ in range(2):
        assert read(opened, 0, 5000) == data[:5000]
    monkeypatch.undo()
    assert len(source.reads) == 2
    assert list(tmp_path.rglob("*.part")) == []


@pytest.mark.parametrize("call", ["makedirs", "open"])
def test_a_disk_that_is_full_from_the_start_is_no_error_either(tmp_path, data, monkeypatch, call):
    """Not even the lock file can be made then. What forbids to write at all is one."""
    from userfault.sources.disk import os as disk_os

    def refuse(error):
        def refused(*_arguments, **_options):
            raise OSError(error, os.strerror(error))

        monkeypatch.setattr(disk_os, call, refused)

    source = Named(data)
    refuse(errno.ENOSPC)
    opened = native(on_disk(source, tmp_path / "new"))
    for _ in range(2):
        assert read(opened, 0, 5000) == data[:5000]
    refuse(errno.EROFS)
    with pytest.raises(OSError, match="Read-only"):
        native(on_disk(source, tmp_path / "other"))


def test_an_identity_may_have_no_utf8_form(tmp_path, data):
    """One that was made of a file's name."""
    source = Named(data)
    source.identity = "\udc80"
    for _ in range(2):
        assert read(native(on_disk(source, tmp_path)), 0, 5000) == data[:5000]


def test_a_process_that_died_leaves_nothing_behind(tmp_path, data):
    """Its unfinished files are deleted, and a count that it spoilt is made anew."""
    cached = on_disk(Named(data), tmp_path, disk=20_000)
    read(native(cached), 0, 5000)
    left = next(tmp_path.rglob("*.chunk")).with_suffix(".1-ab.part")
    left.write_bytes(bytes(5000))
    os.utime(left, (1, 1))
    (tmp_path / "size").write_text("nonsense")
    opened = native(on_disk(Named(data), tmp_path, disk=20_000))
    read(opened, 10_000, 11_000)
    assert not left.exists()
    assert int((tmp_path / "size").read_text()) == size_of(tmp_path)


WORKER = """
    import random, sys
    import userfault as uf
    from userfault.sources import native
    folder, seed = sys.argv[1], int(sys.argv[2])
    data = random.Random(42).randbytes(100_000)

    class Named(uf.Source):
        identity, length = "these bytes", len(data)
        def read_into(self, offset, buffer):
            buffer[:] = data[offset : offset + len(buffer)]

    cached = uf.Cached(Named(), chunk=1000, memory=0, directory=folder, disk=40_000)
    opened, numbers = native(cached), random.Random(seed)
    for _ in range(400):
        start = numbers.randrange(99_000)
        room = bytearray(numbers.randrange(1, 1000))
        opened.read_into(start, room)
        assert room == data[start : start + len(room)]
    print(cached.statistics())
"""


def test_processes_share_a_directory(tmp_path):
    """Six at once, the bound is a tenth of what they want, one is killed now and then: right bytes, within the bound."""
    command = [sys.executable, "-c", textwrap.dedent(WORKER), str(tmp_path)]
    workers = [subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE) for seed in range(5)]
    victims = 0
    while any(worker.poll() is None for worker in workers):
        with subprocess.Popen([*command, str(100 + victims)], stdout=subprocess.DEVNULL) as victim:
            try:
                victim.wait(0.4)
            except subprocess.TimeoutExpired:
                victim.kill()
        victims += 1
        assert size_with_parts(tmp_path) <= 40_000
    said = [worker.communicate()[0].decode() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 5
    assert all("corrupt=0" in one for one in said)
    assert victims > 0


def test_a_lock_that_is_never_let_go_keeps_nobody(tmp_path, data, monkeypatch):
    """A stopped process may hold it: then chunks are not kept."""
    monkeypatch.setattr(disk, "_LOCK_PAUSE", 0.0)
    source = Named(data)
    opened = native(on_disk(source, tmp_path))
    with open(tmp_path / "lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read(opened, 0, 10) == data[:10]
    assert size_of(tmp_path) == 0
    assert read(opened, 0, 10) == data[:10]
    assert size_of(tmp_path) > 0


def test_a_lock_that_is_never_let_go_is_waited_for_once(tmp_path, data):
    """Not for each chunk: the next seconds nothing is kept."""
    opened = native(on_disk(Named(data), tmp_path))
    with open(tmp_path / "lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        began = time.monotonic()
        assert read(opened, 0, 50 * CHUNK) == data[: 50 * CHUNK]
        assert time.monotonic() - began < 10  # 25 s with a wait for each
    assert size_of(tmp_path) == 0


@pytest.mark.parametrize("where", ["put", "get", "count", "list", "lock"])
def test_the_timeout_of_a_touch_is_no_broken_disk(tmp_path, monkeypatch, where):
    """It is sent as a TimeoutError into whatever runs; one with an errno is the disk's."""
    kept = disk.DiskChunks(tmp_path, 5000)
    kept.put("old", b"1" * 1000)
    sent = TimeoutError("of map(timeout=...)")

    def fail(*arguments, **options):
        raise sent

    module, name = {
        "put": (os, "replace"),
        "get": (os, "utime"),
        "count": (disk.DiskChunks, "_make_room"),
        "list": (os, "scandir"),
        "lock": (fcntl, "flock"),
    }[where]

    def use():
        if where == "get":
            kept.get("old", 1000)
        else:
            kept.put("new", b"2" * (4500 if where in ("count", "list") else 100))

    with monkeypatch.context() as patched:
        patched.setattr(module, name, fail)
        with pytest.raises(TimeoutError, match="of map"):
            use()
        if where not in ("count", "lock"):
            sent = TimeoutError(errno.ETIMEDOUT, "of a disk far away")
            use()
    assert not list(tmp_path.rglob("*.part"))


def test_a_child_forked_meanwhile_does_not_keep_the_lock(child, tmp_path):
    """It has the descriptor too, and may live for long."""
    code = """
        import os, signal, sys
        from userfault.sources.disk import DiskChunks
        kept = DiskChunks(sys.argv[1], 1 << 20)
        with kept._alone() as is_locked:
            assert is_locked
            pid = os.fork()
            if pid == 0:
                signal.pause()
        kept.put("one", b"1" * 1000)
        assert bytes(kept.get("one", 1000)) == b"1" * 1000
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        """
    child(code, args=[tmp_path]).check()


@pytest.mark.parametrize("where", ["flock", "replace"])
def test_an_exception_from_outside_leaves_no_lock_and_no_file(tmp_path, monkeypatch, where):
    """In the middle of a put, or of letting go of the lock."""
    kept = disk.DiskChunks(tmp_path, 50_000)

    def interrupt(*arguments):
        if where == "replace" or arguments[1] == fcntl.LOCK_UN:
            raise KeyboardInterrupt
        return flock(*arguments)

    flock = fcntl.flock
    with monkeypatch.context() as patched:
        patched.setattr(fcntl if where == "flock" else os, where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            kept.put("one", b"1" * 1000)
    assert not list(tmp_path.rglob("*.part"))
    with open(tmp_path / "lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
