"""How regions and processes end: close, exit, os._exit, exec and kills while faults are in flight."""

from __future__ import annotations

import time

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

deliveries = pytest.mark.parametrize("delivery", ["thread", "signal"])


def check_silent(result):
    result.check()
    assert (result.stdout, result.stderr) == ("", "")


@deliveries
@pytest.mark.parametrize("delay", [0, 0.05], ids=["fast", "slow"])
def test_close_while_prefetch_runs_ends_it(child, delivery, delay):
    """close() beside a running prefetch returns, and the next region at that place has its own bytes only."""
    if delivery == "signal" and delay:
        pytest.skip("a slow source cannot be served in a signal handler")

    def code():
        import sys
        import time

        from support.lazy import known_bytes

        import userfault as uf

        delivery, delay = sys.argv[1], float(sys.argv[2])
        data = [known_bytes(8 << 20, seed=seed) for seed in range(2)]
        sources = [uf.Bytes(bytes_.tobytes()) for bytes_ in data]
        if delay:
            sources = [uf.testing.Chaos(source, delay=delay) for source in sources]
        for round_ in range(4 if delay else 30):
            which = round_ % 2
            region = uf.map(sources[which], delivery=delivery, unit="64KiB")
            region.prefetch()
            time.sleep(0.001 * (round_ % 5))
            at = round_ * 4096 + 17
            assert memoryview(region)[at] == data[which][at]
            before = time.monotonic()
            region.close()
            assert time.monotonic() - before < 10
            assert region.state == "closed"

    check_silent(child(code, args=[delivery, str(delay)], timeout=40))


def test_close_while_populate_waits_in_another_thread_ends_the_wait(child):
    """The populating thread returns or raises; it does not hang, and says no nonsense."""

    def code():
        import threading
        import time

        from support.lazy import raised

        import userfault as uf

        region = uf.map(uf.testing.Chaos(uf.Zero(8 << 20), delay=0.5), unit="64KiB")
        ended = []

        def populate():
            ended.append(str(raised(uf.UserfaultError, region.populate)))

        thread = threading.Thread(target=populate, daemon=True)
        thread.start()
        while not region.statistics().present_units:
            time.sleep(0.005)
        region.close()
        thread.join(10)
        assert "close" in ended[0], ended

    check_silent(child(code))


def test_close_with_views_alive_raises_and_with_waits_for_the_last_view(child):
    """An explicit close beside a view is BufferError; `with` closes when the last view dies."""

    def code():
        import numpy as np
        from support.lazy import raised

        import userfault as uf

        region = uf.map(b"lazy" * 100_000)
        view = region.numpy()
        assert "1 view" in str(raised(BufferError, region.close))
        with region:
            part = np.frombuffer(region, "u1")[5:9]
        assert region.state == "closing"
        assert "closing" in repr(region)
        assert bytes(part) == b"azyl"
        assert view[399_999] == ord("y")
        raised(BufferError, lambda: memoryview(region))
        del part
        assert region.state == "closing"
        del view
        assert region.state == "closed"
        region.close()
        region.close()

    check_silent(child(code))


@deliveries
def test_dropping_a_region_with_an_array_alive_keeps_its_memory(child, delivery):
    """The array holds the region; the last of both unmaps."""

    def code():
        import gc
        import sys

        from support.lazy import maps

        import userfault as uf

        def mapped(address):
            return any(low == address for low, _, _ in maps())

        region = uf.map(b"lazy" * 1_000_000, delivery=sys.argv[1])
        array, address = region.numpy("u4"), region.address
        del region
        gc.collect()
        assert (array == array[0]).all()
        assert mapped(address)
        del array
        gc.collect()
        assert not mapped(address)

    check_silent(child(code, args=[delivery]))


EXITS = {
    "end": "pass",
    "sys.exit": "import sys; sys.exit(0)",
    "os._exit": "import os; os._exit(0)",
    "exec": "import os; os.execv('/bin/true', ['true'])",
    "in thread": "import os; threading.Thread(target=os._exit, args=(0,)).start(); time.sleep(20)",
    "atexit": "import atexit; atexit.register(lambda: views[0][5])",
}


@pytest.mark.parametrize("way", EXITS.values(), ids=EXITS)
@pytest.mark.parametrize("kind", ["idle", "storm by thread", "storm by signal", "slow"])
def test_exit_with_regions_open_is_quick_silent_and_zero(child, way, kind):
    """Whatever is in flight when the interpreter ends: status 0, no output, no hang."""
    begin = f"""
        import random, threading, time
        from support.lazy import known_bytes
        import userfault as uf
        data = known_bytes(3 << 20)
        kind = {kind!r}
        delivery = "signal" if kind.endswith("signal") else "thread"
        source = uf.Bytes(data.tobytes())
        if kind == "slow":
            source = uf.testing.Chaos(source, delay=0.1)
        regions = [uf.map(source, delivery=delivery, unit=unit) for unit in ("4KiB", "256KiB")]
        views = [region.numpy() for region in regions]
        def touch():
            while True:
                region = random.choice(regions)
                at = random.randrange(3 << 20)
                # Once the interpreter is finalized no assertion means anything; wrong bytes would print.
                if memoryview(region)[at] != data[at] and region.numpy()[at] != data[at]:
                    print("wrong byte", at, flush=True)
                region.evict(slice(at, at + (1 << 20)))
        if kind != "idle":
            for _ in range(4):
                threading.Thread(target=touch, daemon=True).start()
            for region in regions:
                region.prefetch()
            time.sleep(0.3)
    """
    import textwrap

    started = time.monotonic()
    check_silent(child(textwrap.dedent(begin) + way, timeout=25))
    assert time.monotonic() - started < 18


def test_exit_while_pages_fail_is_quick_and_zero(child):
    """Threads that raise PageError all the time do not disturb the end."""

    def code():
        import threading
        import time

        import userfault as uf

        region = uf.map(uf.testing.Chaos(uf.Zero(1 << 20), fail=[range(1 << 20)]))
        view = region.numpy()

        def touch():
            while True:
                try:
                    view.sum()
                    bytes(view[5:6])  # no arithmetic: until the exception surfaces the value may be anything
                except uf.PageError:
                    pass

        for _ in range(3):
            threading.Thread(target=touch, daemon=True).start()
        time.sleep(0.5)

    for _ in range(3):
        result = child(code, timeout=20).check()
        assert "Traceback" not in result.stderr, result.stderr


def test_exit_inside_a_touch_by_a_signal_handler_works(child):
    """A Python signal handler that calls sys.exit ends a loop of touches."""

    def code():
        import signal
        import sys

        import userfault as uf

        region = uf.map(uf.testing.Chaos(uf.Zero(64 << 20), delay="5ms"), unit="4KiB")
        view = region.numpy()
        signal.signal(signal.SIGALRM, lambda *_: sys.exit(0))
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        for at in range(0, 64 << 20, 4096):
            view[at]
        raise AssertionError("not interrupted")

    check_silent(child(code))


def test_a_killed_process_leaves_nothing_that_hangs(child):
    """SIGKILL and SIGTERM end a process at once whose threads wait for a page that never comes."""

    def code():
        import os
        import signal
        import subprocess
        import sys
        import time

        program = [
            "import os, threading, userfault as uf",
            "region = uf.map(uf.testing.Chaos(uf.Zero(1 << 20), delay=100), unit='4KiB')",
            "view = region.numpy()",
            "print('ready', flush=True)",
            # a pipe of their own: one that is written to from a page that does not come cannot be read meanwhile
            "pipes = [os.pipe() for _ in range(4)]",
            "threads = [threading.Thread(target=os.write, args=(pipe[1], view[at << 16 :])) for at, pipe in enumerate(pipes)]",
            "[thread.start() for thread in threads]",
            "view[-1]",
        ]
        for ending in (signal.SIGKILL, signal.SIGTERM):
            process = subprocess.Popen([sys.executable, "-c", "\n".join(program)], stdout=subprocess.PIPE)
            assert process.stdout.readline() == b"ready\n"
            time.sleep(0.2)
            before = time.monotonic()
            os.kill(process.pid, ending)
            assert process.wait(20) == -ending
            assert time.monotonic() - before < 15

    child(code, timeout=50).check()


@deliveries
def test_mprotect_of_a_region_while_faults_are_in_flight_loses_nothing(child, delivery):
    """PROT_READ and back, over and over, beside touches: right bytes, the law of endings, and no hang."""

    def code():
        import random
        import sys
        import time

        from support.lazy import check_endings, in_threads, known_bytes, libc

        import userfault as uf

        data = known_bytes(4 << 20)
        source = uf.Bytes(data.tobytes())
        regions = [uf.map(source, delivery=sys.argv[1], unit=unit) for unit in ("4KiB", "64KiB", "256KiB", "1MiB")]
        until = time.monotonic() + 2

        def touch(number):
            choose = random.Random(number)
            while time.monotonic() < until:
                region = choose.choice(regions)
                start = choose.randrange(len(data) - 100_000)
                assert (region.numpy()[start : start + 100_000] == data[start : start + 100_000]).all()
                if choose.random() < 0.3:
                    region.evict()

        def protect():
            choose = random.Random(0)
            while time.monotonic() < until:
                region = choose.choice(regions)
                start = choose.randrange(1000) * 4096
                size = choose.choice([4096, 65536, (4 << 20) - start])
                size = min(size, (4 << 20) - start)
                assert libc.mprotect(region.address + start, size, 1) == 0
                time.sleep(0.0005)
                assert libc.mprotect(region.address, 4 << 20, 3) == 0

        in_threads(*[lambda number=number: touch(number) for number in range(4)], protect)
        for region in regions:
            assert (region.numpy() == data).all()
            check_endings(region)

    check_silent(child(code, args=[delivery], timeout=40))


@deliveries
@pytest.mark.parametrize("unit", ["64KiB", "1MiB"])
def test_a_unit_of_which_a_part_was_made_read_only_is_filled_whole(child, delivery, unit, tmp_path):
    """A unit that spans mappings, after pages of it went by MOVE: every byte arrives, by COPY where nothing else works."""

    def code():
        import pathlib
        import sys

        from support.lazy import check_endings, known_bytes, libc

        import userfault as uf
        from userfault import image

        delivery, unit = sys.argv[1:]
        data = known_bytes(4 << 20)
        image.pack(data.tobytes(), pathlib.Path("data.zst"), frame="1MiB")
        for source in (uf.Bytes(data.tobytes()), uf.Image("data.zst")):
            region = uf.map(source, delivery=delivery, unit=unit)
            view = region.numpy()
            assert (view == data).all()
            region.evict()  # from now on there are staging pages
            for part in range(0, 4 << 20, 1 << 16):
                if part % (3 << 16) == 0:
                    assert libc.mprotect(region.address + part + 8192, 16_384, 1) == 0
            assert (view == data).all()
            assert libc.mprotect(region.address, 4 << 20, 3) == 0
            region.evict()
            assert (view == data).all()
            check_endings(region)

    check_silent(child(code, args=[delivery, unit], cwd=tmp_path))


def test_a_region_closed_while_a_read_hangs_goes_later_and_its_place_is_safe(child):
    """close() returns within its limit although the source still reads; new regions read right meanwhile and after."""

    def code():
        import threading
        import time

        from support.lazy import known_bytes

        import userfault as uf

        data = known_bytes(1 << 20)
        region = uf.map(uf.testing.Chaos(uf.Bytes(data.tobytes()), delay=4), unit="1MiB")
        region.prefetch()
        time.sleep(0.2)
        before = time.monotonic()
        closer = threading.Thread(target=region.close, daemon=True)
        closer.start()
        others = []
        while time.monotonic() - before < 5:
            other = uf.map(uf.Bytes(data.tobytes()))
            assert (other.numpy() == data).all()
            others.append(other)
            time.sleep(0.1)
        closer.join(0)
        assert not closer.is_alive()
        assert region.state == "closed"
        assert all((other.numpy() == data).all() for other in others)

    check_silent(child(code, timeout=30))


def test_regions_in_reference_cycles_are_collected(child):
    """A region that holds itself goes with the collector, and its pages with it."""

    def code():
        import gc

        from support.lazy import resident_bytes

        import userfault as uf

        before = resident_bytes()
        for _ in range(20):
            region = uf.map(uf.Bytes(b"x" * (8 << 20)))
            region.me = region
            region.populate()
            del region
            gc.collect()
        assert resident_bytes() - before < 40 << 20

    check_silent(child(code))
