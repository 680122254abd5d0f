"""fork="follow": a forked child gets the bytes that its parent gives, or it dies; it never reads zeros."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

import pytest
from support.child import source_of

from mman.following import (
    PAGE,
    PR_SET_CHILD_SUBREAPER,
    Followed,
    content,
    ending,
    engine_descriptors,
    eventually,
    fork_and,
    mman,
    prctl,
    raised,
    state_of,
)

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

PRELUDE = "import ctypes, os, signal, sys, threading, time\nfrom mman.following import *\n"

PROBE = """
from userfault import errors, mman
try:
    mman.madvise(mman.anonymous(4096), mman.MADV_USERFAULT, fork="follow")
except (errors.RefusedError, errors.UnsupportedError) as error:
    print(error)
"""


@pytest.fixture
def follow(child):
    """Run a function in a child that may follow its own children; skipped with the reason where it may not."""
    reason = child(PROBE).check().stdout.strip()
    if reason:
        pytest.skip(reason)

    def run(code, *, silent=True, **options):
        result = child(PRELUDE + source_of(code), **options).check()
        assert not silent or not result.stderr, result.stderr
        return result

    return run


def test_forked_child_gets_the_bytes_that_the_parent_gives(follow):
    """Every byte of every page; pages that were there are inherited; the parent's own are untouched."""

    def code():
        it = Followed(256)
        it.serve()
        assert [(one.fork, one.length) for one in mman.ranges()] == [("follow", 256 * PAGE)]
        assert ending(fork_and(it.check)) == 0
        assert it.memory[PAGE] == 0xEE
        assert it.descriptor.pending == 0

    follow(code)


def test_many_threads_of_a_forked_child_get_the_bytes(follow):
    """Two faults on the same page included."""

    def code():
        it = Followed(64)

        def work():
            wrong = []

            def look(start):
                for page in [*range(start, 64), *range(start)]:
                    if page != 1 and it.memory[page * PAGE : (page + 1) * PAGE] != content(page):
                        wrong.append(page)

            threads = [threading.Thread(target=look, args=(start,)) for start in (0, 0, 16, 32)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            os._exit(len(wrong))

        it.serve()
        assert ending(fork_and(work)) == 0

    follow(code)


def test_system_calls_of_a_forked_child_get_the_bytes(follow):
    """write(2) from absent pages."""

    def code():
        it = Followed(16)
        it.serve()
        far, near = os.pipe()

        def work():
            os.write(near, memoryview(it.memory)[2 * PAGE : 4 * PAGE])
            os._exit(0)

        process = fork_and(work)
        assert ending(process) == 0
        assert os.read(far, 3 * PAGE) == content(2) + content(3)

    follow(code)


@pytest.mark.parametrize("how", ["multiprocessing", "c", "two_descriptors", "thread"])
def test_every_kind_of_fork_follows(follow, how):
    """multiprocessing, fork(2) by C code, from another thread, and with two descriptors that both follow."""

    def code():
        import multiprocessing

        it = Followed(32)
        other = Followed(32) if sys.argv[1] == "two_descriptors" else it
        it.serve()
        if other is not it:
            other.serve()
        if sys.argv[1] == "multiprocessing":
            process = multiprocessing.get_context("fork").Process(target=it.check)
            process.start()
            process.join()
            status = process.exitcode
        elif sys.argv[1] == "c":
            process = ctypes.PyDLL(None).fork()
            if process == 0:
                for page in range(2, 32):
                    if ctypes.string_at(it.base + page * PAGE, PAGE) != content(page):
                        os._exit(100)
                os._exit(0)
            status = ending(process)
        elif sys.argv[1] == "thread":
            found = []
            thread = threading.Thread(target=lambda: found.append(ending(fork_and(it.check))))
            thread.start()
            thread.join()
            (status,) = found
        else:

            def work():
                if it.memory[5 * PAGE : 6 * PAGE] != content(5):
                    os._exit(101)
                other.check()

            status = ending(fork_and(work))
        assert status == 0, status

    follow(code, args=[how])


@pytest.mark.parametrize("why", ["timeout", "closed", "parent_closed", "dropped", "never_accepted"])
def test_child_whose_fault_is_not_answered_dies_by_sigbus_with_a_line(follow, why):
    """Whether it waits already or touches later; never zeros."""

    def code():
        import gc

        why = sys.argv[1]
        it = Followed(16, timeout="300ms" if why in ("timeout", "never_accepted") else "20s")
        for late in (False, True):
            if not it.descriptor.closed:
                far, near = os.pipe()

                def work(far=far, late=late):
                    if late:
                        os.read(far, 1)
                    it.touch()

                process = fork_and(work)
                if why != "never_accepted":
                    forked = it.descriptor.accept_fork("5s")
                    if not late:
                        eventually(lambda forked=forked: forked.pending)
                if why == "closed":
                    forked.close()
                    assert forked.closed
                elif why == "parent_closed":
                    it.descriptor.close()
                elif why == "dropped":
                    forked = None
                    gc.collect()
                os.write(near, b"x")
                assert ending(process) == -signal.SIGBUS

    result = follow(code, args=[why], silent=False)
    lines = result.stderr.splitlines()
    assert len(lines) == (1 if why == "parent_closed" else 2), lines
    assert all("its parent gave no page" in line for line in lines)


@pytest.mark.parametrize("how", ["blocked", "about_to_touch", "closerange", "exec"])
def test_child_never_reads_zeros_when_its_parent_ends_first(follow, how):
    """The parent is killed, or becomes another program: the child ends too, twenty times of twenty."""

    def code():
        how = sys.argv[1]
        assert prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        for trial in range(5 if how == "exec" else 20):
            far, near = os.pipe()

            def child(it, near=near, trial=trial):
                os.write(near, os.getpid().to_bytes(4, "little"))
                if how == "closerange":
                    os.closerange(3, 4096)
                if how != "blocked":
                    time.sleep(trial * 0.0002)
                it.touch()

            def parent(child=child):
                it = Followed(16, timeout=None)
                fork_and(lambda: child(it))
                if how == "exec":
                    time.sleep(0.05)
                    os.execlp("sleep", "sleep", "10")
                time.sleep(20)

            outer = fork_and(parent)
            inner = int.from_bytes(os.read(far, 4), "little")
            if how == "blocked":
                time.sleep(0.02)
            if how == "exec":
                eventually(lambda inner=inner: state_of(inner) == "Z")
            os.kill(outer, signal.SIGKILL)
            assert ending(outer) == -signal.SIGKILL
            assert ending(inner) == -signal.SIGKILL, trial
            os.close(far)
            os.close(near)

    result = follow(code, args=[how], silent=False, timeout=50)
    assert all("this forked process ends" in line for line in result.stderr.splitlines()), result.stderr


def test_parent_that_is_killed_during_its_forks_leaves_no_child_with_zeros(follow):
    """At any moment of the fork: a child that came to its touch has not seen a zero."""

    def code():
        assert prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        for trial in range(20):
            far, near = os.pipe()

            def parent(near=near):
                it = Followed(16, timeout=None)
                os.write(near, b"x")
                for _ in range(20):
                    fork_and(it.touch)
                time.sleep(20)

            outer = fork_and(parent)
            os.read(far, 1)
            time.sleep(trial * 0.0007)
            os.kill(outer, signal.SIGKILL)
            while True:
                try:
                    process, status = os.wait()
                except ChildProcessError:
                    break
                found = os.waitstatus_to_exitcode(status)
                assert found in (-signal.SIGKILL, -signal.SIGSEGV), (trial, found, process == outer)
            os.close(far)
            os.close(near)

    follow(code, silent=False, timeout=50)


def test_fifty_forks_leave_no_descriptors_behind(follow):
    """Accepted or not."""

    def code():
        it = Followed(8)
        before = engine_descriptors()
        it.serve(25)
        children = [fork_and(it.check) for _ in range(25)]
        assert [ending(process) for process in children] == [0] * 25
        for _ in range(25):
            assert ending(fork_and(lambda: os._exit(7))) == 7
        eventually(lambda: engine_descriptors() == before)

    follow(code, timeout=40)


def test_accept_fork_says_when_there_is_none(follow):
    """TimeoutError; and a closed descriptor ends the wait of another thread."""

    def code():
        it = Followed(4)
        for timeout in (0, "50ms"):
            raised(TimeoutError, lambda timeout=timeout: it.descriptor.accept_fork(timeout))
        ended = []

        def wait():
            ended.append(raised(ValueError, it.descriptor.accept_fork))

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.1)
        it.descriptor.close()
        thread.join(5)
        assert ended

    follow(code)


def test_fill_and_read_of_a_child_that_is_gone_say_so(follow):
    """ProcessLookupError; wrong lengths and addresses are errors of their own."""

    def code():
        import errno

        it = Followed(4)
        far, near = os.pipe()
        process = fork_and(lambda: (os.read(far, 1), os._exit(0)))
        forked = it.descriptor.accept_fork("5s")
        assert forked.fill(it.base, content(0) + content(1) + content(2)) == 2 * PAGE, "page 1 was there"
        for bad in (b"", b"x", content(0) + b"x"):
            raised(ValueError, lambda bad=bad: forked.fill(it.base, bad))
        elsewhere = mman.address_of(mman.anonymous(PAGE))
        assert raised(OSError, lambda: forked.fill(elsewhere, content(0))).errno == errno.ENOENT
        os.write(near, b"x")
        assert ending(process) == 0
        for call in (forked.read_fault, lambda: forked.fill(it.base, content(0))):
            raised(ProcessLookupError, call)
        forked.close()
        raised(ValueError, forked.read_fault)

    follow(code)


@pytest.mark.parametrize("state", ["flagged", "unregistered", "closed", "dontfork", "deny_again", "dontfork_before"])
def test_child_is_denied_where_nobody_could_answer_it(follow, state):
    """A range with no descriptor, or that the caller himself keeps out: a tombstone, as with "deny"."""

    def code():
        state = sys.argv[1]
        if state == "dontfork_before":
            memory = mman.anonymous(16 * PAGE)
            mman.madvise(memory, mman.MADV_DONTFORK)
            mman.madvise(memory, mman.MADV_USERFAULT, fork="follow")
            descriptor = mman.userfaultfd()
            descriptor.register(memory)
            base = mman.address_of(memory)
        else:
            it = Followed(16)
            memory, descriptor, base = it.memory, it.descriptor, it.base
        if state in ("flagged", "unregistered"):
            descriptor.unregister(memory)
        elif state == "closed":
            descriptor.close()
        elif state == "dontfork":
            mman.madvise(memory, mman.MADV_DONTFORK)
        elif state == "deny_again":
            mman.madvise(memory, mman.MADV_USERFAULT)
        if state == "flagged":
            mman.madvise(memory, mman.MADV_USERFAULT, fork="follow")
        assert {one.fork for one in mman.ranges()} == {"deny"}
        assert ending(fork_and(lambda: os._exit(ctypes.string_at(base + 5 * PAGE, 1)[0]))) == -signal.SIGSEGV
        if state in ("flagged", "unregistered"):
            mman.madvise(memory, mman.MADV_USERFAULT, fork="follow")
            descriptor.register(memory)
            it.serve()
            assert ending(fork_and(it.check)) == 0, "registered again it follows again"

    lines = follow(code, args=[state], silent=False).stderr.splitlines()
    assert len(lines) == 1, lines
    assert "belongs to its parent" in lines[0]


def test_nouserfault_gives_back_ordinary_memory(follow):
    """The child has its own copy, with zeros in the holes; nothing is kept from it any more."""

    def code():
        it = Followed(16)
        mman.madvise(it.memory, mman.MADV_NOUSERFAULT)
        assert [one.fork for one in mman.ranges()] == [None]
        assert ending(fork_and(lambda: os._exit(it.memory[5 * PAGE] + it.memory[PAGE]))) == 0xEE
        it.descriptor.unregister(it.memory)
        assert mman.ranges() == []

    follow(code)


def test_registered_range_without_the_flag_is_inherited_as_ever(follow):
    """By a descriptor that could follow: no event, no child to accept."""

    def code():
        plain = mman.anonymous(4 * PAGE)
        it = mman.userfaultfd()
        assert it.can_follow
        it.register(plain)
        assert ending(fork_and(lambda: os._exit(plain[0]))) == 0
        it.unregister(plain)
        mman.madvise(plain, mman.MADV_USERFAULT, fork="follow")
        it.register(plain)
        mman.madvise(plain, mman.MADV_NOUSERFAULT)
        assert ending(fork_and(lambda: os._exit(plain[0]))) == 0
        plain.close()
        assert mman.ranges() == []

    follow(code)


def test_grandchild_gets_a_tombstone(follow):
    """Nobody would answer it."""

    def code():
        it = Followed(16)
        it.serve()

        def work():
            if it.memory[5 * PAGE] != content(5)[0]:
                os._exit(101)
            os._exit(-ending(fork_and(lambda: it.touch(6))))

        assert ending(fork_and(work)) == signal.SIGSEGV

    lines = follow(code, silent=False).stderr.splitlines()
    assert len(lines) == 1, lines
    assert "belongs to its parent" in lines[0]


def test_child_that_follows_has_children_that_follow_it(follow):
    """An engine of its own beside its parent's; each range has the bytes of the process that gives them."""

    def code():
        outer = Followed(32)
        outer.serve()

        def work():
            inner = Followed(32)
            inner.serve()
            if ending(fork_and(inner.check)) != 0:
                os._exit(101)
            outer.check()

        assert ending(fork_and(work)) == 0

    follow(code)


def test_fork_that_passes_the_hooks_by_gives_no_zeros(follow):
    """A bare clone(2): SIGBUS."""

    def code():
        import platform

        number = {"x86_64": 56, "aarch64": 220}[platform.machine()]
        it = Followed(16)
        process = ctypes.PyDLL(None).syscall(number, int(signal.SIGCHLD), 0, 0, 0, 0)
        if process == 0:
            time.sleep(0.05)
            it.touch()
        assert ending(process) == -signal.SIGBUS
        it.serve()
        assert ending(fork_and(it.check)) == 0

    lines = follow(code, silent=False).stderr.splitlines()
    assert len(lines) == 1, lines
    assert "its parent gave no page" in lines[0]


def test_programs_start_as_ever(follow):
    """posix_spawn and subprocess send no event."""

    def code():
        import subprocess

        it = Followed(16)
        assert subprocess.run(["echo", "fine"], capture_output=True, check=True).stdout == b"fine\n"
        assert ending(os.posix_spawnp("true", ["true"], {})) == 0
        raised(TimeoutError, lambda: it.descriptor.accept_fork(0))
        it.serve()
        assert subprocess.run(["true"], preexec_fn=lambda: it.memory[5 * PAGE], check=True).returncode == 0

    follow(code)


def test_forks_beside_threads_that_allocate_fault_and_map(follow):
    """fork(2) holds the allocator and waits for its event: whoever reads that must not allocate."""

    def code():
        import mmap
        from contextlib import suppress

        it, end = Followed(512), time.monotonic() + 4
        stop = threading.Event()

        def allocate():
            while not stop.is_set():
                blocks = [bytearray(size) for size in range(1, 200_000, 3111)]
                del blocks

        def fault():
            staging = mman.anonymous(PAGE)
            while not stop.is_set():
                try:
                    address = it.descriptor.read_fault()
                except ValueError:
                    return
                page = address // PAGE * PAGE
                staging[:] = content((page - it.base) // PAGE)
                with suppress(FileExistsError):
                    mman.remap_anon_pages(page, staging, PAGE)
                with suppress(FileNotFoundError):
                    it.descriptor.wake(page)

        def touch():
            turn = 0
            while not stop.is_set():
                turn = (turn * 5 + 7) % 512
                if turn != 1:
                    assert it.memory[turn * PAGE] == content(turn)[0]
                if turn % 16 == 0:
                    it.memory.madvise(mmap.MADV_DONTNEED, turn * PAGE, PAGE)

        def map_and_unmap():
            while not stop.is_set():
                short = mman.anonymous(4 * PAGE)
                mman.madvise(short, mman.MADV_USERFAULT, fork="follow")
                it.descriptor.register(short)
                short.close()

        for work in (allocate, allocate, fault, touch, map_and_unmap):
            threading.Thread(target=work, daemon=True).start()
        forks = 0
        while time.monotonic() < end:
            (server,) = it.serve()
            assert ending(fork_and(lambda: os._exit(0 if it.memory[9 * PAGE] == content(9)[0] else 100))) == 0
            forks += 1
            server.join(10)
            assert not server.is_alive()
        stop.set()
        assert forks > 3, forks
        os._exit(0)

    follow(code, timeout=40)


def test_without_the_capability_it_is_refused_with_a_command(as_nobody):
    """And the range stays without a flag; "deny" works."""

    def code():
        from support.lazy import raised

        from userfault import errors, mman

        memory = mman.anonymous(4096)
        error = raised(errors.RefusedError, lambda: mman.madvise(memory, mman.MADV_USERFAULT, fork="follow"))
        assert isinstance(error, PermissionError)
        assert "SYS_PTRACE" in error.command, error.command
        assert mman.ranges() == []
        assert memory[0] == 0
        mman.madvise(memory, mman.MADV_USERFAULT)

    as_nobody(code).check()


def test_fork_policies_that_make_no_sense_are_value_errors(child):
    """Another word, and another advice."""

    def code():
        from support.lazy import raised

        from userfault import mman

        memory = mman.anonymous(4096)
        for advice, fork in ((mman.MADV_USERFAULT, "maybe"), (mman.MADV_NOUSERFAULT, "follow"), (mman.MADV_DONTNEED, "follow")):
            raised(ValueError, lambda advice=advice, fork=fork: mman.madvise(memory, advice, fork=fork))
        assert mman.ranges() == []

    child(code).check()
