"""What goes wrong between a source and its server ends in the right bytes or in a PageError that says why.

Never in other bytes, and never in zeros.
"""

import os
import random
from urllib.parse import urlsplit

import pytest
from support.clouds import KINDS, cloud_of

import userfault as uf
from userfault.sources import RemoteSource, Version, native
from userfault.testing import Fault, FaultyProxy, TouchChild

PAGE = 4096
PASSING = [
    Fault("status", status=500),
    Fault("status", status=503),
    Fault("status", status=502),
    Fault("status", status=429),
    Fault("reset"),
    Fault("reset", keep=100),
    Fault("close", keep=100),
    Fault("stall", keep=100),
    Fault("mute"),
    Fault("short", keep=100),
    Fault("short", keep=PAGE - 1),
    Fault("shifted"),
]
SILENT = ("mute", "stall")  # given up after a quarter of the deadline, in which a good answer has to come, too
NAMES = [f"{fault.kind} {fault.keep or fault.status}" for fault in PASSING]
FOREVER = [*PASSING, Fault("whole"), *(Fault("status", status=status) for status in (401, 403, 404, 416))]
FOREVER_NAMES = [f"{fault.kind} {fault.keep or fault.status}" for fault in FOREVER]

WHERE = ["web", "signed", *KINDS]
# Five seconds each; the delivery knows nothing of the kind of store.
STORMS = [*((where, "thread") for where in WHERE), *((where, "signal") for where in ("web", "signed", "s3"))]


@pytest.fixture(params=WHERE)
def blob(request, data):
    """``blob(**options) -> (source, proxy)`` of the same bytes behind nginx, by a URL with a query, and in each kind of store."""
    pytest.importorskip("obstore")
    if request.param in KINDS:
        cloud = cloud_of(request, request.param)
        server, name = cloud, cloud.put(data)
    else:
        server, name = request.getfixturevalue("web_server"), f"faults-{random.randrange(1 << 40)}"
        (server.root / name).write_bytes(data)
    if request.param == "signed":
        pytest.importorskip("aiohttp")

    with FaultyProxy("127.0.0.1", server.port) as proxy:

        def make(**options):
            options = {"deadline": 12, **options}
            if request.param in KINDS:
                return cloud.blob(name, port=proxy.port, **options), proxy
            url = f"http://127.0.0.1:{proxy.port}/{name}"
            return uf.Blob(url, **options) if request.param == "web" else uf.Fsspec(f"{url}?signature=abc", **options), proxy

        yield make


def read(source, start, stop):
    room = bytearray(b"\xa5" * (stop - start))
    source.read_into(start, room)
    return bytes(room)


@pytest.mark.parametrize("fault", PASSING, ids=NAMES)
def test_a_fault_that_passes_costs_only_time(blob, data, fault):
    """The read is repeated, and gives the right bytes."""
    source, proxy = blob(deadline=8 if fault.kind in SILENT else 12)
    opened = native(source)
    proxy.order(fault)
    assert read(opened, 5 * PAGE, 6 * PAGE) == data[5 * PAGE : 6 * PAGE]
    assert proxy.spoilt == [fault]
    assert [method for method, _ in proxy.requests] == ["HEAD", "GET", "GET"]


@pytest.mark.parametrize("fault", FOREVER, ids=FOREVER_NAMES)
def test_a_fault_that_stays_is_an_error_with_its_cause(blob, fault):
    """After the attempts, or the deadline, and within it; nothing is made up."""
    source, proxy = blob(deadline=3 if fault.kind in SILENT else 8, attempts=2)
    opened = native(source)
    proxy.order_always(fault)
    with pytest.raises(uf.PageError) as caught:
        read(opened, 0, PAGE)
    assert isinstance(caught.value.cause, uf.StoreError)
    assert caught.value.__cause__ is caught.value.cause
    assert "\n" not in str(caught.value)
    assert len(proxy.spoilt) >= 1
    proxy.order_always(None)


def test_an_object_that_changed_is_no_mixture(blob, request):
    """What was opened is read to the end or not at all, also if the new one has the same length."""
    source, proxy = blob()
    opened = native(source)
    before = read(opened, 0, PAGE)
    replace(request, source, bytes(reversed(before)) * 80)
    for _ in range(2):
        with pytest.raises(uf.PageError) as caught:
            read(opened, PAGE, 2 * PAGE)
        assert isinstance(caught.value.cause, uf.StoreChanged)
    assert len([1 for method, _ in proxy.requests if method == "GET"]) == 3  # asked for once each: it will not change back


def test_an_object_that_is_gone_is_missing(blob, request):
    """As a file would be: FileNotFoundError."""
    source, _ = blob()
    opened = native(source)
    replace(request, source, None)
    with pytest.raises(uf.PageError) as caught:
        read(opened, 0, PAGE)
    assert isinstance(caught.value.cause, uf.StoreMissing)
    assert isinstance(caught.value.cause, FileNotFoundError)
    source.close()
    with pytest.raises(uf.StoreMissing):
        native(source)


def replace(request, source, new):
    """Put other bytes in its place, or none, without the proxy."""
    if source.url.startswith("http"):
        path = request.getfixturevalue("web_server").root / urlsplit(source.path).path.lstrip("/")
        path.unlink()
        if new is not None:
            path.write_bytes(new)
            os.utime(path, (1, random.randrange(1 << 31)))  # nginx's ETag is the second of the change, and the length
        return
    cloud = cloud_of(request, source.url.partition(":")[0])
    cloud.delete(source.path) if new is None else cloud.put(new, source.path)


@pytest.mark.kernel
@pytest.mark.parametrize(("blob", "delivery"), STORMS, indirect=["blob"])
def test_a_touch_gets_the_right_bytes_or_an_error(blob, data, kernel, delivery):
    """A storm: a third of the answers is spoilt in one of all ways, and every byte that is shown is compared."""
    source, proxy = blob(deadline=3, attempts=3)
    numbers = random.Random(7)
    shown = failed = 0
    with TouchChild(source, delivery=delivery, unit=PAGE, timeout=30) as child:
        for number in range(40):
            if number % 3 == 0:
                proxy.order(
                    *numbers.choices([*PASSING, Fault("status", status=403), Fault("whole")], k=numbers.choice([1, 1, 3]))
                )
            start = numbers.randrange(0, len(data) // PAGE) * PAGE
            found = touched(child, start)
            if isinstance(found, uf.PageError):
                assert isinstance(found.cause, uf.StoreError), found
                failed += 1
            else:
                assert found == data[start : start + PAGE]
                shown += 1
    assert shown > 20
    assert failed > 0
    assert len(proxy.spoilt) > 10


def touched(child, start):
    try:
        return child.touch(start, PAGE)
    except uf.PageError as error:
        return error


@pytest.mark.parametrize("fault", [Fault("reset", keep=100), Fault("close", keep=100)], ids=lambda fault: fault.kind)
def test_an_answer_that_breaks_off_goes_on_with_the_same_object(blob, data, request, fault):
    """The rest is asked for; if the object was replaced just then, that is no mixture either."""
    source, proxy = blob()
    opened = native(source)
    proxy.before_fault(lambda: replace(request, source, bytes(len(data))))
    proxy.order(fault)
    with pytest.raises(uf.PageError) as caught:
        read(opened, 0, PAGE)
    assert isinstance(caught.value.cause, uf.StoreError)
    assert proxy.spoilt == [fault]
    assert len(proxy.requests) >= 3


def test_the_deadline_holds_while_the_server_is_mute(blob):
    """A read ends when it has to, whatever the attempts."""
    import time

    source, proxy = blob(deadline=3, attempts=1000)
    opened = native(source)
    proxy.order_always(Fault("mute"))
    start = time.monotonic()
    with pytest.raises(uf.PageError) as caught:
        read(opened, 0, PAGE)
    assert time.monotonic() - start < 10
    assert caught.value.cause.transient
    proxy.order_always(None)


def test_a_mute_server_is_noticed_when_it_is_opened(blob):
    """As OSError: no region is made."""
    source, proxy = blob(deadline=0.5)
    proxy.order_always(Fault("mute", methods=("GET", "HEAD")))
    with pytest.raises(uf.StoreError):
        native(source)
    proxy.order_always(None)


@pytest.mark.parametrize("fault", [Fault("reset"), Fault("close", keep=7), Fault("stall", keep=7)], ids=lambda fault: fault.kind)
def test_redis_that_stumbles_is_asked_again(redis_proxy, data, fault):
    """Over a new connection."""
    pytest.importorskip("redis")
    url = f"redis://127.0.0.1:{redis_proxy.port}/0/stumbles"
    source = uf.Redis.put(url, data, deadline=8)
    opened = native(source)
    redis_proxy.order(fault)
    assert read(opened, 1000, 90_000) == data[1000:90_000]
    assert redis_proxy.spoilt == [fault]


def test_redis_that_is_gone_is_an_error(redis_proxy, data):
    """With the connection's error as its cause's reason, within the deadline."""
    pytest.importorskip("redis")
    source = uf.Redis.put(f"redis://127.0.0.1:{redis_proxy.port}/0/gone", data, deadline=6)
    opened = native(source)
    redis_proxy.close()
    with pytest.raises(uf.PageError) as caught:
        read(opened, 0, PAGE)
    assert caught.value.cause.transient


@pytest.mark.parametrize("kind", [TimeoutError, ConnectionResetError])
def test_a_store_of_ones_own_is_tried_again_and_its_exception_is_kept(kind):
    """What Python raises of a network may pass; what was raised last is the cause, and not taken for our own deadline."""
    tries = []

    class Own(RemoteSource):
        def look(self):
            return Version(1000, "one")

        def get(self, version, start, stop):
            tries.append(start)
            if len(tries) < 3 or start:
                raise kind("of the socket")
            return b"o" * (stop - start)

    opened = native(Own("own:object", attempts=3, deadline=20))
    room = bytearray(10)
    opened.read_into(0, room)
    assert (room, tries) == (b"o" * 10, [0, 0, 0])
    with pytest.raises(uf.PageError) as failed:
        opened.read_into(5, room)
    error = failed.value.__cause__
    assert isinstance(error, uf.StoreError), repr(error)
    assert error.transient
    assert isinstance(error.__cause__, kind), repr(error.__cause__)
    assert tries[3:] == [5, 5, 5]
