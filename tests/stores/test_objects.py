"""Objects by obstore: which version is read, what is asked for, and what is refused."""

import os
import pickle

import pytest

import userfault as uf
from userfault.sources import native

obstore = pytest.importorskip("obstore")
PAGE = 4096


def read(opened, start, stop):
    room = bytearray(b"\xa5" * (stop - start))
    opened.read_into(start, room)
    return bytes(room)


def test_every_read_names_the_version(cloud, cloud_proxy, data):
    """A store refuses a read of another one itself, before a byte of it is sent."""
    seen = []
    source = cloud.blob(cloud.put(data), port=cloud_proxy.port)
    get = obstore.get
    try:
        obstore.get = lambda store, path, options: seen.append(options) or get(store, path, options=options)
        opened = native(source)
        assert read(opened, 0, 10) == data[:10]
    finally:
        obstore.get = get
    assert seen == [{"range": (0, 10), "if_match": source.version.tag}]
    assert cloud_proxy.requests == [("HEAD", ""), ("GET", "bytes=0-9")]


def test_a_pickled_source_reads_the_version_that_was_opened(cloud, data):
    """A pager that is started anew must not mix versions with the one before."""
    name = cloud.put(data)
    source = cloud.blob(name)
    kept = native(source)
    copy = pickle.loads(pickle.dumps(source))
    cloud.put(data[::-1], name)
    with pytest.raises(uf.PageError) as caught:
        read(native(copy), 0, 10)
    assert isinstance(caught.value.cause, uf.StoreChanged)
    assert native(pickle.loads(pickle.dumps(cloud.blob(name)))).length == kept.length


def test_an_object_that_is_opened_again_is_the_new_one(cloud, data):
    """After everybody closed it."""
    name = cloud.put(data)
    source = cloud.blob(name)
    assert read(native(source), 0, 10) == data[:10]
    cloud.put(data[::-1][:5000], name)
    opened = native(source)
    assert (opened.length, read(opened, 0, 10)) == (5000, data[::-1][:10])


def test_identities_differ_where_the_bytes_may(cloud, cloud_proxy, data):
    """Object, version and server; not the credentials."""
    name, other = cloud.put(data), cloud.put(data)
    secret = {"s3": "secret_access_key", "gs": "bearer_token", "az": "account_key"}[cloud.kind]
    identity = cloud.blob(name).identity
    stranger = cloud.blob(name, **{secret: "c2VjcmV0"})
    stranger._found = cloud.blob(name).version
    assert cloud.blob(name).identity == stranger.identity == identity
    assert cloud.blob(other).identity != identity
    assert cloud.blob(name, port=cloud_proxy.port).identity != identity
    cloud.put(data[::-1], name)
    assert cloud.blob(name).identity != identity
    assert not any(word in identity for word in ("c2VjcmV0", "secret", str(cloud.options().get(secret))))


def test_an_object_in_memory_is_known_by_nobody_else():
    """Two stores in memory may have the same names and versions."""
    store = obstore.store.MemoryStore()
    obstore.put(store, "a", b"bytes")
    assert uf.Blob(store, "a").identity is None


def test_two_stores_in_memory_do_not_share_a_cache(data):
    """Although both call theirs "a", version 0."""
    kept = []
    for what in (data, data[::-1]):
        store = obstore.store.MemoryStore()
        obstore.put(store, "a", what)
        kept.append(native(uf.Cached(uf.Blob(store, "a"))))
        assert read(kept[-1], 0, 100) == what[:100]


def test_an_answer_of_another_version_is_refused(data):
    """From a store that does not know conditions: what it says of its answer is looked at."""
    store = obstore.store.MemoryStore()
    obstore.put(store, "a", data)
    source = uf.Blob(store, "a")
    version = source.version
    weak = type(version)(version.length, "W/" + version.tag)
    with pytest.raises(uf.StoreChanged):
        source.get(weak, 0, 10)


def test_a_server_that_tells_no_version_is_refused(web_server, data, monkeypatch):
    """Unless one says that it does not matter."""
    from datetime import UTC, datetime

    head, url = obstore.head, f"http://127.0.0.1:{web_server.port}/plain"
    (web_server.root / "plain").write_bytes(data)
    nothing = {"e_tag": None, "last_modified": datetime.fromtimestamp(0, UTC)}
    monkeypatch.setattr(obstore, "head", lambda *given: {**head(*given), **nothing})
    with pytest.raises(uf.StoreError, match="unversioned=True"):
        native(uf.Blob(url))
    assert uf.Blob(url, unversioned=True).length == len(data)
    assert uf.Blob(url, unversioned=True).identity is None


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket",
        "s3:///key",
        "ftp://host/path",
        "https://host",
        "https://host/path?query",
        "https://me@host/path",
        "s3://bucket/key#part",
    ],
)
def test_a_url_that_names_no_object_is_refused(url):
    """With a word on how it should look, or what else to use."""
    with pytest.raises(uf.OptionError, match=r"should look like|Fsspec"):
        uf.Blob(url)


def test_options_that_do_not_fit_are_refused():
    """A path with a URL, a store without one, what is neither, times that make no sense."""
    store = obstore.store.MemoryStore()
    for arguments, options in [
        (("s3://bucket/key", "path"), {}),
        ((store,), {}),
        ((5,), {}),
        ((5, "a"), {}),
        ((store, "a"), {"region": "x"}),
        ((store, "a"), {"deadline": 0}),
        ((store, "a"), {"attempts": 0}),
    ]:
        with pytest.raises(uf.OptionError):
            uf.Blob(*arguments, **options)


@pytest.mark.parametrize(
    ("make", "extra"),
    [
        ("uf.Blob('s3://bucket/key')", "obstore.*userfault\\[objects\\]"),
        ("uf.map('https://host/path')", "obstore.*userfault\\[objects\\]"),
        ("uf.Redis('redis://localhost/0/key')", "redis.*userfault\\[redis\\]"),
        ("uf.Fsspec('memory://a')", "fsspec.*userfault\\[fsspec\\]"),
    ],
)
def test_a_library_that_is_missing_is_named_with_its_command(child, make, extra):
    """pip install 'userfault[...]', not a ModuleNotFoundError."""
    code = f"""
        import sys
        sys.modules.update(dict.fromkeys(["obstore", "redis", "fsspec"]))
        import userfault as uf
        try:
            {make}
        except uf.OptionError as error:
            print(error)
        """
    import re

    assert re.search(f"{extra}", child(code).check().stdout)


@pytest.mark.kernel
def test_an_upload_of_lazy_memory_may_touch_what_the_same_library_reads(child):
    """Its runtime is on the stack of the thread that touches, and refuses to be entered again: another thread reads."""
    code = """
        import obstore
        import userfault as uf
        store = obstore.store.MemoryStore()
        data = bytes(range(256)) * 4000
        obstore.put(store, "a", data)
        region = uf.map(uf.Blob(store, "a"))

        def pieces():
            view = memoryview(region)
            for start in range(0, len(view), 100_000):
                yield bytes(view[start : start + 100_000])

        obstore.put(store, "b", pieces())
        assert bytes(obstore.get(store, "b").bytes()) == data
        """
    child(code).check()


@pytest.mark.kernel
def test_ctrl_c_ends_a_wait_for_a_store(child, web_proxy, web_server, data, tmp_path):
    """At once, whatever the deadline."""
    from userfault.testing import Fault

    (web_server.root / "slow").write_bytes(data)
    web_proxy.order(Fault("mute"))
    code = """
        import os, signal, sys, threading, time
        import userfault as uf
        region = uf.map(uf.Blob(sys.argv[1], deadline="20s"))
        view = memoryview(region)
        pid = os.getpid()
        threading.Thread(target=lambda: (open(sys.argv[2]).read(), os.kill(pid, signal.SIGINT))).start()
        start = time.monotonic()
        try:
            print(bytes(view[:1]))
        except KeyboardInterrupt:
            print("interrupted", time.monotonic() - start < 10)
        os._exit(0)
        """
    reached = tmp_path / "reached"
    os.mkfifo(reached)
    web_proxy.before_fault(lambda: reached.write_text("it waits now"))
    result = child(code, args=[f"http://127.0.0.1:{web_proxy.port}/slow", reached], warnings=None)
    assert result.check().stdout == "interrupted True\n"


@pytest.mark.kernel
@pytest.mark.parametrize("delivery", ["thread", "signal"])
def test_the_timeout_of_the_region_holds_for_a_touch(child, web_proxy, web_server, data, delivery):
    """Although the source would wait longer, for the server or for another thread's read of the same chunk."""
    from userfault.testing import Fault

    (web_server.root / "slow").write_bytes(data)
    web_proxy.order_always(Fault("mute"))
    code = """
        import os, sys, threading, time
        import userfault as uf
        region = uf.map(uf.Cached(uf.Blob(sys.argv[1], deadline="15s")), delivery=sys.argv[2], unit=4096, timeout="500ms")
        view, said = memoryview(region), []
        def touch(page):
            start = time.monotonic()
            try:
                bytes(view[page * 4096 :][:1])
            except uf.PageError:
                said.append(time.monotonic() - start < 8)
        threads = [threading.Thread(target=touch, args=(page,)) for page in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        touch(0)
        print(said, flush=True)
        os._exit(0)
        """
    result = child(code, args=[f"http://127.0.0.1:{web_proxy.port}/slow", delivery])
    assert result.check().stdout == "[True, True, True]\n"


@pytest.mark.kernel
def test_other_threads_run_while_a_touch_waits_for_a_store(child, web_proxy, web_server, data):
    """The wait is without the interpreter's lock."""
    from userfault.testing import Fault

    (web_server.root / "slow").write_bytes(data)
    web_proxy.order(Fault("stall", keep=10))
    code = """
        import sys, threading
        import userfault as uf
        region = uf.map(uf.Blob(sys.argv[1], deadline="4s"))
        view, turns, ended = memoryview(region), 0, threading.Event()
        def count():
            global turns
            while not ended.is_set():
                turns += 1
        thread = threading.Thread(target=count)
        thread.start()
        before = turns
        print(view[0] == int(sys.argv[2]))
        print(turns - before > 1000)
        ended.set(); thread.join()
        """
    url = f"http://127.0.0.1:{web_proxy.port}/slow"
    assert child(code, args=[url, str(data[0])]).check().stdout == "True\nTrue\n"
