"""The interpreter ends while Python sources are at work: exit status 0 and no word, whatever threads do at that moment."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel

# One that computes loses the GIL between two instructions, where it is ended in the middle of our frames.
WORKS = pytest.mark.parametrize("work", ["sleeps", "computes"])


def ending():
    """Exit in the middle of what `sys.argv` names: where a thread is, what the source does there, the delivery."""
    import os
    import sys
    import threading
    import time

    from support.called import PAGE, Known

    import userfault as uf

    where, work, delivery = sys.argv[1:]
    entered = threading.Event()

    def be_long():
        entered.set()
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if work == "sleeps":
                time.sleep(0.005)

    class Long(Known):
        def read_into(self, offset, buffer):
            if offset:
                be_long()
            super().read_into(offset, buffer)

        def close(self):
            if where == "closing":
                be_long()

    region = uf.map(Long(), delivery=delivery)
    view = memoryview(region)
    region.populate(slice(0, 1))
    _, writer = os.pipe()
    doing = {
        "prefetching": lambda: region.prefetch(slice(PAGE, None)),
        "populating": lambda: region.populate(slice(PAGE, None)),
        "reading": lambda: region.read(PAGE, 100),
        "touching": lambda: view[5 * PAGE],
        "in a system call": lambda: os.write(writer, view[PAGE : 2 * PAGE]),
        "closing": lambda: (view.release(), region.close()),
    }
    if where in doing:
        threading.Thread(target=doing[where], daemon=True).start()
        assert entered.wait(10)
        time.sleep(0.02)


@WORKS
@pytest.mark.parametrize("where", ["prefetching", "populating", "reading", "touching", "closing"])
def test_the_interpreter_ends_while_sources_are_at_work(child, where, work, delivery):
    """Where threads are in a source, they stay there and the process ends."""
    for _ in range(2):
        assert child(ending, args=[where, work, delivery]).check().stderr == ""


@WORKS
def test_the_interpreter_ends_while_a_system_call_waits(child, work):
    """A reader of the library's is in the source then."""
    for _ in range(2):
        assert child(ending, args=["in a system call", work, "thread"]).check().stderr == ""


def test_the_interpreter_ends_while_nothing_is_at_work(child, delivery):
    """The same with an open region that nobody touches."""
    assert child(ending, args=["", "sleeps", delivery]).check().stderr == ""


@WORKS
def test_the_interpreter_ends_inside_a_resolver(child, work):
    """A callable of `on_sigbus` is Python in the middle of a touch as well."""

    def code():
        import sys
        import threading
        import time

        from userfault import mman

        entered = threading.Event()

        def resolver(address):
            entered.set()
            end = time.monotonic() + 30
            while time.monotonic() < end:
                if sys.argv[1] == "sleeps":
                    time.sleep(0.005)

        buffer = mman.anonymous(1 << 20)
        mman.madvise(buffer, mman.MADV_USERFAULT)
        mman.on_sigbus(buffer, resolver)
        threading.Thread(target=lambda: buffer[0], daemon=True).start()
        assert entered.wait(10)
        time.sleep(0.02)

    for _ in range(2):
        assert child(code, args=[work]).check().stderr == ""


def test_a_finalizer_of_the_last_moment_is_told(child, delivery):
    """Python has no imports any more then, and no source: what cannot be had is a PageError still, what is there is there."""

    def code():
        import sys
        import types

        from support.called import PAGE, mapped

        import userfault as uf

        source, region, view, _ = mapped(delivery=sys.argv[1])
        assert view[0] == source.bytes[0]

        class Late:
            def __del__(self, region=region, PAGE=PAGE, PageError=uf.PageError, first=source.bytes[:PAGE], print=print):
                assert region.read(0, PAGE) == first
                try:
                    region.read(PAGE, 10)
                except PageError as error:
                    print(error)

        late = types.ModuleType("late")  # cleared before the modules that were imported before it
        late.late = Late()
        sys.modules["late"] = late

    result = child(code, args=[delivery]).check()
    assert result.stderr == ""
    assert "shutdown" in result.stdout, result.stdout
