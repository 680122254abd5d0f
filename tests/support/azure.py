"""A stand-in for Azure's blob storage, whose emulator wants Node: python azure.py PORT serves until it is killed.

Written after the REST reference, not after a client: it makes, reads, and deletes blobs of one container, in memory. What the
tests are about is as strict as there: shared keys are computed anew, If-Match holds, ETags change with each write, a range
that is not there is 416, and errors are XML of two lines.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

ACCOUNT = "account"
KEY = base64.b64encode(b"the key of the account").decode()
CONTAINER = "container"
#: A shared access signature that is good for everything. It is not checked how it came about.
SAS = "sv=2023-11-03&sp=r&sig=c2VjcmV0LXNpZ25hdHVyZQ%3D%3D"

#: The lines of what is signed, between the method and the headers that begin with x-ms-.
_SIGNED = (
    *("content-encoding", "content-language", "content-length", "content-md5", "content-type", "date"),
    *("if-modified-since", "if-match", "if-none-match", "if-unmodified-since", "range"),
)


class Refused(Exception):
    """An answer that is an error: its status, and Azure's code for it."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_one_request(self) -> None:
        """Whatever the method: see `HTTPRequestHandler`."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        try:
            self._let_in()
            self._serve(body)
        except Refused as refused:
            status, code = refused.args
            text = f"<Error><Code>{code}</Code><Message>No.\nTime:now</Message></Error>"
            text = f'\ufeff<?xml version="1.0" encoding="utf-8"?>\n{text}'  # byte order mark, lines and all, as there
            self._answer(status, text.encode(), {"x-ms-error-code": code, "Content-Type": "application/xml"})

    def _let_in(self) -> None:
        if dict(parse_qsl(SAS)).items() <= dict(parse_qsl(urlsplit(self.path).query)).items():
            return
        given = self.headers.get("Authorization", "")
        if given != f"SharedKey {ACCOUNT}:{self._signature()}":
            raise Refused(403, "AuthenticationFailed")

    def _signature(self) -> str:
        lines = [self.headers.get(name, "") for name in _SIGNED]
        lines[2] = "" if lines[2] == "0" else lines[2]
        own = sorted((name.lower(), value.strip()) for name, value in self.headers.items() if name.lower().startswith("x-ms-"))
        parts = urlsplit(self.path)
        asked = sorted((name.lower(), value) for name, value in parse_qsl(parts.query, keep_blank_values=True))
        lines = [self.command, *lines, *(f"{name}:{value}" for name, value in own)]
        lines += [f"/{ACCOUNT}{parts.path}", *(f"{name}:{value}" for name, value in asked)]
        return base64.b64encode(hmac.digest(base64.b64decode(KEY), "\n".join(lines).encode(), "sha256")).decode()

    def _serve(self, body: bytes) -> None:
        _, account, container, name = unquote(urlsplit(self.path).path).split("/", 3)
        if account != ACCOUNT or container != CONTAINER:
            raise Refused(404, "ContainerNotFound")
        if self.command == "PUT":
            return self._answer(201, b"", self.server.put(name, body))
        found = self.server.blobs.get(name)
        if found is None:
            raise Refused(404, "BlobNotFound")
        if self.headers.get("If-Match", found[1]["ETag"]) != found[1]["ETag"]:
            raise Refused(412, "ConditionNotMet")
        if self.command == "DELETE":
            del self.server.blobs[name]
            return self._answer(202, b"", {})
        return self._send(*found)

    def _send(self, data: bytes, about: dict[str, str]) -> None:
        wanted = self.headers.get("x-ms-range") or self.headers.get("Range")
        about = {**about, "x-ms-blob-type": "BlockBlob", "Accept-Ranges": "bytes"}
        if self.command == "HEAD" or wanted is None:
            return self._answer(200, data, about)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last or len(data)) + 1, len(data))
        if start >= len(data):
            raise Refused(416, "InvalidRange")
        return self._answer(206, data[start:stop], {**about, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"x-ms-version": "2023-11-03", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Nothing: the log is for what goes wrong."""


class Server(ThreadingHTTPServer):
    """Blobs by name: their bytes, and the headers that tell which they are."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.blobs: dict[str, tuple[bytes, dict[str, str]]] = {}
        self._ticks = itertools.count(time.time_ns() // 100)
        self._lock = threading.Lock()

    def put(self, name: str, data: bytes) -> dict[str, str]:
        """Keep a blob; what the answer says of it."""
        with self._lock:  # an ETag is a time there, of 100 ns
            about = {"ETag": f'"0x8{next(self._ticks):X}"', "Last-Modified": formatdate(usegmt=True)}
            self.blobs[name] = (data, about)
        return {**about, "Content-MD5": base64.b64encode(hashlib.md5(data).digest()).decode()}


if __name__ == "__main__":
    Server(int(sys.argv[1])).serve_forever(poll_interval=60)
