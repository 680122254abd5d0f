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
