"""fork="follow": a forked child gets the bytes that its parent gives, or it dies; it never reads zeros."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

import pytest

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
                    if not late and why != "timeout":  # that it ends by the timeout proves that it waited
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
