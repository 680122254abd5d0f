"""A pager at a path: for one user, and it takes data, not code."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

PROLOGUE = """
import os, pickle, signal, socket, stat, subprocess, sys, time
import userfault as uf
from userfault.pager.protocol import VERSION, SourceMessage, encode
folder = sys.argv[1]
place = folder + "/room/pager"
data = os.urandom(300_000)
with open(folder + "/data", "wb") as file:
    file.write(data)

def start():
    service = subprocess.Popen([sys.executable, "-c", "import sys, userfault as uf; uf.pager.serve(sys.argv[1])", place])
    limit = time.monotonic() + 10
    while not os.path.exists(place):
        assert time.monotonic() < limit
        time.sleep(0.01)
    return service

service = start()
"""

EPILOGUE = """
service.terminate()
service.wait()
"""


def test_files_images_and_zeros_are_served_at_a_path(child, tmp_path):
    """Two pagers there are two processes; one that is killed is replaced; the socket is for this user alone."""
    code = f"""{PROLOGUE}
assert stat.S_IMODE(os.stat(place).st_mode) == 0o600 and stat.S_IMODE(os.stat(folder + "/room").st_mode) == 0o700
uf.image.pack(data, folder + "/packed.zst")
pager, other = uf.pager.Pager(path=place), uf.pager.Pager(path=place)
for source, want in ((uf.File(folder + "/data", 5, 200_000), data[5:200_005]), (uf.Image(folder + "/packed.zst"), data),
                     (uf.Zero(10_000), bytes(10_000))):
    with uf.map(source, delivery="process", pager=pager) as region:
        assert bytes(region) == want, source
first = uf.map(uf.File(folder + "/data"), delivery="process", pager=pager, unit=4096)
second = uf.map(uf.File(folder + "/data"), delivery="process", pager=other, unit=4096)
assert memoryview(first)[0] == memoryview(second)[0] == data[0] and pager.pid != other.pid and pager.pid != service.pid
os.kill(pager.pid, signal.SIGKILL)
assert memoryview(first)[8192] == data[8192] and pager.restarts == 1
os.kill(other.pid, signal.SIGSTOP)
os.kill(other.pid, signal.SIGCONT)
assert memoryview(second)[8192] == data[8192]
first.close(), second.close()
pid = other.pid
other.close()
{EPILOGUE}
"""
    child(code, args=[tmp_path]).check()


def test_no_code_is_taken_and_nothing_unpickled(child, tmp_path):
    """Python sources are refused here; whoever sends a pickle nevertheless is told so, and it is not loaded."""
    code = f"""{PROLOGUE}
pager = uf.pager.Pager(path=place)
for source in (uf.Function(print, 4096), uf.Bytes(b"x"), uf.Retry(uf.Zero(4096))):
    try:
        uf.map(source, delivery="process", pager=pager)
    except uf.OptionError as error:
        assert "takes data, not code" in str(error), error
    else:
        raise AssertionError
class Evil:
    def __reduce__(self):
        return os.mkdir, (folder + "/evil",)
from userfault.pager import session
session.encode = lambda message: encode(SourceMessage(VERSION, pickled=pickle.dumps(Evil())))
try:
    uf.map(uf.Zero(4096), delivery="process", pager=pager)
except uf.PageError as error:
    assert error.__cause__.kind == "PermissionError" and "data, not code" in str(error), error
else:
    raise AssertionError
assert not os.path.exists(folder + "/evil")
{EPILOGUE}
"""
    child(code, args=[tmp_path]).check()


def test_garbage_from_a_client_harms_nobody_else(child, tmp_path):
    """Frames that are none, nonsense in them, a client that goes at once: others are served as before."""
    code = f"""{PROLOGUE}
import random, struct
chance = random.Random(1)
for number in range(12):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(place)
        for _ in range(number % 3):
            frame = struct.pack("<IIQ10Q", 1, chance.randrange(10), chance.randrange(5), *[chance.getrandbits(64)] * 10)
            try:
                client.send(chance.choice([frame, b"x", os.urandom(96), b"y" * 5000]))
            except OSError:
                break
with uf.pager.Pager(path=place) as pager, uf.map(uf.File(folder + "/data"), delivery="process", pager=pager) as region:
    assert bytes(region) == data
{EPILOGUE}
"""
    child(code, args=[tmp_path]).check()


def test_nobody_listens(child, tmp_path):
    """map() says so in a few seconds; a service that is gone means poison, with the reason."""
    code = f"""{PROLOGUE}
pager = uf.pager.Pager(path=place)
region = uf.map(uf.File(folder + "/data"), delivery="process", pager=pager, unit=4096)
service.kill()
service.wait()
os.kill(pager.pid, signal.SIGKILL)
began = time.monotonic()
try:
    memoryview(region)[9000]
    for _ in range(10):
        pass
except uf.PageError as error:
    assert "not replaced" in str(error) and "could not be started" in str(error), error
    assert time.monotonic() - began < 8, time.monotonic() - began
else:
    raise AssertionError
try:
    uf.map(uf.Zero(4096), delivery="process", pager=uf.pager.Pager(path=folder + "/nothing"))
except FileNotFoundError as error:
    assert "/nothing" in str(error), error
else:
    raise AssertionError
"""
    child(code, args=[tmp_path]).check()


@pytest.mark.root
def test_another_user_is_not_served(child, as_nobody, tmp_path):
    """Even where the modes would let him in, who connects is looked at; and he looks at who serves."""
    for above in (tmp_path, *tmp_path.parents[:2]):
        above.chmod(0o755)
    code = f"""{PROLOGUE}
os.chmod(folder + "/room", 0o755)
os.chmod(place, 0o666)
from support.child import run_child
done = run_child('''
import socket, sys
client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
client.connect(sys.argv[1])
client.settimeout(5)
assert client.recv(100) == b"", "somebody answers"
''', user="nobody", args=[place])
done.check()
{EPILOGUE}
"""
    child(code, args=[tmp_path]).check()


def test_a_directory_that_others_may_enter_is_refused(child, tmp_path):
    """Or a path where something else is."""
    code = f"""{PROLOGUE}
os.mkdir(folder + "/open", 0o755)
os.chmod(folder + "/open", 0o755)
open(folder + "/room/file", "w").close()
for where in (folder + "/open/pager", folder + "/room/file"):
    try:
        uf.pager.serve(where)
    except uf.OptionError:
        continue
    raise AssertionError
try:
    uf.pager.Pager(path=place, sandbox=True)
except uf.OptionError:
    pass
else:
    raise AssertionError
{EPILOGUE}
"""
    child(code, args=[tmp_path]).check()
