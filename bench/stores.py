"""Reads of an object over the loopback interface: obstore itself, and a Blob, which reads through obstore.

Both fill the same buffer with the same bytes of one object behind nginx, in turn.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import userfault as uf


def why_not() -> str | None:
    """Why this cannot be played here; None: it can."""
    if not web_server():
        return "nginx is missing (apt install nginx-light)"
    try:
        import obstore
    except ModuleNotFoundError:
        return "obstore is missing (pip install 'userfault[objects]')"
    del obstore
    return None


def web_server() -> str | None:
    """Where nginx is."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def serve(data: bytes) -> str:
    """Have nginx serve these bytes until the process ends; their URL."""
    folder = Path(tempfile.mkdtemp(prefix="bench-stores-"))
    folder.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "object").write_bytes(data)
    (folder / "conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; sendfile on; keepalive_requests 1000000;\n"
        f"server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
    )
    server = subprocess.Popen([web_server() or "nginx", "-c", str(folder / "conf")], stdin=subprocess.DEVNULL)
    atexit.register(lambda: (os.kill(server.pid, signal.SIGKILL), server.wait(), shutil.rmtree(folder)))
    until = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return f"http://127.0.0.1:{port}/object"


def store(given: Any) -> Callable[[], dict[str, Any]]:
    """Units of an object, read one after the other."""
    import obstore
    from obstore.store import HTTPStore

    (unit,) = given.numbers
    data = os.urandom(given.count * unit)
    url = serve(data)
    theirs = HTTPStore.from_url(url.rpartition("/")[0], client_options={"allow_http": True})
    blob, buffer = uf.Blob(url), memoryview(bytearray(unit))
    assert blob.length == len(data)

    def obstore_itself(start: int) -> None:
        buffer[:] = obstore.get_range(theirs, "object", start=start, length=unit)

    def timed(read: Callable[[int], object]) -> float:
        seen, start = 0, time.perf_counter_ns()
        for place in range(0, len(data), unit):
            read(place)
        spent = time.perf_counter_ns() - start
        for place in (0, len(data) - unit):
            read(place)
            seen ^= zlib.crc32(buffer)
        assert seen == zlib.crc32(data[:unit]) ^ zlib.crc32(data[-unit:])
        return spent / given.count

    def play() -> dict[str, Any]:
        floor = timed(obstore_itself)
        return {"ns_per_call": timed(lambda place: blob.read_into(place, buffer)), "floor": floor, "calls": given.count, "sum": 0}

    return play
