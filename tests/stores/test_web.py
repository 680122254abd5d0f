"""Files of web servers through fsspec: what an answer says of itself is compared with what was asked for."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import time
import traceback
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import userfault as uf
from userfault.sources import native, remote_of

pytest.importorskip("aiohttp")
fsspec = pytest.importorskip("fsspec")
PAGE = 4096
HEADERS = {"ETag": '"one"', "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}


class Server(ThreadingHTTPServer):
    """Serves ranges of `data`; `answer` are the headers of a GET beside Content-Length, where None takes one away."""

    daemon_threads = True

    def __init__(self, data):
        super().__init__(("127.0.0.1", 0), Handler)
        self.data = data
        self.answer = {}
        self.head = {}
        self.status = None
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.seen = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/file?signature=secret"

    def handle_error(self, request, address):
        """Clients hang up here on purpose."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(200, len(self.server.data), {**HEADERS, **self.server.head})

    def do_GET(self):
        self.server.goes_on.wait(30)
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        body = self.server.data[int(first) : int(last) + 1]
        said = {"Content-Range": f"bytes {first}-{last}/{len(self.server.data)}", **HEADERS, **self.server.answer}
        self.answer(self.server.status or 206, len(body), said)
        self.wfile.write(body)

    def answer(self, status, length, headers):
        self.server.seen.append((self.command, dict(self.headers)))
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(data):
    with Server(data) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def read(source, start, stop):
    room = bytearray(b"\xa5" * (stop - start))
    source.read_into(start, room)
    return bytes(room)


def failure(source):
    with pytest.raises(uf.PageError) as caught:
        read(source, PAGE, 2 * PAGE)
    return caught.value.cause


def test_an_answer_that_says_all_costs_one_request(server, data):
    """Range, length, ETag and date came with the bytes: nobody has to ask again."""
    opened = native(uf.Fsspec(server.url))
    assert read(opened, PAGE, 2 * PAGE) == data[PAGE : 2 * PAGE]
    assert [method for method, _ in server.seen] == ["HEAD", "GET"]


@pytest.mark.parametrize(
    "answer",
    [{"ETag": None}, {"Last-Modified": None}, {"Content-Range": f"bytes {PAGE}-{2 * PAGE - 1}/*"}],
    ids=["ETag", "date", "length"],
)
def test_what_an_answer_does_not_say_is_asked_for(server, data, answer):
    """And found to be the same, or another."""
    opened = native(uf.Fsspec(server.url))
    server.answer = answer
    assert read(opened, PAGE, 2 * PAGE) == data[PAGE : 2 * PAGE]
    assert [method for method, _ in server.seen] == ["HEAD", "GET", "HEAD"]
    server.head = {"ETag": '"two"'}
    assert isinstance(failure(opened), uf.StoreChanged)


@pytest.mark.parametrize(
    "answer",
    [
        {"ETag": '"two"'},
        {"Last-Modified": "Thu, 22 Oct 2015 07:28:00 GMT"},
        {"Content-Range": f"bytes {PAGE}-{2 * PAGE - 1}/9999"},
    ],
    ids=["ETag", "date", "length"],
)
def test_an_answer_of_another_version_is_none(server, answer):
    """Whatever the server says when it is asked again: it may be two servers."""
    opened = native(uf.Fsspec(server.url))
    server.answer = answer
    assert isinstance(failure(opened), uf.StoreChanged)
    assert [method for method, _ in server.seen] == ["HEAD", "GET"]


@pytest.mark.parametrize(
    "said", [f"bytes {PAGE + 1}-{2 * PAGE}/300001", "pages 1-2/3", None], ids=["another range", "other units", "nothing"]
)
def test_an_answer_of_another_range_is_none(server, said):
    """Though it has the right length; it may pass."""
    opened = native(uf.Fsspec(server.url, attempts=2))
    server.answer = {"Content-Range": said}
    cause = failure(opened)
    assert f"bytes {PAGE} to {2 * PAGE} were asked for" in str(cause)
    assert cause.transient
    assert [method for method, _ in server.seen] == ["HEAD", "GET", "GET"]


def test_a_file_that_is_shorter_now_has_changed(server):
    """The server says only that there is no such range."""
    opened = native(uf.Fsspec(server.url))
    server.data, server.status = server.data[:PAGE], 416
    assert isinstance(failure(opened), uf.StoreChanged)


def test_a_server_that_fails_altogether_is_not_a_missing_file(server, monkeypatch):
    """When it is opened: fsspec says of every failure that there is no file."""
    monkeypatch.setattr(Handler, "do_HEAD", lambda self: self.answer(503, 0, {}))
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.answer(503, 0, {}))
    with pytest.raises(uf.StoreError, match="503") as caught:
        native(uf.Fsspec(server.url, attempts=2))
    assert not isinstance(caught.value, uf.StoreMissing)
    assert caught.value.transient
    assert "secret" not in str(caught.value)


def test_what_the_caller_gave_to_fsspec_holds_for_ranges(server, data):
    """Headers of the filesystem and of its session, and its timeout rather than that of the deadline."""
    import aiohttp

    session = {"headers": {"Authorization": "Bearer of it"}, "timeout": aiohttp.ClientTimeout(sock_read=3)}
    source = uf.Fsspec(server.url, headers={"X-Mine": "1"}, client_kwargs=session, attempts=1, deadline="60s")
    opened = native(source)
    assert read(opened, PAGE, 2 * PAGE) == data[PAGE : 2 * PAGE]
    for _, headers in server.seen:
        assert headers["X-Mine"] == "1"
        assert headers["Authorization"] == "Bearer of it"
    server.goes_on.clear()
    began = time.monotonic()
    assert failure(opened).transient
    assert time.monotonic() - began < 12  # not a quarter of the deadline, 15 s
    server.goes_on.set()


def test_a_path_is_sent_as_it_is(server, data, monkeypatch):
    """To the server a%2Fb is not a/b."""
    asked = []
    head = Handler.do_HEAD
    monkeypatch.setattr(Handler, "do_HEAD", lambda self: asked.append(self.path) or head(self))
    for path in ("/a%2Fb", "/folder/"):
        assert native(uf.Fsspec(server.url.replace("/file?signature=secret", path))).length == len(data)
    assert asked == ["/a%2Fb", "/folder/"]


def with_password(server):
    """The URL of the same file for somebody; without a query, which alone would have it go to Fsspec."""
    return server.url.replace("http://", "http://me:hunter2@").partition("?")[0]


def test_a_user_and_password_of_a_url_are_sent(server, data):
    """In every request, and by nobody who would leave them out."""
    opened = native(remote_of(with_password(server)))
    assert read(opened, PAGE, 2 * PAGE) == data[PAGE : 2 * PAGE]
    assert [method for method, _ in server.seen] == ["HEAD", "GET"]
    assert {headers["Authorization"] for _, headers in server.seen} == {"Basic bWU6aHVudGVyMg=="}


def test_a_password_that_is_refused_is_not_shown(server, monkeypatch):
    """Nowhere in what a traceback shows."""
    monkeypatch.setattr(Handler, "do_HEAD", lambda self: self.answer(401, 0, {}))
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.answer(401, 0, {}))
    with pytest.raises(uf.StoreError, match="401") as caught:
        native(remote_of(with_password(server)))
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_obstore_does_not_show_a_password_either(server, monkeypatch):
    """Of a store that somebody made of such a URL."""
    store = pytest.importorskip("obstore").store.HTTPStore.from_url(
        with_password(server).removesuffix("/file"), client_options={"allow_http": True}
    )
    monkeypatch.setattr(Handler, "do_HEAD", lambda self: self.answer(401, 0, {}))
    source = uf.Blob(store, "file")
    with pytest.raises(uf.StoreError, match="401") as caught:
        native(source)
    assert "…@127.0.0.1" in str(caught.value)
    for text in ("".join(traceback.format_exception(caught.value)), repr(source), source.place()):
        assert "hunter2" not in text


def test_a_server_that_refuses_head_does_not_lack_the_file(server, data, monkeypatch):
    """Blob says who does without; Fsspec does."""
    pytest.importorskip("obstore")
    monkeypatch.setattr(Handler, "do_HEAD", lambda self: self.answer(405, 0, {}))
    url = server.url.partition("?")[0]
    with pytest.raises(uf.StoreError, match=r"refuses HEAD requests; Fsspec\(url\)") as caught:
        native(uf.Blob(url))
    assert not isinstance(caught.value, uf.StoreMissing)
    monkeypatch.setattr(Handler, "do_GET", whole_or_range)
    assert read(native(uf.Fsspec(url)), PAGE, 2 * PAGE) == data[PAGE : 2 * PAGE]


def whole_or_range(handler, ranges=Handler.do_GET):
    """A GET that looks is one without a range."""
    if "Range" in handler.headers:
        ranges(handler)
    else:
        handler.answer(200, len(handler.server.data), HEADERS)
        handler.wfile.write(handler.server.data)


def archive(path, content):
    with tarfile.open(path, "w") as file:
        member = tarfile.TarInfo("w.bin")
        member.size = len(content)
        file.addfile(member, io.BytesIO(content))
    return str(path)


def test_files_that_differ_in_an_option_only_are_not_shared(tmp_path):
    """Two archives with members of one name, age and length, kept in memory and in one directory."""
    kept = []
    for content in (b"A" * PAGE, b"B" * PAGE):
        source = uf.Fsspec("tar://w.bin", fo=archive(tmp_path / content[:1].decode(), content))
        kept.append(read(native(uf.Cached(source, directory=tmp_path / "kept")), 0, PAGE))
    assert kept == [b"A" * PAGE, b"B" * PAGE]


def test_an_option_that_has_no_form_of_its_own_has_no_identity(tmp_path):
    """An open file, say; another filesystem has one."""
    path = archive(tmp_path / "a.tar", b"A" * PAGE)
    with open(path, "rb") as file:
        assert uf.Fsspec("tar://w.bin", fo=file).identity is None
    named = [uf.Fsspec("tar://w.bin", fo=path, fs=fsspec.filesystem("local")).identity for _ in range(2)]
    assert named[0] == named[1] != None  # noqa: E711


def test_an_option_in_memory_is_of_this_process(tmp_path):
    """Another process has another file of that name there."""
    with open(archive(tmp_path / "a.tar", b"A" * PAGE), "rb") as file:
        fsspec.filesystem("memory").pipe("/a.tar", file.read())
    assert f"process {os.getpid()}" in uf.Fsspec("tar://w.bin", fo="/a.tar", target_protocol="memory").identity
    assert f"process {os.getpid()}" in uf.Fsspec("tar://w.bin::memory://a.tar").identity
    assert "process" not in uf.Fsspec("tar://w.bin", fo=str(tmp_path / "a.tar")).identity


def test_a_member_of_a_zip_file_is_read_once_it_may_have_no_version(tmp_path):
    """The error says how; no URL can."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("w.bin", b"A" * PAGE)
    url = f"zip://w.bin::file://{tmp_path}/a.zip"
    with pytest.raises(uf.StoreError, match=r"Fsspec\(url, unversioned=True\)"):
        native(uf.Fsspec(url))
    assert read(native(uf.Fsspec(url, unversioned=True)), 0, PAGE) == b"A" * PAGE
