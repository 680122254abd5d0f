"""Signals of others: SIGBUS handlers before and after ours, faulthandler, timers, Ctrl-C, faults that are not ours."""

from __future__ import annotations

import shutil
import subprocess

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

deliveries = pytest.mark.parametrize("delivery", ["thread", "signal"])

FOREIGN = """
import mmap, os, tempfile

def foreign_fault():
    with tempfile.TemporaryFile() as file:
        file.truncate(8192)
        memory = mmap.mmap(file.fileno(), 8192)
        file.truncate(0)
        return memory[5000]
"""

HANDLERS = """
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

volatile int mended;

/* Puts a page under the fault and goes on: what a library that pages by SIGBUS does. */
static void mend(int number, siginfo_t *info, void *context) {
    char *page = (char *)((uintptr_t)info->si_addr & ~(uintptr_t)4095);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    if (mmap(page, 4096, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED) _exit(9);
    memset(page, 7, 4096);
    mended++;
}

/* Without SA_SIGINFO. */
static void leave(int number) { _exit(33); }

int install(int kind) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    if (kind) { action.sa_sigaction = mend; action.sa_flags = SA_SIGINFO | SA_ONSTACK; }
    else action.sa_handler = leave;
    return sigaction(SIGBUS, &action, 0);
}

int count(void) { return mended; }
"""


@pytest.fixture(scope="module")
def handlers(tmp_path_factory):
    """A small library of SIGBUS handlers, compiled here."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler here")
    folder = tmp_path_factory.mktemp("handlers")
    (folder / "handlers.c").write_text(HANDLERS)
    library = folder / "handlers.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "handlers.c"], check=True)
    return str(library)


@deliveries
@pytest.mark.parametrize("order", ["before", "between"])
def test_an_older_sigbus_handler_still_gets_its_own_faults(child, delivery, order, handlers):
    """Somebody else's pages by SIGBUS go on working beside ours, in many threads."""

    def code():
        import ctypes
        import sys

        from support.lazy import check_endings, in_threads, known_bytes, raised

        import userfault as uf

        scope = {}
        delivery, order, path, foreign = sys.argv[1:]
        exec(foreign, scope)
        library = ctypes.CDLL(path)
        data = known_bytes(2 << 20)
        if order == "between":
            early = uf.map(data.tobytes(), delivery=delivery)
            assert (early.numpy() == data).all()
        assert library.install(1) == 0
        region = uf.map(data.tobytes(), delivery=delivery)

        def touch():
            for _ in range(20):
                assert scope["foreign_fault"]() == 7
                assert (region.numpy() == data).all()
                region.evict()

        in_threads(*[touch] * 4)
        assert library.count() == 80
        check_endings(region)
        failing = uf.map(uf.testing.Chaos(uf.Zero(1 << 20), fail=[range(1 << 20)]), delivery=delivery)
        view = failing.numpy()

        def fail():
            view[5]
            list(range(100))

        assert raised(uf.PageError, fail).offset == 0

    assert child(code, args=[delivery, order, handlers, FOREIGN], timeout=30).check().stderr == ""


def test_an_older_plain_sigbus_handler_gets_foreign_faults(child, handlers):
    """A handler without SA_SIGINFO is called the way it expects."""

    def code():
        import ctypes
        import sys

        import userfault as uf

        scope = {}
        exec(sys.argv[2], scope)
        assert ctypes.CDLL(sys.argv[1]).install(0) == 0
        region = uf.map(b"lazy" * 10_000, delivery="signal")
        assert memoryview(region)[0] == ord("l")
        scope["foreign_fault"]()

    assert child(code, args=[handlers, FOREIGN]).returncode == 33


@deliveries
@pytest.mark.parametrize("reporter", ["none", "before", "after", "between two maps"])
def test_a_foreign_sigbus_still_ends_the_process(child, delivery, reporter):
    """A page beyond a file's end kills by SIGBUS, with and without faulthandler; never a hang."""

    def code():
        import faulthandler
        import sys

        import userfault as uf

        delivery, reporter, foreign = sys.argv[1:]
        scope = {}
        exec(foreign, scope)
        if reporter == "before":
            faulthandler.enable()
        region = uf.map(b"lazy" * 100_000, delivery=delivery)
        if reporter in ("after", "between two maps"):
            faulthandler.enable()
        if reporter == "between two maps":
            uf.map(b"puts our handler back in front", delivery=delivery)
        view = memoryview(region)
        assert bytes(view[70_000:70_004]) == b"lazy"
        print("touched", flush=True)
        scope["foreign_fault"]()

    result = child(code, args=[delivery, reporter, FOREIGN])
    assert result.stdout == "touched\n"
    assert result.signal is not None, result
    assert result.signal.name == "SIGBUS", result
    if reporter != "none":
        assert "Bus error" in result.stderr
        if (delivery, reporter) == ("signal", "after"):
            return  # it reported a touch of ours, and took itself out
        assert "foreign_fault" in result.stderr


@deliveries
def test_a_sent_sigbus_is_ignored_while_regions_live_or_ends_the_process(child, delivery):
    """kill -BUS does not hang a process and does not disturb its regions."""

    def code():
        import os
        import signal
        import sys

        import userfault as uf

        region = uf.map(b"lazy" * 100_000, delivery=sys.argv[1])
        os.kill(os.getpid(), signal.SIGBUS)
        assert bytes(memoryview(region)[70_000:70_004]) == b"lazy"

    result = child(code, args=[delivery])
    assert result.returncode == 0 or result.signal.name == "SIGBUS", result


@pytest.mark.parametrize("order", ["before", "after", "X"])
def test_faulthandler_and_signal_delivery_work_together(child, order):
    """Enabled before: silent. Enabled after: one false report at most, and every page arrives."""

    def code():
        import faulthandler
        import sys
        import tempfile

        from support.lazy import check_endings, in_threads, known_bytes

        import userfault as uf

        data = known_bytes(4 << 20)
        if sys.argv[1] == "before":
            faulthandler.enable()
        region = uf.map(data.tobytes(), delivery="signal")
        if sys.argv[1] == "after":
            faulthandler.enable()
        view = region.numpy()

        def touch():
            for start in range(0, len(data), 1 << 16):
                assert bytes(view[start : start + 4]) == bytes(data[start : start + 4])
                if start % (1 << 20) == 0:
                    region.evict()

        in_threads(*[touch] * 3)
        assert (view == data).all()
        check_endings(region)
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file)

    result = child(code, args=[order], faulthandler=order == "X").check()
    assert result.stderr.count("Bus error") == (1 if order == "after" else 0), result.stderr


def test_dump_traceback_later_fires_while_pages_arrive(child):
    """faulthandler's timer thread works beside slow pages."""

    def code():
        import faulthandler
        import sys

        import userfault as uf

        region = uf.map(uf.testing.Chaos(uf.Zero(1 << 20), delay=5))
        faulthandler.dump_traceback_later(0.1, file=sys.stderr)
        assert memoryview(region)[5] == 0
        faulthandler.cancel_dump_traceback_later()

    assert "Timeout" in child(code).check().stderr


@pytest.mark.parametrize("rate", [0.001, 0.0002])
def test_a_slow_page_arrives_under_a_fast_timer(child, rate):
    """SIGALRM interrupts a wait hundreds of times: the touch is answered all the same, once, and in time."""

    def code():
        import signal
        import sys
        import time

        from support.lazy import check_endings

        import userfault as uf

        rings = []
        signal.signal(signal.SIGALRM, lambda *_: rings.append(1))
        region = uf.map(uf.testing.Chaos(uf.Zero(1 << 20), delay=0.5))
        signal.setitimer(signal.ITIMER_REAL, float(sys.argv[1]), float(sys.argv[1]))
        began = time.monotonic()
        assert memoryview(region)[5] == 0
        took = time.monotonic() - began
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert took < 10, took
        found = check_endings(region)
        assert found.demand_units == 1, found

    child(code, args=[str(rate)]).check()


def test_threads_with_all_signals_blocked_are_served(child):
    """Thread delivery needs no signal in the toucher."""

    def code():
        import signal

        from support.lazy import in_threads, known_bytes

        import userfault as uf

        data = known_bytes(1 << 20)
        region = uf.map(data.tobytes())

        def touch():
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            assert (region.numpy() == data).all()

        in_threads(touch, touch)

    child(code).check()


def test_engine_threads_take_no_signal_of_the_application(child):
    """A signal sent to the process is handled by an application thread, as before map()."""

    def code():
        import os
        import pathlib
        import time

        import userfault as uf

        region = uf.map(b"lazy" * 10_000)
        assert memoryview(region)[0] == ord("l")
        own = str(os.getpid())

        def threads():
            for task in pathlib.Path("/proc/self/task").iterdir():
                status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
                if status["Name"].startswith("userfault") and task.name != own:
                    yield status["Name"], int(status["SigBlk"], 16)

        limit = time.monotonic() + 5
        while len(engine := list(threads())) < 3 and time.monotonic() < limit:
            time.sleep(0.01)  # a thread has its name only when it has run
        usual = sum(1 << number - 1 for number in (1, 2, 7, 10, 12, 13, 14, 15, 17, 27))
        assert len(engine) >= 3, engine
        assert all(mask & usual == usual for _, mask in engine), engine

    child(code).check()
