"""A pager as another user, and in its sandbox: what it cannot do any more, while pages come as before."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

PROLOGUE = """
import json, os, sys
import userfault as uf

def said(function, **options):
    def read_into(offset, buffer):
        text = json.dumps(function()).encode()
        buffer[:] = text + b" " * (len(buffer) - len(text))
    with uf.pager.Pager(**options) as pager, uf.map(uf.Function(read_into, 4096), delivery="process", pager=pager) as region:
        return json.loads(bytes(region))

"""


@pytest.mark.root
def test_a_pager_of_another_user_serves_its_owner(child, tmp_path):
    """Its ids, groups and home are that user's, and it cannot read what only root may."""
    secret = tmp_path / "secret"
    secret.write_text("s")
    secret.chmod(0o600)
    code = f"""{PROLOGUE}
def look():
    try:
        open(sys_argv, "rb").read()
        readable = True
    except PermissionError:
        readable = False
    return [os.getresuid(), os.getresgid(), os.getgroups(), os.environ["HOME"], readable]
import pwd
from support.become import show_again
sys_argv = sys.argv[1]
nobody = pwd.getpwnam("nobody")
show_again(nobody.pw_uid)  # the interpreter may lie where only root can read it
uids, gids, groups, home, readable = said(look, user="nobody")
assert set(uids) == {{nobody.pw_uid}} and set(gids) == {{nobody.pw_gid}}, (uids, gids)
assert 0 not in groups and home == nobody.pw_dir and not readable
"""
    child(code, args=[secret]).check()


def test_an_ordinary_user_cannot_have_a_pager_of_another(as_nobody):
    """Refused where it is asked for."""
    code = f"""{PROLOGUE}
try:
    uf.pager.Pager(user="root")
except uf.OptionError as error:
    assert "only root" in str(error)
else:
    raise AssertionError
assert said(lambda: os.geteuid()) == os.geteuid()
"""
    as_nobody(code).check()


def test_the_sandbox_refuses_what_leads_out_and_nothing_that_sources_need(child, tmp_path):
    """In every thread of the pager: no ptrace, no other process's memory, no namespaces; files, programs and threads work."""
    (tmp_path / "file").write_bytes(b"content" * 1000)
    code = f"""{PROLOGUE}
import ctypes, subprocess, threading
path = sys.argv[1]
owner = os.getpid()
def look():
    libc = ctypes.CDLL(None, use_errno=True)
    class Piece(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
    room = ctypes.create_string_buffer(8)
    ours, theirs = Piece(ctypes.addressof(room), 8), Piece(id(object), 8)
    found = {{}}
    def note(name, result):
        found[name] = ctypes.get_errno() if result < 0 else 0
    note("readv", libc.process_vm_readv(owner, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0))
    note("unshare", libc.unshare(0x10000000))
    note("ptrace", libc.ptrace(16, owner, None, None))
    done = []
    thread = threading.Thread(target=lambda: done.append(subprocess.run(["/bin/true"]).returncode))
    thread.start()
    thread.join()
    status = open("/proc/thread-self/status").read()
    found["program"] = done
    found["file"] = open(path, "rb").read(7).decode()
    found["status"] = [line.split()[1] for line in status.splitlines() if line.startswith(("NoNewPrivs", "Seccomp:"))]
    return found
found = said(look, sandbox=True)
assert found["readv"] == found["unshare"] == found["ptrace"] == 1, found
assert found["program"] == [0] and found["file"] == "content" and found["status"] == ["1", "2"], found
with uf.pager.Pager(sandbox=True) as pager, uf.map(uf.File(path), delivery="process", pager=pager) as region:
    assert bytes(region) == b"content" * 1000
    os.kill(pager.pid, 9)
    region.evict()
    assert bytes(region) == b"content" * 1000
"""
    child(code, args=[tmp_path / "file"]).check()


def test_the_numbers_of_refused_calls_are_those_of_this_machine():
    """Compared with the kernel's header where that is installed."""
    import os
    import re
    from pathlib import Path

    from userfault.pager.isolation import DENIED

    machine = os.uname().machine
    places = [f"/usr/include/{machine}-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h"]
    header = next((Path(place) for place in places if Path(place).exists()), None)
    if header is None or machine not in DENIED:
        pytest.skip("no kernel header, or another machine")
    numbers = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)", header.read_text()))
    assert {name: numbers.get(name) for name in DENIED[machine]} == {name: str(at) for name, at in DENIED[machine].items()}
