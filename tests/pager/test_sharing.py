"""A pager that reads sources for several processes: what it gives, what its sources raise, and its death."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(90)]

PROLOGUE = """
import os, pickle, signal, socket, stat, subprocess, sys, threading, time
import userfault as uf
folder = sys.argv[1]
place = folder + "/room/shared"
data = b"".join(number.to_bytes(8, "little") for number in range(1, 50_001))
with open(folder + "/data", "wb") as file:
    file.write(data)

PAGER = '''
import os, sys, time
import userfault as uf
folder = sys.argv[1]

def counted(offset, buffer):
    with open(folder + "/reads", "a") as file:
        file.write(f"{offset}\\\\n")
    time.sleep(0.02)
    with open(folder + "/data", "rb") as file:
        file.seek(offset)
        file.readinto(buffer)

class Silent(Exception):
    @property
    def transient(self):
        raise RuntimeError("it does not know")

def silent(offset, buffer):
    raise Silent(offset)

class Faulty(uf.Source):
    length = 1 << 20
    failures = 0
    def read_into(self, offset, buffer):
        if offset >= 1 << 19:
            self.failures += 1
            if self.failures % 3:
                raise ConnectionResetError("the archive does not answer")
            buffer[:] = b"well" * (len(buffer) // 4)
            return
        raise LookupError(f"nothing at {offset}")

def hang(offset, buffer):
    while not os.path.exists(folder + "/go"):
        time.sleep(0.01)
    buffer[:] = b"slow" * (len(buffer) // 4)

uf.pager.share(folder + "/room/shared", {
    "file": uf.File(folder + "/data"),
    "counted": uf.Cached(uf.Function(counted, 400_000), chunk="64KiB"),
    "faulty": Faulty(),
    "hanging": uf.Function(hang, 1 << 20),
    "silent": uf.Function(silent, 1 << 20),
})
'''

def start():
    pager = subprocess.Popen([sys.executable, "-c", PAGER, folder])
    limit = time.monotonic() + 10
    while True:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(place)
                break
            except OSError:
                assert time.monotonic() < limit and pager.poll() is None
        time.sleep(0.01)
    return pager

def failure(call):
    try:
        call()
        for _ in range(10):
            pass
    except uf.PageError as error:
        return error
    raise AssertionError("no PageError")

pager = start()
"""

EPILOGUE = """
pager.kill()
pager.wait()
"""


def run(child, tmp_path, code, **options):
    child(f"{PROLOGUE}\n{code}\n{EPILOGUE}", args=[tmp_path], timeout=60, **options).check()


def test_processes_share_one_cache(child, tmp_path):
    """Two of them touch the same bytes under each delivery; the source over there is read once for each chunk."""
    code = """
assert stat.S_IMODE(os.stat(place).st_mode) == 0o600 and stat.S_IMODE(os.stat(folder + "/room").st_mode) == 0o700
CLIENT = '''
import sys
import userfault as uf
for delivery in ("thread", "signal", "process"):
    with uf.map(uf.Served(sys.argv[1], "counted"), delivery=delivery, unit="4KiB") as region:
        assert bytes(region.numpy()) == open(sys.argv[2], "rb").read(), delivery
'''
clients = [subprocess.Popen([sys.executable, "-c", CLIENT, place, folder + "/data"]) for _ in range(2)]
assert [client.wait() for client in clients] == [0, 0]
reads = [int(line) for line in open(folder + "/reads")]
assert len(reads) == len(set(reads)) <= 7, reads
"""
    run(child, tmp_path, code)


def test_what_the_source_raises_arrives_in_words(child, tmp_path):
    """As RemoteError, with the traceback over there; one that may pass is read again by a layer, on either side of the wire."""
    code = """
region = uf.map(uf.Served(place, "faulty"), unit="4KiB")
error = failure(lambda: memoryview(region)[5000])
cause = error.__cause__
assert isinstance(cause, uf.RemoteError) and cause.kind == "LookupError" and cause.message == "nothing at 4096", cause
assert "in read_into" in cause.traceback and not cause.transient
assert not pickle.loads(pickle.dumps(cause)).transient
cause = failure(lambda: memoryview(region)[1 << 19]).__cause__
assert cause.kind == "ConnectionResetError" and cause.transient, cause
assert pickle.loads(pickle.dumps(cause)).transient
cause = failure(lambda: memoryview(uf.map(uf.Served(place, "silent")))[0]).__cause__
assert isinstance(cause, uf.RemoteError) and "Silent" in cause.kind and not cause.transient, cause
again = uf.map(uf.Retry(uf.Served(place, "faulty"), attempts=3, pause=0), unit="4KiB")
assert bytes(memoryview(again)[1 << 19 : (1 << 19) + 4]) == b"well"
remote = uf.map(uf.Served(place, "faulty"), delivery="process", unit="4KiB")
cause = failure(lambda: remote.read(0, 1)).__cause__
assert cause.kind == "userfault.errors.RemoteError" and "LookupError: nothing at 0" in cause.message, cause
"""
    run(child, tmp_path, code)


def test_a_pager_that_is_killed_and_started_again_is_found_again(child, tmp_path):
    """Touches in four threads compare every byte while it dies; a file is the same one afterwards, and goes on."""
    code = """
CLIENT = '''
import random, sys, threading, time
import userfault as uf
place, data = sys.argv[1], open(sys.argv[2], "rb").read()
file = uf.Served(place, "file", patience=25, deadline=25)
regions = [uf.map(file, unit="4KiB", delivery=how) for how in ("thread", "signal", "process", "thread")]
print("begun", flush=True)
touched, wrong = [0] * 4, []
def touch(region, number):
    chance = random.Random(number)
    view = memoryview(region)
    try:
        while not over.is_set():
            start = chance.randrange(0, len(data) - 64)
            if bytes(view[start : start + 64]) != data[start : start + 64]:
                wrong.append(start)
            touched[number] += 1
            region.evict()
    except BaseException as error:
        wrong.append(error)
over = threading.Event()
threads = [threading.Thread(target=touch, args=pair) for pair in zip(regions, range(4))]
for thread in threads:
    thread.start()
sys.stdin.read()
limit = time.monotonic() + 20
while min(touched) <= 20 and wrong == [] and time.monotonic() < limit: time.sleep(0.01)
over.set()
for thread in threads:
    thread.join(30)
assert not any(thread.is_alive() for thread in threads) and wrong == [] and min(touched) > 20, (touched, wrong[:3])
'''
command = [sys.executable, "-c", CLIENT, place, folder + "/data"]
client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
assert client.stdout.readline() == b"begun\\n"
for _ in range(5):
    time.sleep(0.2)
    pager.kill(), pager.wait()
    pager = start()
time.sleep(0.2)
client.communicate()
assert client.returncode == 0
"""
    run(child, tmp_path, code)


def test_what_a_new_pager_gives_is_not_mixed_with_what_an_older_one_gave(child, tmp_path):
    """A function has no version that outlives its process; a file that was replaced has another one."""
    code = """
counted = uf.map(uf.Served(place, "counted"), unit="4KiB")
replaced = uf.map(uf.Served(place, "file"), unit="4KiB")
assert memoryview(counted)[0] == memoryview(replaced)[0] == data[0]
pager.kill(), pager.wait()
with open(folder + "/other", "wb") as file:
    file.write(bytes(reversed(data)))
os.replace(folder + "/other", folder + "/data")
pager = start()
for region in (counted, replaced):
    cause = failure(lambda: memoryview(region)[8192]).__cause__
    assert isinstance(cause, uf.StoreChanged), cause
    assert memoryview(region)[1000] == data[1000]
assert memoryview(uf.map(uf.Served(place, "file")))[0] == data[-1]
"""
    run(child, tmp_path, code)


def test_a_pager_that_dies_in_the_middle_of_a_read_and_stays_away_is_a_page_error(child, tmp_path):
    """No zeros, and no touch that hangs: under the deadline."""
    code = """
for delivery in ("thread", "process"):
    region = uf.map(uf.Served(place, "hanging", patience=1), unit="4KiB", delivery=delivery)
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {pager.pid}"])  # a touch in a pager keeps Python's lock
    began = time.monotonic()
    error = failure(lambda: memoryview(region)[0])
    assert time.monotonic() - began < 10, time.monotonic() - began
    assert "the pager" in str(error), error
    open(folder + "/go", "w").close()
    killer.wait()
    pager.wait()
    pager = start()
    assert isinstance(failure(lambda: memoryview(region)[0]).__cause__, (uf.StoreChanged, uf.RemoteError))
    os.unlink(folder + "/go")
"""
    run(child, tmp_path, code)


def test_a_source_that_hangs_and_a_pager_that_is_stopped_end_by_the_deadline(child, tmp_path):
    """Other reads go on beside one that hangs; later touches try again."""
    code = """
hanging = uf.map(uf.Served(place, "hanging", deadline=3), unit="4KiB")
file = uf.map(uf.Served(place, "file", deadline=3), unit="4KiB")
began = time.monotonic()
error = failure(lambda: memoryview(hanging)[0])
assert isinstance(error.__cause__, uf.StoreError) and error.__cause__.transient and time.monotonic() - began < 15, error
assert memoryview(file)[0] == data[0]
open(folder + "/go", "w").close()
assert bytes(memoryview(hanging)[:4]) == b"slow"
os.kill(pager.pid, signal.SIGSTOP), os.waitpid(pager.pid, os.WUNTRACED)  # until the last of its threads has heard of it
assert failure(lambda: memoryview(file)[4096]).__cause__.transient
os.kill(pager.pid, signal.SIGCONT)
assert memoryview(file)[4096] == data[4096]
"""
    run(child, tmp_path, code)


def test_names_that_are_none_and_pagers_that_are_none(child, tmp_path):
    """map() says so."""
    code = """
try:
    uf.map(uf.Served(place, "weights"))
except uf.StoreMissing as error:
    assert "no 'weights', but 'counted'" in str(error), error
else:
    raise AssertionError
try:
    uf.map(uf.Served(folder + "/nothing", "weights", patience=0.1))
except uf.StoreError as error:
    assert "cannot be reached" in str(error), error
else:
    raise AssertionError
for wrong in (folder, {"a": 1}), (folder + "/room/other", {"a": b"bytes"}):
    try:
        uf.pager.share(*wrong)
    except uf.OptionError:
        continue
    raise AssertionError
"""
    run(child, tmp_path, code)


def test_garbage_from_a_client_harms_nobody_else(child, tmp_path):
    """Nonsense, promises that are not kept, questions for too much: those connections end, the others are served."""
    code = """
import random, struct
import msgspec
chance = random.Random(1)
def said(*parts):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(place)
        try:
            for part in parts:
                client.sendall(part)
            client.shutdown(socket.SHUT_WR)
            return client.recv(1 << 20)
        except (BrokenPipeError, ConnectionResetError):  # it has closed its end by then
            return b""
def framed(packed):
    return struct.pack("<I", len(packed)) + packed
for _ in range(50):
    assert said(chance.randbytes(chance.randrange(100))) == b""
assert said(struct.pack("<I", 1 << 31), b"x") == b""
for ask in ({"name": "file", "start": 0, "stop": 1 << 40}, {"name": "file", "start": 5, "stop": 4}, {"name": 7}, [], None):
    assert said(framed(msgspec.msgpack.encode(ask))) == b"", ask
from userfault.sources.wire import Ask
tag = uf.Served(place, "file").version.tag
beyond = said(framed(msgspec.msgpack.encode(Ask("file", tag, len(data) - 1, len(data) + 1))))
assert b"OptionError" in beyond, beyond
assert bytes(memoryview(uf.map(uf.Served(place, "file")))) == data
"""
    run(child, tmp_path, code)


def test_answers_that_are_none_are_no_bytes(child, tmp_path):
    """Whatever another program says at that path, or a pager that ends in the middle of an answer."""
    code = """
pager.kill()
pager.wait()
import struct
from msgspec import msgpack
from userfault.sources.wire import Ask, Found, Given, receive
def framed(message):
    packed = msgpack.encode(message)
    return struct.pack("<I", len(packed)) + packed
SAYS = [b"", b"\\xff" * 50, framed(Given(4095)) + bytes(4095), framed(Given(4096)) + bytes(100), framed(Found(4096, "tag")),
        framed({"type": "given", "count": -1}), framed(7)]
os.unlink(place)
def serve(listener):
    for say in SAYS:
        with listener.accept()[0] as client:
            receive(client, Ask)
            client.sendall(framed(Found(4096, "tag")))
            receive(client, Ask)
            client.sendall(say)
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(place)
    listener.listen()
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    for say in SAYS:
        region = uf.map(uf.Served(place, "file", patience=0, deadline=5))
        error = failure(lambda: memoryview(region)[0])
        assert isinstance(error.__cause__, uf.StoreError) and not isinstance(error.__cause__, uf.StoreChanged), error
        region.close()
        del region
"""
    run(child, tmp_path, code)


def test_a_forked_child_and_a_pickled_source_have_connections_of_their_own(child, tmp_path):
    """Two who ask over one connection would take each other's answers."""
    code = """
source = uf.Served(place, "file")
room = bytearray(100)
source.read_into(0, memoryview(room))
pid = os.fork()
other = pickle.loads(pickle.dumps(source))
assert other.version == source.version
for number in range(300):
    start = number * 64 + (0 if pid else 100_000)
    for one in (source, other):
        one.read_into(start, memoryview(room))
        assert bytes(room) == data[start : start + 100]
if not pid:
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
big = memoryview(bytearray(len(data)))
source.read_into(0, big)
assert big == data
source.close()
"""
    run(child, tmp_path, code, warnings=None)


@pytest.mark.root
def test_sources_of_any_names_are_not_taken_for_one_another():
    """By caches, where they have the same version and length."""
    import userfault as uf

    pairs = [("/r/a:b", "c"), ("/r/a", "b:c"), ("/r/a", "b?1"), ("/r/a", "b?2"), ("/r/a", "//me:1@"), ("/r/a", "//me:2@")]
    assert len({uf.Served(*pair).place() for pair in pairs}) == len(pairs)


def test_a_service_whose_standard_error_is_gone_goes_on(child, tmp_path):
    """It cannot say that it has no descriptor for a client; the next client is served."""
    code = """
few = "import os, resource, sys, time; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))"
pager.kill()
pager.wait()
reading, writing = os.pipe()
pager = subprocess.Popen([sys.executable, "-c", PAGER.replace("import os, sys, time", few), folder], stderr=writing)
os.close(writing)
os.close(reading)

def connected():
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect(place)
    except OSError:
        client.close()
        return None
    return client

while (first := connected()) is None:
    time.sleep(0.01)
clients = [first, *(connected() for _ in range(60))]
time.sleep(0.5)
assert pager.poll() is None
for client in clients:
    client.close()
with uf.map(uf.Served(place, "file")) as region:
    assert region.read(0, 100) == data[:100]
"""
    run(child, tmp_path, code)


def test_another_user_is_not_served(child, as_nobody, tmp_path):
    """Even where the modes would let him in; and a client does not ask a pager of another user."""
    for above in (tmp_path, *tmp_path.parents[:2]):
        above.chmod(0o755)
    code = """
os.chmod(folder + "/room", 0o755)
os.chmod(place, 0o666)
from support.child import run_child
run_child('''
import socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
client.settimeout(5)
assert client.recv(100) == b"", "somebody answers"
''', user="nobody", args=[place]).check()
pager.kill()
pager.wait()
theirs = '''
import os, socket, sys, time
os.umask(0)
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    print("ready", flush=True)
    time.sleep(60)
'''
os.mkdir(folder + "/theirs")
os.chmod(folder + "/theirs", 0o777)
from support import become
command = [sys.executable, become.__file__, "nobody", sys.executable, "-c", theirs, folder + "/theirs/pager"]
pager = subprocess.Popen(command, stdout=subprocess.PIPE)
assert pager.stdout.readline() == b"ready\\n"
pager.stdout.close()
try:
    uf.map(uf.Served(folder + "/theirs/pager", "file"))
except uf.StoreError as error:
    assert "belongs to another user" in str(error), error
else:
    raise AssertionError
"""
    run(child, tmp_path, code)
