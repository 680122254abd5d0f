"""Reading faults and news, each in a child: a fault that nobody answers stops its thread for good."""

from __future__ import annotations

import time

import pytest

from userfault import kernel as uk

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]


def test_fault_is_read_answered_and_counted(child):
    """A touch becomes one event with address, flags and thread, and goes on when the page is there."""

    def code():
        import threading

        from kernel.touching import PAGE, Toucher, load, private
        from userfault import kernel as uk

        with uk.Userfaultfd(uk.Features.THREAD_ID, user_mode_only=True) as fd:
            memory = private(4)
            fd.register(memory)
            address, _ = uk.range_of(memory)
            touch = Toucher(lambda: (load(address + PAGE + 5), threading.get_native_id()))
            (event,) = fd.read_events(timeout=5)
            assert (event.address, event.missing, event.write) == (address + PAGE, True, False), event
            assert fd.counts() == uk.FaultCounts(unread=0, waiting=1)
            assert fd.copy(event.address, b"\x2a" * PAGE).done
            assert touch.ended() == (42, event.thread)
            assert fd.counts() == uk.FaultCounts(unread=0, waiting=0)

    child(code).check()


def test_exists_wakes_nobody_until_wake(child):
    """After EXISTS the caller wakes: the waiter sleeps otherwise."""

    def code():
        from kernel.touching import PAGE, Toucher, asleep_in_fault, load, private
        from userfault import kernel as uk

        with uk.Userfaultfd(user_mode_only=True) as fd:
            memory = private(1)
            fd.register(memory)
            address, _ = uk.range_of(memory)
            touch = Toucher(load, address)
            fd.read_events(timeout=5)
            asleep_in_fault(touch)
            assert fd.copy(memory, b"a" * PAGE, mode=uk.CopyMode.DONTWAKE).done
            assert fd.copy(memory, b"a" * PAGE).exists
            touch.join(0.05)
            assert touch.is_alive()
            fd.wake(memory)
            assert touch.ended() == ord("a")

    child(code).check()


def test_write_protect_stops_the_writer_until_lifted(child):
    """A protected page may be read; a write waits, and is told as WRITE|WP."""

    def code():
        from kernel.touching import Toucher, private, store
        from userfault import kernel as uk

        with uk.Userfaultfd(user_mode_only=True) as fd:
            memory = private(1)
            memory[0] = 1
            fd.register(memory, uk.RegisterMode.WP)
            address, _ = uk.range_of(memory)
            assert fd.write_protect(memory).done
            touch = Toucher(store, address, 2)
            (event,) = fd.read_events(timeout=5)
            assert event.flags == uk.FaultFlags.WRITE | uk.FaultFlags.WP
            assert not event.missing
            assert memory[0] == 1
            assert fd.write_protect(memory, mode=uk.ProtectMode.NONE).done
            touch.ended()
            assert memory[0] == 2

    child(code).check()


def test_minor_fault_is_answered_by_continue(child):
    """A page in the cache is mapped, not copied."""

    def code():
        import mmap
        import os

        from kernel.touching import PAGE, Toucher, load
        from userfault import kernel as uk

        file = os.memfd_create("pages")
        os.truncate(file, 2 * PAGE)
        memory = mmap.mmap(file, 2 * PAGE)
        with uk.Userfaultfd(uk.Features.MINOR_SHMEM, user_mode_only=True) as fd:
            granted = fd.register(memory, uk.RegisterMode.MINOR)
            assert uk.Ioctls.CONTINUE in granted
            os.pwrite(file, b"m" * PAGE, 0)
            address, _ = uk.range_of(memory)
            touch = Toucher(load, address)
            (event,) = fd.read_events(timeout=5)
            assert event.flags == uk.FaultFlags.MINOR
            assert fd.continue_((address, PAGE)).done
            assert touch.ended() == ord("m")
            outcome = fd.continue_((address + PAGE, PAGE))
            assert (outcome.failed, outcome.errno) == (True, 14), outcome

    child(code).check()


def test_remove_event_holds_operations_back_until_read(child):
    """While news is unread every operation says retry; the sender waits for the reader."""

    def code():
        import mmap

        from kernel.touching import PAGE, Toucher, libc, private
        from userfault import kernel as uk

        with uk.Userfaultfd(uk.Features.EVENT_REMOVE, user_mode_only=True) as fd:
            memory = private(2)
            fd.register(memory)
            address, length = uk.range_of(memory)
            assert fd.zeropage(memory).done
            advice = Toucher(libc.madvise, address, length, mmap.MADV_DONTNEED)
            while not fd.zeropage((address, PAGE)).retry:
                pass
            assert fd.read_events(timeout=5) == [uk.Remove(address, address + length)]
            assert advice.ended() == 0
            assert fd.zeropage(memory).done

    child(code).check()


def test_remap_and_unmap_are_told_in_order(child):
    """A move brings the new address; an unmap its range."""

    def code():
        import ctypes

        from kernel.touching import PAGE, Toucher, libc, private
        from userfault import kernel as uk

        libc.mremap.restype = ctypes.c_void_p
        libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
        libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        features = uk.Features.EVENT_REMAP | uk.Features.EVENT_UNMAP
        with uk.Userfaultfd(features, user_mode_only=True) as fd:
            memory, target = private(2), private(2)
            where, to = uk.range_of(memory), uk.range_of(target)[0]
            fd.register(where)
            move = Toucher(libc.mremap, *where, 2 * PAGE, 3, to)
            events = []
            while len(events) < 2:
                events += fd.read_events(timeout=5)
            assert events == [uk.Remap(where[0], to, 2 * PAGE), uk.Unmap(where[0], sum(where))], events
            assert move.ended() == to
            unmap = Toucher(libc.munmap, to, 2 * PAGE)
            assert fd.read_events(timeout=5) == [uk.Unmap(to, to + 2 * PAGE)]
            assert unmap.ended() == 0
        import os

        os._exit(0)  # the mmap objects no longer own what they believe

    child(code).check()


@pytest.mark.root
def test_fork_event_brings_a_descriptor_that_serves_the_child(child, kernel):
    """The child's faults come to its own descriptor, and outlive nothing: it is closed like any other."""
    kernel.need("event_fork")

    def code():
        import ctypes
        import os
        from pathlib import Path

        from kernel.touching import PAGE, Toucher, private
        from userfault import kernel as uk

        def fork(address):
            await_reader()
            pid = os.fork()
            if pid == 0:
                os._exit(ctypes.string_at(address, 1)[0])
            return pid

        def await_reader():
            # os.fork holds the GIL until its event is read: the main thread must wait for it by then.
            while "poll" not in Path(f"/proc/self/task/{os.getpid()}/wchan").read_text():
                pass

        before = len(os.listdir("/proc/self/fd"))
        with uk.Userfaultfd(uk.Features.EVENT_FORK) as fd:
            memory = private(1)
            fd.register(memory)
            address, _ = uk.range_of(memory)
            forking = Toucher(fork, address)
            (event,) = fd.read_events(timeout=5)
            with event.child as follower:
                pid = forking.ended()
                (fault,) = follower.read_events(timeout=5)
                assert fault.address == address
                assert follower.copy(address, b"\x21" * PAGE).done
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0x21
                assert follower.copy(address, b"\x21" * PAGE).gone
            assert memory is not None
        assert len(os.listdir("/proc/self/fd")) == before

    child(code).check()


def test_sigbus_feature_gives_signals_instead_of_events(child):
    """No event, no wait: the thread that touches gets SIGBUS."""

    def code():
        from kernel.touching import private
        from userfault import kernel as uk

        fd, memory = uk.Userfaultfd(uk.Features.SIGBUS, user_mode_only=True), private(1)
        fd.register(memory)
        memory[0]

    result = child(code)
    assert result.signal is not None
    assert result.signal.name == "SIGBUS"


def test_read_events_returns_nothing_when_the_time_is_up():
    """A timeout is an empty list, about on time."""
    with uk.Userfaultfd(user_mode_only=True) as fd:
        begin = time.monotonic()
        assert fd.read_events(timeout=0.05) == []
        assert 0.05 <= time.monotonic() - begin < 10
        assert fd.read_events(timeout=0) == []
        with pytest.raises(ValueError, match="at least 1"):
            fd.read_events(0)


def test_nonblocking_read_returns_at_once():
    """`nonblocking` means no wait unless a timeout says otherwise."""
    with uk.Userfaultfd(user_mode_only=True, nonblocking=True) as fd:
        assert fd.read_events() == []


def test_blocked_read_is_ended_by_a_signal_whose_handler_raises(child):
    """Ctrl-C reaches a reader that waits without a limit."""

    def code():
        import os
        import signal
        import threading
        import time

        from userfault import kernel as uk

        with uk.Userfaultfd(user_mode_only=True) as fd:
            begin = time.monotonic()
            try:
                threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
                fd.read_events()
            except KeyboardInterrupt:
                print("interrupted", time.monotonic() - begin < 10)

    assert child(code).check().stdout == "interrupted True\n"


def test_blocked_read_survives_a_signal_whose_handler_returns(child):
    """Other signals run their handlers and the wait goes on, to the same deadline."""

    def code():
        import signal
        import time

        from userfault import kernel as uk

        ticks = []
        signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        with uk.Userfaultfd(user_mode_only=True) as fd:
            for _ in range(20):  # a machine that is stopped brings few signals
                begin = time.monotonic()
                assert fd.read_events(timeout=0.2) == []
                assert 0.2 <= time.monotonic() - begin < 10
                if len(ticks) > 10:
                    break
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert len(ticks) > 10

    child(code).check()
