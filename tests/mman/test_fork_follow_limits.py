"""Where fork="follow" ends: who is denied, who is refused, and forks beside everything else a process does."""

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
    Followed,
    content,
    ending,
    fork_and,
    mman,
    raised,
)

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]


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
        while time.monotonic() < end or forks <= 3:
            (server,) = it.serve()
            assert ending(fork_and(lambda: os._exit(0 if it.memory[9 * PAGE] == content(9)[0] else 100))) == 0
            forks += 1
            server.join(10)
            assert not server.is_alive()
        stop.set()
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
