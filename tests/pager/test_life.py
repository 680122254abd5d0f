"""Pagers come and go with their owners; regions with their sources."""

from __future__ import annotations

import sys
import time

import pytest
from support.child import run_command

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(90)]

PROLOGUE = """
import os, pickle, signal, subprocess, sys, threading, time
import userfault as uf
from pager.killing import is_pager, pagers_of
from pager.sources import Known, known
from support.lazy import check_endings, in_threads

def gone(pid, within=5):
    limit = time.monotonic() + within
    while is_pager(pid):
        assert time.monotonic() < limit, "the pager lives"
        time.sleep(0.01)
    return True

"""


def test_all_regions_of_a_process_share_one_pager(child):
    """Unless asked otherwise; it starts with the first, and `close` ends it once nothing needs it."""
    code = f"""{PROLOGUE}
first = uf.map(Known(1 << 20), delivery="process")
second = uf.map(Known(1 << 20, seed=2), delivery="process")
assert first.pager is second.pager is uf.pager.default_pager() and first.pager.regions == 2
with uf.pager.Pager() as own:
    with uf.map(Known(1 << 20, seed=3), delivery="process", pager=own) as third:
        assert third.pager is own and own.pid != first.pager.pid and "1 region" in repr(own), own
        assert memoryview(third)[0] == known(0, 8, 3)[0]
        try:
            own.close()
        except BufferError:
            pass
        else:
            raise AssertionError
    pid = own.pid
assert gone(pid) and own.lost is not None
own.close()
assert memoryview(second)[0] == known(0, 8, 2)[0]
pid = first.pager.pid
first.close(), second.close()
assert first.pager.regions == 0
first.pager.close()
assert gone(pid)
assert memoryview(uf.map(Known(4096), delivery="process"))[0] == known(0, 8)[0]
"""
    child(code).check()


def test_regions_that_are_over_leave_nothing_in_the_memory_file(child):
    """What owner and pager share of a region: its counters, its units, its poison."""
    code = f"""{PROLOGUE}
def pages():
    numbers = [int(name) for name in os.listdir(f"/proc/{{pid}}/fd")]
    links = [f"/proc/{{pid}}/fd/{{number}}" for number in numbers]
    return sum(os.stat(link).st_blocks for link in links if os.readlink(link).startswith("/memfd:userfault")) // 8

kept = uf.map(Known(1 << 20), delivery="process")
pid = kept.pager.pid
def rounds(count):
    for _ in range(count):
        with uf.map(Known(1 << 20), delivery="process") as region:
            assert memoryview(region)[5] == known(0, 8)[5]
            check_endings(region)  # it counts a touch a moment after it was answered
    return pages()
before = rounds(3)
assert 0 < before < 100 and rounds(50) <= before + 2, (before, pages())
assert memoryview(kept)[7] == known(0, 8)[7]
"""
    child(code, timeout=60).check()


def test_a_pager_that_nobody_has_any_more_ends_with_its_last_region(child):
    """No reference to it but its region's."""
    code = f"""{PROLOGUE}
region = uf.map(Known(1 << 20), delivery="process", pager=uf.pager.Pager())
pid = region.pager.pid
assert memoryview(region)[0] == known(0, 8)[0]
del region
assert gone(pid)
"""
    child(code).check()


def test_starting_one_takes_little(child):
    """The pager needs no numpy, and a region is served soon after the first map()."""
    code = f"""{PROLOGUE}
class Looks(Known):
    def read_into(self, offset, buffer):
        import sys
        buffer[:] = (b"numpy" if "numpy" in sys.modules else b"empty") * (len(buffer) // 5) + b"x" * (len(buffer) % 5)
took = []
for _ in range(5):
    with uf.pager.Pager() as pager:
        began = time.monotonic()
        with uf.map(uf.Zero(1 << 20), delivery="process", pager=pager):
            took.append(time.monotonic() - began)
print(f"start: {{min(took):.3f}}")
assert min(took) < 1.0, took
"""
    print(child(code).check().stdout)


@pytest.mark.parametrize(
    "end", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)", "os.execv('/bin/sleep', ['sleep', '60'])"]
)
def test_the_pager_goes_with_its_owner(child, tmp_path, end):
    """However that ends: exit, SIGKILL, exec; a read in progress does not keep it."""
    code = f"""{PROLOGUE}
out = sys.argv[1] + "/pid"
source = '''
import os, signal, sys, threading
import userfault as uf
from pager.sources import Known
region = uf.map(Known(1 << 20, delay=100), delivery="process")
region.prefetch()
open(sys.argv[1], "w").write(str(region.pager.pid))
os.rename(sys.argv[1], sys.argv[1] + ".done")
{end}
'''
owner = subprocess.Popen([sys.executable, "-c", source, out])
limit = time.monotonic() + 15
while not os.path.exists(out + ".done"):
    assert time.monotonic() < limit
    time.sleep(0.01)
assert gone(int(open(out + ".done").read()))
owner.kill()
owner.wait()
"""
    child(code, args=[tmp_path]).check()


def test_closing_a_region_closes_its_source_there(child, tmp_path):
    """`Source.close` runs in the pager, not here; at the end of the owner, too."""
    code = f"""{PROLOGUE}
from pathlib import Path
class Tells(Known):
    def __init__(self, name):
        super().__init__(1 << 20)
        self.name = name
    def close(self):
        Path(self.name).write_text(str(os.getpid()))
with uf.map(Tells(sys.argv[1] + "/first"), delivery="process") as region:
    pid = region.pager.pid
    assert bytes(region) == known(0, 1 << 20).tobytes()
limit = time.monotonic() + 5
while not os.path.exists(sys.argv[1] + "/first"):
    assert time.monotonic() < limit
    time.sleep(0.01)
assert Path(sys.argv[1], "first").read_text() == str(pid)
last = uf.map(Tells(sys.argv[1] + "/last"), delivery="process")
"""
    child(code, args=[tmp_path]).check()
    limit = time.monotonic() + 5
    while not (tmp_path / "last").exists():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_forked_child_has_no_pager_of_its_parents(child):
    """Its touch dies with a line, statistics and close say so, it may have a pager of its own, and the parent goes on."""
    code = f"""{PROLOGUE}
region = uf.map(Known(1 << 20, unit=4096), delivery="process")
view = memoryview(region)
assert view[0] == known(0, 8)[0]
pid = os.fork()
if pid == 0:
    assert region.state == "foreign" and "belongs" in region.pager.lost
    for fd in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{{fd}}")
        except OSError:
            continue
        assert "userfaultfd" not in name and "socket" not in name and "memfd" not in name, name
    with uf.map(Known(1 << 20, seed=5), delivery="process") as own:
        assert memoryview(own)[0] == known(0, 8, 5)[0]
    if os.fork() == 0:
        view[4096]
    _, status = os.wait()
    os._exit(0 if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSEGV else 1)
_, status = os.waitpid(pid, 0)
assert status == 0, status
assert view[8192] == known(8192, 8)[0]
check_endings(region)
"""
    found = child(code).check()
    assert "forked process touched" in found.stderr


def test_closures_lambdas_and_classes_of_main_are_sent(child):
    """What pickle refuses cloudpickle sends; a module that only sys.path knows is imported there."""
    code = f"""{PROLOGUE}
secret = 41
def outer(add):
    def read_into(offset, buffer):
        buffer[:] = bytes([secret + add]) * len(buffer)
    return read_into
class Here(uf.Source):
    length = 4096
    def read_into(self, offset, buffer):
        buffer[:] = bytes([secret]) * len(buffer)
for source, want in (
    (uf.Function(outer(1), 4096), 42), (Here(), 41),
    (uf.Function(lambda offset, buffer: buffer.__setitem__(slice(None), b"z" * len(buffer)), 4096), ord("z")),
):
    with uf.map(source, delivery="process") as region:
        assert set(bytes(region)) == {{want}}, source
"""
    child(code).check()


def test_an_asynchronous_source_runs_on_the_event_loop_there(child):
    """`async def read_into`, many reads at once."""
    code = f"""{PROLOGUE}
import asyncio
async def read_into(offset, buffer):
    await asyncio.sleep(0.05)
    buffer[:] = known(offset, len(buffer)).tobytes()
with uf.map(uf.Function(read_into, 1 << 20, preferred_size="512KiB"), delivery="process") as region:
    region.populate()
    assert bytes(region) == known(0, 1 << 20).tobytes()
"""
    child(code).check()


def test_a_region_pickles_as_its_source_and_options(child):
    """Into a process of its own, started by spawn, with a pager of its own."""
    code = f"""{PROLOGUE}
region = uf.map(Known(1 << 20), delivery="process", unit="16KiB", on_pager_death="poison", timeout="7s")
again = pickle.loads(pickle.dumps(region))
assert again.options == region.options and again.pager is region.pager and again.unit == 16384
assert bytes(again) == bytes(region)
script = "import hashlib, pickle, sys; r = pickle.load(sys.stdin.buffer); "
script += "print(hashlib.sha256(r).hexdigest(), r.options.delivery)"
import hashlib
done = subprocess.run([sys.executable, "-c", script], input=pickle.dumps(region), capture_output=True, check=True)
assert done.stdout.decode().split() == [hashlib.sha256(known(0, 1 << 20).tobytes()).hexdigest(), "process"], done
"""
    child(code).check()


SCRIPT = """
import multiprocessing, sys
import userfault as uf

def pattern(offset, length):
    return bytes([offset // 4096 + 1]) * length

class Pages(uf.Source):
    length, unit = 1 << 18, 4096

    def read_into(self, offset, buffer):
        buffer[:] = pattern(offset, len(buffer))

def look(region):
    import cloudpickle
    here = uf.map(uf.Function(lambda offset, buffer: Pages().read_into(offset, buffer), 1 << 18, unit=4096), delivery="process")
    data = [bytes(memoryview(one)[3 * 4096 - 1 :][:2]) for one in (region, here)]
    return data, __name__, cloudpickle.list_registry_pickle_by_value()

if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
        answer = pool.apply(look, [uf.map(Pages(), delivery="process")])
    assert answer == ([bytes([3, 4])] * 2, "__mp_main__", set()), answer
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_region_over_a_class_of_the_script_goes_to_a_process_of_multiprocessing(method, tmp_path):
    """The script has another name there, by which the pager could not import it; other pickling there stays as it was."""
    (tmp_path / "script.py").write_text(SCRIPT)
    result = run_command([sys.executable, str(tmp_path / "script.py"), method], timeout=40)
    assert result.returncode == 0, result.talk()


def test_many_regions_come_and_go(child):
    """Three hundred at once in one pager, opened from several threads, closed in any order; descriptors do not pile up."""
    code = f"""{PROLOGUE}
import random
count = lambda: len(os.listdir("/proc/self/fd"))
regions = {{}}
def some(first):
    for number in range(first, first + 100):
        regions[number] = uf.map(Known(1 << 16, seed=number + 1, unit=4096), delivery="process")
some(0)
before = count()
in_threads(lambda: some(100), lambda: some(200), seconds=60)
assert count() - before < 10, (before, count())
order = list(regions)
random.Random(1).shuffle(order)
for number in order:
    region = regions[number]
    assert memoryview(region)[8192] == known(8192, 8, number + 1)[0]
os.kill(regions[0].pager.pid, signal.SIGKILL)
for number in order[::3]:
    assert memoryview(regions[number])[16384] == known(16384, 8, number + 1)[0]
    check_endings(regions[number])
pager = regions[0].pager
for number in order:
    regions.pop(number).close()
assert pager.regions == 0, pager
for number in range(100):
    with uf.map(Known(1 << 16, seed=number + 1, unit=4096), delivery="process") as region:
        assert memoryview(region)[0] == known(0, 8, number + 1)[0]
"""
    child(code, timeout=80).check()


def test_a_pager_may_be_closed_and_another_made_again_and_again(child):
    """More often than a process may have pagers at once."""
    code = f"""{PROLOGUE}
for number in range(20):
    with uf.pager.Pager() as pager, uf.map(Known(1 << 16, seed=number + 1), delivery="process", pager=pager) as region:
        assert memoryview(region)[9] == known(8, 8, number + 1)[1]
assert pagers_of(os.getpid()) == []
kept = [uf.pager.Pager() for _ in range(16)]
try:
    uf.pager.Pager()
except uf.OptionError as error:
    assert "16 pagers at most" in str(error)
else:
    raise AssertionError
"""
    child(code, timeout=60).check()


def test_the_pager_of_a_notebook_cannot_be_stopped_by_a_full_pipe(child):
    """Standard error is a pipe that nobody reads: what a source prints goes nowhere, and its pages come."""
    code = f"""{PROLOGUE}
script = '''
import os, sys
import userfault as uf
def read_into(offset, buffer):
    print("x" * 100_000, file=sys.stderr, flush=True)
    print("y" * 100_000, flush=True)
    buffer[:] = b"x" * len(buffer)
region = uf.map(uf.Function(read_into, 1 << 20, unit=4096), delivery="process")
os._exit(0 if bytes(region) == b"x" * (1 << 20) else 1)
'''
process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
assert process.wait(15) == 0
"""
    child(code).check()


def test_wrong_values_are_refused(child):
    """A pager that is none, one without its delivery, a policy that is none, counts out of range."""
    code = f"""{PROLOGUE}
for work in (
    lambda: uf.map(b"x", delivery="process", pager=3),
    lambda: uf.map(b"x", pager=uf.pager.default_pager()),
    lambda: uf.map(b"x", delivery="process", on_pager_death="ignore"),
    lambda: uf.pager.Pager(restarts=-1),
    lambda: uf.pager.Pager(threads=0),
    lambda: uf.pager.Pager(user="nobody-at-all"),
    lambda: uf.pager.Pager(within="soon"),
):
    try:
        work()
    except uf.OptionError:
        continue
    raise AssertionError
"""
    child(code).check()


def test_ctrl_c_ends_a_map_whose_source_opens_slowly(child, tmp_path):
    """KeyboardInterrupt at once; the pager goes on, and serves others once it is free."""
    code = f"""{PROLOGUE}
asked, go = sys.argv[1] + "/asked", sys.argv[1] + "/go"
class Late(Known):
    def __setstate__(self, state):
        open(asked, "w").close()
        while not os.path.exists(go):
            time.sleep(0.01)
        self.__dict__.update(state)
pager = uf.pager.default_pager()
with uf.map(Known(4096), delivery="process"):
    pass
pid = os.getpid()
began = time.monotonic()
try:
    if os.fork() == 0:
        while not os.path.exists(asked):
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(pid, signal.SIGINT)
        os._exit(0)
    uf.map(Late(1 << 20), delivery="process", timeout="30s")
except KeyboardInterrupt:
    assert time.monotonic() - began < 10, time.monotonic() - began
else:
    raise AssertionError
open(go, "w").close()
os.wait()
assert memoryview(uf.map(Known(1 << 20), delivery="process"))[0] == known(0, 8)[0]
assert pager.restarts == 0
"""
    child(code, args=[tmp_path], timeout=40).check()


def test_statistics_of_a_sparse_region_cost_no_memory(child):
    """A terabyte of 4 KiB units has 256 MiB of states: looking at them does not make them."""
    code = f"""{PROLOGUE}
region = uf.map(Known(1 << 40, unit=4096), delivery="process")
view = memoryview(region)
pid = region.pager.pid
def shared():
    numbers = [int(name) for name in os.listdir(f"/proc/{{pid}}/fd")]
    links = [f"/proc/{{pid}}/fd/{{number}}" for number in numbers]
    return sum(os.stat(link).st_blocks for link in links if os.readlink(link).startswith("/memfd:userfault")) // 2
before = shared()
for at in (0, 1 << 39, (1 << 40) - 8):
    assert view[at] == known(at, 8)[0]
found = check_endings(region)  # a unit is noted as present after its toucher was woken
assert found.present_units == 3 and found.units == 1 << 28, found
assert sum(region.unit_states()) == 6
assert shared() - before < 20_000, shared() - before
"""
    child(code, timeout=40).check()
