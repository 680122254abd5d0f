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


def late():
    """Touch with the lock, without it, by `read` and by a system call: in the last exit handler, and in a thread beside it."""
    import atexit
    import os
    import sys
    import time
    import zlib

    def last():
        if who == "handler":
            look()
        else:
            time.sleep(0.5)
            begun, limit = looks["begun"], time.monotonic() + 15
            while looks["ended"] <= begun and time.monotonic() < limit:  # one that began since has ended
                time.sleep(0.01)

    atexit.register(last)  # before the package is imported: it runs after whatever the package has registered
    import threading

    from support.called import PAGE, Known

    import userfault as uf

    who, delivery = sys.argv[1:]
    looks = {"begun": 0, "ended": 0}
    source = Known()
    region = uf.map(source, delivery=delivery)
    view = memoryview(region)
    checksum = zlib.crc32(source.bytes)
    path = "truncated"
    with open(path, "wb") as file:
        file.write(bytes(64 * PAGE))
    short = memoryview(uf.map(path, delivery=delivery, unit=PAGE))
    os.truncate(path, 32 * PAGE)
    _, writer = os.pipe()

    def is_refused():
        try:
            return zlib.crc32(short) is None
        except uf.PageError:
            return True

    def look():
        right = [zlib.crc32(view) == checksum]
        region.evict()
        right.append(view[7 * PAGE] == source.bytes[7 * PAGE])
        right.append(region.read(9 * PAGE, 10) == source.bytes[9 * PAGE :][:10])
        right.append(delivery == "signal" or os.write(writer, view[11 * PAGE : 12 * PAGE]) == PAGE)
        right.append(is_refused())
        os.write(1, f"{'right' if all(right) else right}\n".encode())

    def look_again_and_again():
        while True:
            looks["begun"] += 1
            look()
            looks["ended"] += 1
            time.sleep(0.05)

    if who == "thread":
        threading.Thread(target=look_again_and_again, daemon=True).start()


@pytest.mark.parametrize("who", ["handler", "thread"])
def test_pages_come_as_long_as_exit_handlers_run(child, who, delivery, tmp_path):
    """And what cannot be had is an exception still, without the interpreter's lock too: never the pattern in place of bytes."""
    result = child(late, args=[who, delivery], cwd=tmp_path, timeout=40).check()
    assert result.stderr == ""
    assert set(result.stdout.split("\n")) == {"right", ""}, result.stdout


def test_a_finalizer_that_has_given_up_the_lock_is_told(child, delivery, tmp_path):
    """Nobody can raise in it from outside any more."""

    def code():
        import os
        import sys
        import types
        import zlib

        import userfault as uf

        with open("truncated", "wb") as file:
            file.write(bytes(1 << 20))
        view = memoryview(uf.map("truncated", delivery=sys.argv[1]))
        os.truncate("truncated", 1 << 18)

        class Late:
            def __del__(self, view=view, checksum=zlib.crc32, PageError=uf.PageError, print=print):
                try:
                    checksum(view)
                except PageError:
                    print("told")

        late = types.ModuleType("late")  # cleared before the modules that were imported before it
        late.late = Late()
        sys.modules["late"] = late

    result = child(code, args=[delivery], cwd=tmp_path).check()
    assert (result.stdout, result.stderr) == ("told\n", "")
