"""Objects of each kind of store by their URLs: how they are found, what is fetched, and what is said of those that cannot be had.

Faults on the way are in test_faults.py, the rules of all sources in test_contracts.py.
"""

import hashlib
import json
import threading

import numpy as np
import pytest
from support import azure
from support.clouds import service_account

import userfault as uf
from userfault.sources import native
from userfault.testing import Fault

obstore = pytest.importorskip("obstore")

SPELLINGS = [
    *("az://container", "azure://container", "adl://container", "abfs://container", "abfss://container"),
    *("abfs://container@account.dfs.core.windows.net", "abfss://container@account.dfs.core.windows.net"),
]
only_azure = pytest.mark.parametrize("cloud", ["az"], indirect=True)
MAP = """
    import hashlib, sys
    import userfault as uf
    region = uf.map(sys.argv[1], delivery=sys.argv[2])
    print(region)
    print(hashlib.sha256(memoryview(region)).hexdigest())
    """


@pytest.fixture
def environment(monkeypatch):
    """``environment(cloud)``: this process finds its server."""

    def tell(cloud):
        for name, value in cloud.environment().items():
            monkeypatch.setenv(name, value)

    return tell


@pytest.mark.kernel
@pytest.mark.parametrize("delivery", ["thread", "process"])
def test_a_url_maps_with_the_environment_s_credentials(child, cloud, data, delivery):
    """As every other program of that store finds them; a pager finds them there too."""
    url = cloud.url(cloud.put(data))
    said = child(MAP, args=[url, delivery], env=cloud.environment()).check().stdout
    assert f"Cached(Blob({url!r}))" in said
    assert said.splitlines()[-1] == hashlib.sha256(data).hexdigest()


@pytest.mark.kernel
def test_an_image_fetches_what_is_touched(child, cloud, cloud_proxy, tmp_path):
    """Its length, its first bytes, its table, and the frame of the touched page."""
    numbers = np.random.default_rng(3).integers(0, 1 << 18, 1 << 20, dtype="i4")
    (tmp_path / "plain").write_bytes(numbers.tobytes())
    uf.image.pack(tmp_path / "plain", tmp_path / "packed")
    name = cloud.put((tmp_path / "packed").read_bytes())
    code = """
        import json, sys
        import userfault as uf
        region = uf.map(uf.Image(uf.Blob(sys.argv[1], **json.loads(sys.argv[2]))))
        print(region.unit, region.numpy("i4")[500_000])
        """
    options = json.dumps(cloud.options(cloud_proxy.port))
    assert child(code, args=[cloud.url(name), options]).check().stdout == f"65536 {numbers[500_000]}\n"
    asked = [wanted for method, wanted in cloud_proxy.requests if method == "GET"]
    assert asked[0] == "bytes=0-3"
    assert len(asked) == 3


def test_threads_share_a_request_and_neighbours_come_with_one(cloud, cloud_proxy, data):
    """Single flight, and one range for chunks that lie side by side."""
    cached = uf.Cached(cloud.blob(cloud.put(data), port=cloud_proxy.port), chunk="16KiB", memory="1MiB")
    opened = native(cached)
    rooms = [bytearray(100_000) for _ in range(6)]
    threads = [threading.Thread(target=opened.read_into, args=(1000, room)) for room in rooms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert rooms == [data[1000:101_000]] * 6
    assert [wanted for method, wanted in cloud_proxy.requests if method == "GET"] == ["bytes=0-114687"]


def test_an_object_that_is_not_there_is_missing(cloud):
    """FileNotFoundError, in one line."""
    with pytest.raises(uf.StoreMissing, match="nowhere") as caught:
        native(cloud.blob("nowhere"))
    assert isinstance(caught.value, FileNotFoundError)
    assert "\n" not in str(caught.value)


def test_a_bucket_that_is_not_there_is_missing(cloud):
    """Likewise."""
    with pytest.raises(uf.StoreMissing):
        native(uf.Blob(f"{cloud.kind}://elsewhere/object", **cloud.options()))


def test_wrong_credentials_are_an_error_at_once(cloud, cloud_proxy, data):
    """Not a missing object, and not repeated. What the server says is in it, in one line."""
    name = cloud.put(data)
    known = cloud.blob(name).version
    with cloud.only_friends(cloud_proxy) as options:
        with pytest.raises(uf.StoreError, match=r"40[13]") as caught:
            native(uf.Blob(cloud.url(name), **options))
        source = uf.Blob(cloud.url(name), **options)
        source._found = known
        with pytest.raises(uf.PageError, match=r"40[13]") as read:
            native(source).read_into(0, bytearray(10))
    for error in (caught.value, read.value.cause):
        assert not isinstance(error, uf.StoreMissing)
        assert not error.transient
        assert "\n" not in str(error)


def test_credentials_that_are_none_are_refused_when_the_source_is_made(cloud):
    """OptionError with obstore's reason."""
    wrong = {
        "s3": {"access_key_id": "a key without its secret"},
        "gs": {"service_account_key": "no JSON"},
        "az": {"account_name": "account", "account_key": "!"},
    }
    with pytest.raises(uf.OptionError, match=r"Secret|service account|Access Key"):
        uf.Blob(cloud.url("object"), **wrong[cloud.kind])


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("s3://bucket/object", {"metadata_endpoint": "http://127.0.0.1:1"}),
        ("gs://bucket/object", {}),
        ("az://container/object", {"account_name": "account", "msi_endpoint": "http://127.0.0.1:1/"}),
    ],
    ids=["s3", "gs", "az"],
)
def test_no_credentials_at_all_are_named_as_such(url, options, monkeypatch, tmp_path):
    """Otherwise one sees a request to an address that one never heard of: the machine's own, which has none here."""
    for name in ("GCE_METADATA_HOST", "GCE_METADATA_IP"):
        monkeypatch.setenv(name, "127.0.0.1:1")
    monkeypatch.setenv("HOME", str(tmp_path))  # where Google's own tools leave some
    with pytest.raises(uf.StoreError, match=r"no credentials.*skip_signature"):
        native(uf.Blob(url, attempts=1, deadline=5, retry_config={"max_retries": 0}, **options))


@only_azure
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_azure_has_many_names(cloud, data, spelling):
    """The account is in some of them."""
    options = cloud.options()
    if "@" in spelling:
        del options["account_name"]
    url = f"{spelling}/{cloud.put(data, 'many names')}"
    assert uf.Blob(url, **options).length == len(data)


@pytest.mark.parametrize("cloud", ["s3"], indirect=True)
def test_s3a_is_s3(cloud, data):
    """As other programs write it."""
    assert uf.Blob(cloud.url(cloud.put(data)).replace("s3:", "s3a:"), **cloud.options()).length == len(data)


@only_azure
def test_the_emulator_of_azure_is_found(cloud, data, monkeypatch):
    """By one option, at the address that its own variable names."""
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", f"http://127.0.0.1:{cloud.port}")
    account = {"account_name": azure.ACCOUNT, "account_key": azure.KEY}
    assert uf.Blob(cloud.url(cloud.put(data)), use_emulator=True, **account).length == len(data)


def test_a_store_made_of_the_environment_has_a_name(cloud, environment, data):
    """Its repr has none, and panics."""
    environment(cloud)
    kind = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}[cloud.kind]
    store = getattr(obstore.store, kind)(cloud.bucket, client_options={"allow_http": True})
    source = uf.Blob(store, cloud.put(data, "named"))
    assert source.url.startswith(f"{kind}(")
    assert source.url.endswith(f"={cloud.bucket!r})/named")
    assert source.identity


def test_the_environment_s_server_is_part_of_the_identity(cloud, cloud_proxy, environment, data, monkeypatch):
    """Two with the same names and versions are two places, whichever way they are named."""
    environment(cloud)
    name = cloud.put(data)
    identity = uf.Blob(cloud.url(name)).identity
    for variable, value in cloud.environment().items():
        monkeypatch.setenv(variable, value.replace(str(cloud.port), str(cloud_proxy.port)))
    assert uf.Blob(cloud.url(name)).identity != identity


def test_the_environment_s_account_is_part_of_the_identity(monkeypatch):
    """Containers of two accounts may have the same name."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", azure.KEY)
    places = set()
    for account in ("one", "two"):
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", account)
        places.add(uf.Blob("az://container/object").place())
    assert len(places) == 2


def test_a_service_account_s_server_is_part_of_the_identity(tmp_path, monkeypatch):
    """Given as text, as a file, or by the environment; the account itself is no part of it."""
    places = []
    for port in (1, 2):
        text = json.dumps(service_account(port))
        path = tmp_path / f"{port}.json"
        path.write_text(text)
        places.append(uf.Blob("gs://bucket/object", service_account_key=text).place())
        places.append(uf.Blob("gs://bucket/object", google_service_account=str(path)).place().replace(str(tmp_path), ""))
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(path))
        places.append(uf.Blob("gs://bucket/object").place())
        monkeypatch.delenv("GOOGLE_SERVICE_ACCOUNT")
    assert len(set(places)) == 2
    assert not any("private_key" in place for place in places)


def test_a_customer_s_key_is_no_part_of_the_identity():
    """It would be in the names of caches."""
    key = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I="
    assert key not in uf.Blob("az://container/object", account_name="account", encryption_key=key).place()


@only_azure
def test_a_shared_signature_is_shown_nowhere(cloud, cloud_proxy, data):
    """It is all that somebody needs to read."""
    name = cloud.put(data)
    source = cloud.blob(name, port=cloud_proxy.port, attempts=1)
    said = [repr(source), source.url, source.identity]
    for fault in (Fault("status", status=403), Fault("status", status=404), Fault("reset")):
        cloud_proxy.order_always(fault)
        with pytest.raises(uf.PageError) as caught:
            native(source).read_into(0, bytearray(10))
        said.append(str(caught.value))
    assert not any("secret" in text or "c2Vjcm" in text for text in said)


def test_what_a_server_says_at_length_is_cut(monkeypatch):
    """Some answer with a page."""

    def head(*given):
        raise obstore.exceptions.GenericError("word \n" * 9000)

    monkeypatch.setattr(obstore, "head", head)
    with pytest.raises(uf.StoreError) as caught:
        native(uf.Blob("http://host/object", attempts=1))
    assert len(str(caught.value)) < 800
    assert "\n" not in str(caught.value)
