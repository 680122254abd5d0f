"""The test kit does what it says: sources that misbehave, children that may hang or die."""

import threading

import pytest

import userfault as uf
from userfault.sources import native
from userfault.testing import ChaosSource, TouchChild, TouchDied, TouchTimeout

DATA = bytes(number % 251 for number in range(20_000))
PAGE = 4096


def fill(offset, buffer):
    buffer[:] = DATA[offset : offset + len(buffer)]


def made(kind, **options):
    inner = uf.Bytes(DATA) if kind == "native" else uf.Function(fill, len(DATA))
    return ChaosSource(inner, fail=[range(5000, 6000)], **options)


def read(source, start, stop):
    room = bytearray(b"\xa5" * (stop - start))
    source.read_into(start, room)
    return bytes(room)


@pytest.mark.parametrize("kind", ["native", "python"])
@pytest.mark.parametrize("how", ["error", "short", "long"])
def test_only_what_is_marked_misbehaves(kind, how):
    """Other reads are as they were, and in a bad one nothing is made up."""
    source = native(made(kind, how=how))
    assert read(source, 0, 5000) == DATA[:5000]
    assert read(source, 6000, len(DATA)) == DATA[6000:]
    with pytest.raises(uf.PageError):
        read(source, 4000, 5001)


@pytest.mark.parametrize("kind", ["native", "python"])
def test_each_way_has_its_error(kind):
    """As a source that does so by mistake has."""
    with pytest.raises(uf.PageError, match="on purpose"):
        read(native(made(kind)), 5000, 5001)
    with pytest.raises(uf.PageError, match="the source ends before this byte") as caught:
        read(native(made(kind, how="short")), 4000, 5001)
    assert caught.value.offset == 5000
    with pytest.raises(uf.PageError) as caught:
        read(native(made(kind, how="long")), 5000, 5001)
    assert isinstance(caught.value.cause, TypeError)


@pytest.mark.parametrize("how", ["error", "short", "long"])
def test_failures_are_counted_over_all_threads(how):
    """So many misbehave, then none."""
    source, failed = native(made("python", how=how, failures=5)), []

    def reader():
        for _ in range(10):
            try:
                read(source, 5000, 5001)
            except uf.PageError:
                failed.append(1)

    threads = [threading.Thread(target=reader) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(failed) == 5


@pytest.mark.parametrize("kind", ["native", "python"])
def test_an_error_on_purpose_is_transient(kind):
    """Retry outlives it."""
    assert read(native(uf.Retry(made(kind, failures=2), attempts=3, pause=0)), 5000, 5010) == DATA[5000:5010]


def test_a_way_that_is_none_is_refused():
    """With those that there are."""
    with pytest.raises(uf.OptionError, match="hang"):
        made("native", how="explode")


@pytest.mark.kernel
@pytest.mark.parametrize("delivery", ["thread", "signal"])
def test_a_source_that_dies_takes_its_process_along(delivery):
    """Where it runs in that process; and the kit says by which signal."""
    with TouchChild(made("native", how="die"), delivery=delivery, unit=PAGE) as child:
        assert child.touch(0) == DATA[:1]
        with pytest.raises(TouchDied) as caught:
            child.touch(PAGE)
    assert caught.value.returncode == -9


@pytest.mark.kernel
def test_a_touch_that_hangs_is_a_timeout_of_the_kit():
    """And the child is gone."""
    with TouchChild(made("python", how="hang"), unit=PAGE, delivery="signal") as child:
        child.timeout = 3  # of the touch alone: the child has started
        with pytest.raises(TouchTimeout, match="within 3 s"):
            child.touch(PAGE)
        with pytest.raises(TouchDied):
            child.touch(0)


@pytest.mark.kernel
def test_an_exception_of_a_child_is_raised_here():
    """With its attributes, and its cause."""
    with TouchChild(made("python", how="long"), unit=PAGE) as child:
        with pytest.raises(uf.PageError) as caught:
            child.touch(PAGE, 10)
        assert isinstance(caught.value.cause, TypeError)
        assert child.touch(0, 10) == DATA[:10]
        with pytest.raises(AttributeError):
            child.call("no_such_method")


@pytest.mark.kernel
def test_what_map_refuses_is_raised_here():
    """Before there is a child to talk to."""
    with pytest.raises(uf.OptionError, match="unit"):
        TouchChild(uf.Zero(10), unit=3)


def test_a_source_that_cannot_be_sent_is_an_error_here():
    """Before there is a child."""
    lock = threading.Lock()
    with pytest.raises(TypeError, match="pickle"):
        TouchChild(uf.Function(lambda offset, buffer: lock, 10))


@pytest.mark.kernel
def test_a_function_of_a_script_is_sent_along():
    """By cloudpickle, what it refers to included."""

    def sevens(offset, buffer):
        buffer[:] = b"\x07" * len(buffer)

    with TouchChild(uf.Function(sevens, 10_000)) as child:
        assert child.touch(5000, 2) == b"\x07\x07"


def test_a_server_that_hangs_does_not_take_the_turns_of_others():
    """More reads than there are threads hang beyond their deadline; another source is still read."""
    from userfault.sources import aside

    gate = threading.Event()
    caught = []

    def stuck():
        try:
            aside.aside(gate.wait, 10, seconds=0.2)
        except TimeoutError:
            caught.append(1)

    for _ in range(2):
        threads = [threading.Thread(target=stuck) for _ in range(aside.MOST_ASIDE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert len(caught) == 2 * aside.MOST_ASIDE
    assert aside.aside(lambda: "answer", seconds=5) == "answer"
    gate.set()


def test_passwords_and_signatures_are_not_shown():
    """Neither in repr nor in errors; a pickled source has them still."""
    pytest.importorskip("redis")
    pytest.importorskip("aiohttp")
    url = "redis://user:pass-word@127.0.0.1:1/0/key"
    for source in (
        uf.Redis(url, deadline=1, attempts=1),
        uf.Fsspec("http://user:pass-word@127.0.0.1:1/path?signature=pass-word", deadline=1, attempts=1),
    ):
        assert "pass-word" not in repr(source)
        with pytest.raises(uf.StoreError) as caught:
            native(source)
        assert "pass-word" not in str(caught.value)
    with pytest.raises(uf.OptionError) as refused:
        uf.Redis("redis://user:pass-word@127.0.0.1:1/")
    assert "pass-word" not in str(refused.value)


@pytest.mark.parametrize("how", ["error", "short", "long"])
@pytest.mark.parametrize("bad", [slice(None), slice(-5000, None), range(20_000, 30_000), slice(20_000, None, 1)])
def test_chaos_takes_slices_of_the_source(how, bad):
    """From its end, and without one."""
    opened = native(ChaosSource(uf.Bytes(bytes(24_000)), fail=[bad], how=how))
    with pytest.raises(uf.PageError):
        opened.read_into(23_000, bytearray(1000))
    if bad != slice(None):
        opened.read_into(0, bytearray(1000))


@pytest.mark.parametrize("given", [{"fail": [5]}, {"fail": [range(0, 10, 2)]}, {"failures": -1, "fail": [range(1)]}])
def test_chaos_refuses_what_it_cannot_do(given):
    """At once, not in a read that then fails for another reason."""
    with pytest.raises(uf.OptionError, match="fail"):
        ChaosSource(uf.Bytes(b"abc"), **given)
