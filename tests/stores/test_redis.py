"""Redis and Valkey: chunks under keys, one version at a time."""

import threading
import time

import pytest

import userfault as uf
from userfault.sources import native

redis = pytest.importorskip("redis")


@pytest.fixture
def url(redis_server, request):
    return f"redis://127.0.0.1:{redis_server.port}/3/{request.node.name}"


@pytest.fixture
def client(redis_server):
    with redis.Redis(port=redis_server.port, db=3) as client:
        yield client


def read(opened, start, stop):
    room = bytearray(b"\xa5" * (stop - start))
    opened.read_into(start, room)
    return bytes(room)


def test_keys_are_as_documented(url, client, data):
    """Another program may write them: a hash, and a value for each chunk."""
    uf.Redis.put(url, data, chunk="64KiB")
    key = url.rpartition("/")[2]
    about = client.hgetall(key)
    assert (int(about[b"length"]), int(about[b"chunk"])) == (len(data), 65_536)
    version = about[b"version"].decode()
    values = [client.get(f"{{{key}}}:{version}:{number}") for number in range(5)]
    assert b"".join(values) == data


def test_a_put_that_fails_leaves_nothing(url, client, data, monkeypatch):
    """A server that is full is not to keep chunks that nobody finds."""
    name, put = url.rpartition("/")[2], redis.Redis.set
    left = iter(range(3))

    def set_few(*arguments, **options):
        if next(left, None) is None:
            raise redis.exceptions.OutOfMemoryError("full")
        return put(*arguments, **options)

    monkeypatch.setattr(redis.Redis, "set", set_few)
    with pytest.raises(uf.StoreError, match="full"):
        uf.Redis.put(url, data, chunk="64KiB")
    assert client.keys(f"*{name}*") == []


def test_a_missing_value_is_an_error(url, client, data):
    """The server may have evicted it: never zeros. The others are there."""
    opened = native(uf.Redis.put(url, data, chunk=10_000))
    key = url.rpartition("/")[2]
    client.delete(f"{{{key}}}:{client.hget(key, 'version').decode()}:1")
    assert read(opened, 0, 10_000) == data[:10_000]
    assert read(opened, 20_000, 30_000) == data[20_000:30_000]
    with pytest.raises(uf.PageError, match="chunk 1 is missing or short") as caught:
        read(opened, 9_999, 20_001)
    assert isinstance(caught.value.cause, uf.StoreError)


def test_a_short_value_is_an_error(url, client, data):
    """Whoever wrote it."""
    opened = native(uf.Redis.put(url, data, chunk=10_000))
    key = url.rpartition("/")[2]
    client.set(f"{{{key}}}:{client.hget(key, 'version').decode()}:1", data[10_000:19_999])
    assert read(opened, 10_000, 19_999) == data[10_000:19_999]
    with pytest.raises(uf.PageError, match="chunk 1 is missing or short"):
        read(opened, 10_000, 20_000)


def test_bytes_that_were_replaced_are_no_mixture(url, data):
    """Who opened the old ones hears of it; who opens it now reads the new ones."""
    opened = native(uf.Redis.put(url, data))
    assert read(opened, 0, 10) == data[:10]
    uf.Redis.put(url, data[::-1])
    with pytest.raises(uf.PageError) as caught:
        read(opened, 0, 10)
    assert isinstance(caught.value.cause, uf.StoreChanged)
    assert read(native(uf.Redis(url)), 0, 10) == data[::-1][:10]


def test_replaced_values_are_gone(url, client, data):
    """Nothing of an old version stays in the server."""
    uf.Redis.put(url, data, chunk=1000)
    uf.Redis.put(url, data[:5000], chunk=1000)
    key = url.rpartition("/")[2]
    assert len(client.keys(f"*{key}*")) == 1 + 5


def test_bytes_may_expire(url, client, data):
    """All keys of it together."""
    uf.Redis.put(url, data, expire=1000)
    keys = client.keys(f"*{url.rpartition('/')[2]}*")
    assert keys
    assert all(900_000 < client.pttl(key) <= 1_000_000 for key in keys)


def test_no_bytes_are_bytes(url):
    """An empty object is one."""
    assert native(uf.Redis.put(url, b"")).length == 0


def test_an_array_with_gaps_is_stored_row_by_row(url):
    """As numpy would save it; also one of numbers that views of memory do not know."""
    numpy = pytest.importorskip("numpy")
    numbers = numpy.arange(600, dtype="i4").reshape(20, 30)
    for array in (numbers[::2], numbers.T, numbers[:, 3:5], numbers.astype(">i4"), numbers[:0]):
        opened = native(uf.Redis.put(url, array, chunk=100))
        assert opened.length == array.nbytes
        assert read(opened, 0, array.nbytes) == array.tobytes()


def test_a_key_that_is_not_there_is_missing(url):
    """FileNotFoundError, as for a file."""
    with pytest.raises(FileNotFoundError, match="there is no key"):
        uf.map(url)


@pytest.mark.parametrize("kind", ["string", "hash"])
def test_a_key_of_somebody_else_is_refused(url, client, kind):
    """Its bytes are not taken for ours."""
    key = url.rpartition("/")[2]
    client.set(key, "text") if kind == "string" else client.hset(key, "field", "text")
    with pytest.raises(uf.StoreError):
        native(uf.Redis(url))


@pytest.mark.parametrize(
    "url",
    ["redis://localhost", "redis://localhost/0", "redis://localhost/key", "http://localhost/0/key", "redis://localhost/0/key#1"],
)
def test_a_url_without_a_key_is_refused(url):
    """With a word on how it should look."""
    with pytest.raises(uf.OptionError, match="redis://host:6379/0/KEY"):
        uf.Redis(url)


def test_a_put_over_a_key_of_somebody_else_leaves_it_alone(url, client, data):
    """Refused before anything is stored."""
    key = url.rpartition("/")[2]
    client.hset(key, mapping={"name": "ann", "mail": "a@b"})
    with pytest.raises(uf.StoreError, match="something else"):
        uf.Redis.put(url, data)
    assert client.hgetall(key) == {b"name": b"ann", b"mail": b"a@b"}
    assert client.keys(f"*{key}*") == [key.encode()]


def test_a_put_whose_last_step_fails_leaves_nothing(url, client, data):
    """A user who may store values, and no hash."""
    name = url.rpartition("/")[2]
    client.acl_setuser("half", enabled=True, passwords=["+pass"], keys=["*"], categories=["+@all"], commands=["-hset"])
    with pytest.raises(uf.StoreError, match="permission"):
        uf.Redis.put(url.replace("//", "//half:pass@"), data, chunk="64KiB")
    assert client.keys(f"*{name}*") == []


def test_puts_at_a_time_leave_the_chunks_of_one(url, client, data):
    """Each deletes what it replaced, not what it saw before."""

    def put():
        for _ in range(10):
            uf.Redis.put(url, data, chunk="64KiB")

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(client.keys(f"*{url.rpartition('/')[2]}*")) == 1 + 5
    assert read(native(uf.Redis(url)), 0, len(data)) == data


@pytest.mark.parametrize("expire", [0, -1, float("nan"), float("inf"), "soon", 0.0001])
def test_a_time_to_expire_that_is_none_is_refused(url, client, data, expire):
    """Before anything is stored."""
    with pytest.raises(uf.OptionError, match="expire"):
        uf.Redis.put(url, data, expire=expire)
    assert client.keys(f"*{url.rpartition('/')[2]}*") == []


def test_a_put_that_is_answered_by_nobody_loses_nothing(url, client, data, monkeypatch):
    """The exchange has been done, and the connection breaks before the answer: the library takes that for a conflict."""
    uf.Redis.put(url, data, chunk="64KiB")
    execute = redis.client.Pipeline.execute
    lost = iter(range(1))

    def execute_and_lose(pipeline, *arguments, **options):
        answer = execute(pipeline, *arguments, **options)
        if pipeline.transaction and next(lost, None) is not None:
            try:
                raise redis.ConnectionError("the connection broke")
            except redis.ConnectionError:
                raise redis.WatchError("perhaps") from None
        return answer

    monkeypatch.setattr(redis.client.Pipeline, "execute", execute_and_lose)
    uf.Redis.put(url, data[::-1], chunk="64KiB")
    assert next(lost, None) is None
    assert read(native(uf.Redis(url)), 0, len(data)) == data[::-1]
    assert len(client.keys(f"*{url.rpartition('/')[2]}*")) == 1 + 5


def test_a_put_whose_exchange_never_arrives_ends(url, client, data, monkeypatch):
    """With the reason, not with another try for ever; what was there is there."""
    uf.Redis.put(url, data, chunk="64KiB")

    def lose(pipeline, *arguments, **options):
        try:
            raise redis.TimeoutError("no answer")
        except redis.TimeoutError:
            raise redis.WatchError("perhaps") from None

    with monkeypatch.context() as patched:
        patched.setattr(redis.client.Pipeline, "execute", lose)
        with pytest.raises(uf.StoreError, match="no answer") as failed:
            uf.Redis.put(url, data[::-1], chunk="64KiB")
    assert failed.value.transient
    assert read(native(uf.Redis(url)), 0, len(data)) == data


def test_a_hash_with_more_than_ours_is_left_alone(url, client, data):
    """It is somebody else's."""
    key = url.rpartition("/")[2]
    client.hset(key, mapping={"length": 1, "chunk": 1, "version": "v", "more": "1"})
    with pytest.raises(uf.StoreError, match="something else"):
        uf.Redis.put(url, data)
    assert client.hget(key, "more") == b"1"


def test_bytes_that_take_long_to_store_expire_together(url, client, data, monkeypatch):
    """Their time begins when the last is there."""
    put = redis.Redis.set

    def put_slowly(*arguments, **options):
        time.sleep(0.2)
        return put(*arguments, **options)

    monkeypatch.setattr(redis.Redis, "set", put_slowly)
    uf.Redis.put(url, data, chunk="64KiB", expire="10s")
    with client.pipeline(transaction=True) as together:  # all at one moment
        for key in client.keys(f"*{url.rpartition('/')[2]}*"):
            together.pttl(key)
        left = together.execute()
    assert max(left) - min(left) < 150, left
