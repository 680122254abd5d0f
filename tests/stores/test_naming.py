"""map() and load() take URLs: raw bytes and images, told apart by their first bytes."""

import io

import numpy as np
import pytest

import userfault as uf
from userfault.sources import Fsspec, remote_of, source_of
from userfault.sources.remote import masked, without_secrets

PAGE = 4096


@pytest.fixture
def image(tmp_path):
    """The bytes of an image of 8 MiB in frames of 64 KiB, and what is in it."""
    numbers = np.random.default_rng(3).integers(0, 1 << 18, 1 << 21, dtype="i4")
    (tmp_path / "plain").write_bytes(numbers.tobytes())
    uf.image.pack(tmp_path / "plain", tmp_path / "packed")
    return (tmp_path / "packed").read_bytes(), numbers


@pytest.mark.kernel
def test_a_url_of_the_web_maps(child, web_server, data):
    """http:// without more ado."""
    pytest.importorskip("obstore")
    (web_server.root / "by-name.bin").write_bytes(data)
    code = "import sys; import userfault as uf; sys.stdout.write(bytes(memoryview(uf.map(sys.argv[1]))).hex())"
    assert child(code, args=[f"http://127.0.0.1:{web_server.port}/by-name.bin"]).check().stdout == data.hex()


@pytest.mark.kernel
def test_an_image_by_url_fetches_what_is_touched(child, web_server, web_proxy, image):
    """Its length, its first bytes, its table, and the frames of the touched pages: three ranges for one element."""
    pytest.importorskip("obstore")
    packed, numbers = image
    (web_server.root / "image.zst").write_bytes(packed)
    code = """
        import sys
        import userfault as uf
        region = uf.map(sys.argv[1])
        print(region.numpy("i4")[1_000_000])
        """
    said = child(code, args=[f"http://127.0.0.1:{web_proxy.port}/image.zst"]).check().stdout
    assert int(said) == numbers[1_000_000]
    asked = [wanted for method, wanted in web_proxy.requests if method == "GET"]
    assert len(asked) == 3, asked
    assert len(packed) > 3 << 20, "an image of three chunks would prove nothing"


@pytest.mark.kernel
def test_an_image_over_a_blob_opens_with_two_reads(child, web_server, web_proxy, image):
    """The first bytes and the table, without a cache too; then a read for each frame."""
    pytest.importorskip("obstore")
    packed, numbers = image
    (web_server.root / "plain-image.zst").write_bytes(packed)
    code = """
        import sys
        import userfault as uf
        region = uf.map(uf.Image(uf.Blob(sys.argv[1])))
        print(region.unit)
        print(region.numpy("i4")[1_000_000])
        """
    said = child(code, args=[f"http://127.0.0.1:{web_proxy.port}/plain-image.zst"]).check().stdout
    assert said.split() == ["65536", str(numbers[1_000_000])]
    asked = [wanted for method, wanted in web_proxy.requests if method == "GET"]
    assert asked[0] == "bytes=0-3"
    assert len(asked) == 3


@pytest.mark.kernel
def test_an_array_loads_by_url(child, web_server):
    """uf.load, header and all."""
    pytest.importorskip("obstore")
    numbers = np.arange(300_000, dtype="f4").reshape(300, 1000)
    file = io.BytesIO()
    np.save(file, numbers)
    (web_server.root / "array.npy").write_bytes(file.getvalue())
    code = """
        import sys
        import userfault as uf
        array = uf.load(sys.argv[1])
        print(array.shape, array[123, 45], array.sum(dtype="f8"))
        """
    said = child(code, args=[f"http://127.0.0.1:{web_server.port}/array.npy"]).check().stdout
    assert said == f"(300, 1000) {numbers[123, 45]} {numbers.sum(dtype='f8')}\n"


@pytest.mark.kernel
def test_redis_maps_by_url(child, redis_server, data):
    """redis://host/0/key."""
    pytest.importorskip("redis")
    url = f"redis://127.0.0.1:{redis_server.port}/0/by-name"
    uf.Redis.put(url, data)
    code = "import sys; import userfault as uf; sys.stdout.write(bytes(memoryview(uf.map(sys.argv[1]))).hex())"
    assert child(code, args=[url]).check().stdout == data.hex()


def test_a_file_url_is_a_path(tmp_path):
    """Percent signs and all."""
    path = tmp_path / "a b"
    path.write_bytes(b"bytes")
    assert source_of(f"file://{tmp_path}/a%20b") == uf.File(str(path))


def test_a_url_with_a_query_goes_to_fsspec():
    """A signed address, say: obstore would not send it."""
    pytest.importorskip("aiohttp")
    source = remote_of("https://host.invalid/path?signature=1")
    assert isinstance(source, Fsspec)
    assert source.path.endswith("?signature=1")


def test_a_scheme_that_nobody_knows_is_refused():
    """With its name."""
    pytest.importorskip("fsspec")
    with pytest.raises(uf.OptionError, match="nonsense"):
        source_of("nonsense://host/path")


@pytest.mark.parametrize("scheme", ["http", "redis", "s3", "file"])
def test_a_url_with_no_server_in_it_is_refused(scheme):
    """By its name, without the password."""
    pytest.importorskip("fsspec")
    with pytest.raises(uf.OptionError, match=r"'(file://|\w+://…@)\[bad/x' is no URL"):
        source_of(f"{scheme}://{'' if scheme == 'file' else 'me:secret@'}[bad/x")


@pytest.mark.filterwarnings("ignore:Exception ignored in.*FTPFileSystem")  # which never had a connection to close
@pytest.mark.parametrize(("url", "error"), [("ftp://me:secret@127.0.0.1:9/x", uf.StoreError), ("ftp:///x", uf.OptionError)])
def test_a_filesystem_that_connects_when_it_is_made_names_its_url(url, error):
    """Where there is no server, or none was given."""
    pytest.importorskip("fsspec")
    with pytest.raises(error, match=r"ftp://(…@127.0.0.1:9)?/x"):
        source_of(url)


@pytest.mark.kernel
def test_a_file_in_memory_is_not_in_the_pager(child):
    """The error says so, and what does read it."""
    pytest.importorskip("fsspec")
    code = """
        import fsspec
        import userfault as uf
        fsspec.filesystem("memory").pipe("/a", b"x" * 9000)
        try:
            uf.map("memory://a", delivery="process").read(0, 4)
        except uf.PageError as error:
            print(error)
        """
    said = child(code).check().stdout
    assert "StoreMissing: memory://a" in said
    assert "belongs to one process" in said
    assert "delivery='thread'" in said


def test_an_object_that_is_not_there_is_file_not_found(web_server):
    """As a path that is not there is."""
    pytest.importorskip("obstore")
    with pytest.raises(FileNotFoundError):
        uf.map(f"http://127.0.0.1:{web_server.port}/nowhere")


def test_a_very_short_object_is_no_image(web_server):
    """Nor is an empty one."""
    pytest.importorskip("obstore")
    for name, what in (("empty", b""), ("three", b"\x28\xb5\x2f")):
        (web_server.root / name).write_bytes(what)
        assert isinstance(source_of(f"http://127.0.0.1:{web_server.port}/{name}"), uf.Cached)


def test_a_memory_file_of_fsspec_opens_by_url(data):
    """Whatever fsspec knows."""
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe("/by-name", data)
    with uf.Region(source_of("memory://by-name"), eager=True) as region:
        assert bytes(memoryview(region)) == data


def test_a_file_of_fsspec_that_changed_is_no_mixture(tmp_path):
    """The version is asked for after each read."""
    pytest.importorskip("fsspec")
    path = tmp_path / "file"
    path.write_bytes(bytes(10_000))
    source = Fsspec(f"local://{path}")
    opened = uf.sources.native(source)
    opened.read_into(0, bytearray(10))
    path.write_bytes(b"x" * 10_000)
    with pytest.raises(uf.PageError) as caught:
        opened.read_into(0, bytearray(10))
    assert isinstance(caught.value.cause, uf.StoreChanged)


@pytest.mark.parametrize("rest", ["#x", "?x=1", "#x?y"])
def test_a_file_url_with_more_than_a_path_is_refused(tmp_path, rest):
    """It would be another file."""
    (tmp_path / "file").write_bytes(b"bytes")
    with pytest.raises(uf.OptionError, match="%23"):
        source_of(f"file://{tmp_path}/file{rest}")


def test_a_file_url_of_another_machine_is_refused(tmp_path):
    """So is one that lacks a slash."""
    (tmp_path / "file").write_bytes(b"bytes")
    assert source_of(f"file://localhost{tmp_path}/file") == uf.File(str(tmp_path / "file"))
    with pytest.raises(uf.OptionError, match="file:///"):
        source_of(f"file:/{tmp_path}/file")


@pytest.mark.parametrize(
    "path", ["a%2Fb", "a%2fb", "folder/", "%E4", "a%25%2fb", "a%2Bb", "/a", "//a", "a//b", "a/./b", "../a", "a%0Ab", "a%3Db"]
)
def test_a_url_of_the_web_that_obstore_would_change_goes_to_fsspec(path):
    """To the server it is another page."""
    pytest.importorskip("aiohttp")
    pytest.importorskip("obstore")
    url = f"https://host.invalid/{path}"
    assert isinstance(remote_of(url), Fsspec)
    with pytest.raises(uf.OptionError, match="Fsspec"):
        uf.Blob(url)


@pytest.mark.parametrize("key", ["folder/", "/a", "a//b", "a/../b"])
def test_a_key_that_obstore_would_change_is_refused(key):
    """It would be another object."""
    pytest.importorskip("obstore")
    with pytest.raises(uf.OptionError, match="names no object"):
        uf.Blob(f"s3://bucket/{key}", region="eu-central-1")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@host:1/0/k", "redis://…@host:1/0/k"),
        ("redis://:p@ss@host:1/0/k", "redis://…@host:1/0/k"),
        ("redis://:sec/ret@host:1/0/k", "redis://…@host:1/0/k"),
        ("redis://me:12/3?4@host/0/k", "redis://…@host/0/k"),
        ("redis://me@mail.com:secret@host:1/0/k", "redis://…@host:1/0/k"),
        ("ftp://me:2024/secret@host/x", "ftp://…@host/x"),
        ("sftp://me:sec\nret@host/x", "sftp://…@host/x"),
        ("https://TOKEN@host/x", "https://…@host/x"),
        ("zip://a::sftp://me:secret@host/b.zip", "zip://a::sftp://…@host/b.zip"),
        ("https://me:secret@host/x?sig=1", "https://…@host/x?…"),
        ("https://:sec/ret@host/x", "https://…@host/x"),
        ("https://host/x#token=1", "https://host/x#…"),
        ("https://host:8080/x@2.png", "https://host:8080/x@2.png"),
        ("https://host:8080/?to=a@b", "https://host:8080/?…"),
        ("https://host/a:b@c", "https://host/a:b@c"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
    ],
)
def test_a_password_is_not_shown(url, shown):
    """Nor part of one that has an @ or a / in it; ports and paths are."""
    assert without_secrets(url) == shown


def test_a_password_in_a_text_is_not_shown():
    """Whatever stands around the URL."""
    said = "HEAD http://me:secret@host:80/x?sig=secret in 2ms (<a>ftp://a:secret@b/c</a>), s3://bucket/a@b"
    assert masked(said) == "HEAD http://…@host:80/x?… in 2ms (<a>ftp://…@b/c</a>), s3://bucket/a@b"


def test_urls_that_look_alike_are_told_apart():
    """By what is not shown of them."""
    pytest.importorskip("fsspec")
    places = {Fsspec(f"memory://{password}@host/x").place() for password in ("me:one", "me:two")}
    assert len(places) == 2
