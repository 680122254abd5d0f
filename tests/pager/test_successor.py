"""What a pager leaves to the one that replaces it: nothing that the next one goes by."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

PROLOGUE = """
import json, mmap, os, signal, sys
from pathlib import Path
import userfault as uf
"""


def test_a_source_cannot_change_what_its_successor_is_told(child, tmp_path):
    """It writes into every memory file that it holds, and ends: the next pager is in the sandbox, with the source as it was."""
    code = f"""{PROLOGUE}
flag = sys.argv[1] + "/flag"
def forge(false, true):
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            if not os.readlink(f"/proc/self/fd/{{number}}").startswith("/memfd:userfault"):
                continue
            with mmap.mmap(number, 0) as whole:
                while (at := whole.find(true)) >= 0:
                    whole[at : at + len(true)] = false
        except (OSError, ValueError):
            pass

word = "what the owner sent"
def read_into(offset, buffer):
    sent = word.encode()
    if not os.path.exists(flag):
        Path(flag).touch()
        forge(b"\\xa7sandbox\\xc2", b"\\xa7sandbox\\xc3")
        forge(b"what a source wrote"[: len(sent)], sent)
        os._exit(3)
    status = Path("/proc/thread-self/status").read_text()
    seccomp = [line.split()[1] for line in status.splitlines() if line.startswith("Seccomp:")]
    text = json.dumps([seccomp, word]).encode()
    buffer[:] = text + b" " * (len(buffer) - len(text))

with uf.pager.Pager(sandbox=True) as pager, uf.map(uf.Function(read_into, 4096), delivery="process", pager=pager) as region:
    found = json.loads(bytes(region))
    assert os.path.exists(flag) and pager.restarts == 1, pager
    assert found == [["2"], "what the owner sent"], found
"""
    child(code, args=[tmp_path]).check()


@pytest.mark.parametrize("kind", ["file", "range", "image", "inside", "nested", "path"])
def test_a_file_that_was_replaced_is_not_mixed_with_the_one_that_was_mapped(child, tmp_path, kind):
    """Another file of the same length bears its name when the next pager opens it: PageError tells so, and old pages stay."""
    code = f"""{PROLOGUE}
import subprocess, time
os.chdir(sys.argv[1])
kind = sys.argv[2]
old, new = os.urandom(1 << 20), os.urandom(1 << 20)
def write(name, data):
    if kind in ("image", "nested"):
        uf.image.pack(data, name)
    else:
        Path(name).write_bytes(data)

class Inside(uf.Source):
    length = len(old)
    def __init__(self, file):
        self.file = file
    def read_into(self, offset, buffer):
        self.file.open().read_into(offset, buffer)

write("data", old)
name = os.path.abspath("data")
sources = {{"image": lambda: uf.Image(name), "nested": lambda: uf.Image(uf.File(name)), "inside": lambda: Inside(uf.File(name)),
           "range": lambda: uf.Retry(uf.File(name, 0, len(old)))}}
source = sources.get(kind, lambda: uf.File(name))()
service, options = None, {{}}
if kind == "path":
    place = os.path.abspath("room/pager")
    service = subprocess.Popen([sys.executable, "-c", "import sys, userfault as uf; uf.pager.serve(sys.argv[1])", place])
    while not os.path.exists(place):
        assert service.poll() is None
    options = {{"path": place}}
with uf.pager.Pager(**options) as pager, uf.map(source, delivery="process", pager=pager, unit=4096) as region:
    assert region.read(0, 4096) == old[:4096]
    os.kill(pager.pid, signal.SIGKILL)
    assert region.read(65536, 4096) == old[65536:69632]  # the same file: the next pager goes on
    write("other", new)
    os.utime("other", ns=(0, os.stat("data").st_mtime_ns))
    os.replace("other", "data")
    if kind != "inside":  # that one opens it for each read
        assert region.read(131072, 4096) == old[131072:135168]
    os.kill(pager.pid, signal.SIGKILL)
    try:
        got = region.read(262144, 4096)
    except uf.PageError as error:
        assert error.offset == 262144 and "replaced or changed" in str(error.__cause__), (error, error.__cause__)
    else:
        raise AssertionError("new bytes" if got == new[262144:266240] else "old bytes")
    try:
        memoryview(region)[524288]
        for _ in range(10):
            pass
    except uf.PageError as error:
        assert "replaced or changed" in str(error.__cause__), error.__cause__
    else:
        raise AssertionError
    assert region.read(0, 4096) == old[:4096]
if service:
    service.terminate()
    service.wait()
"""
    child(code, args=[tmp_path, kind]).check()
