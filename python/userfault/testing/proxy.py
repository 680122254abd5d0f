"""A proxy between a client and a server that spoils some of the answers.

It speaks as much HTTP as a client that reads ranges needs; with `raw=True` it knows nothing of what passes, and spoils bytes.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

__all__ = ["Fault", "FaultyProxy"]


@dataclass(frozen=True)
class Fault:
    """What becomes of one answer.

    Attributes:
        kind: "status": the server's answer is replaced by one with this status. "reset": the connection is reset after `keep`
            bytes of the body. "close": it is closed there, as if that was all. "stall": after `keep` bytes nothing comes any
            more. "short": an answer that is whole, but `keep` bytes of the body long, headers to match. "shifted": the bytes of
            another range, headers to match. "whole": 200 and everything instead of the range. "mute": nothing comes.
        status: For "status".
        keep: Bytes.
        methods: Which requests count.
    """

    kind: str
    status: int = 503
    keep: int = 0
    methods: tuple[str, ...] = ("GET",)


@dataclass
class _Answer:
    head: bytes
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class FaultyProxy:
    """Listens on a port of the loopback interface and passes everything to a server, but for the faults that were ordered.

    Args:
        host: Of the server.
        port: Of the server.
        raw: Not HTTP: faults "reset", "close" and "stall" count bytes from the server, over the connection.

    Attributes:
        port: Where it listens.
        requests: Methods and ranges that were asked for, in order.
        spoilt: Faults that were played.

    Example:
        >>> with FaultyProxy("127.0.0.1", server.port) as proxy:
        ...     proxy.order(Fault("status", status=503), Fault("reset", keep=100))
        ...     source = userfault.Blob(f"http://127.0.0.1:{proxy.port}/weights.img")
    """

    def __init__(self, host: str, port: int, *, raw: bool = False) -> None:
        self._server = (host, port)
        self._raw = raw
        self._lock = threading.Lock()
        self._faults: deque[Fault] = deque()
        self._always: Fault | None = None
        self._sockets: set[socket.socket] = set()
        self._ended = threading.Event()
        self._before_fault: Callable[[], object] | None = None
        self.requests: list[tuple[str, str]] = []
        self.spoilt: list[Fault] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="faulty-proxy", daemon=True).start()

    def order(self, *faults: Fault) -> None:
        """The next answers are spoilt like this, one after the other.

        Args:
            *faults: What is to go wrong.
        """
        with self._lock:
            self._faults.extend(faults)

    def order_always(self, fault: Fault | None) -> None:
        """Every answer is spoilt like this from now on.

        Args:
            fault: What is to go wrong; None: nothing any more.
        """
        with self._lock:
            self._always = fault

    def before_fault(self, call: Callable[[], object] | None) -> None:
        """Have something done in the middle: before an answer is spoilt, after the server gave it.

        Args:
            call: Called in a thread of the proxy; None: nothing any more.
        """
        self._before_fault = call

    def close(self) -> None:
        """Listen no more, and drop all connections."""
        self._ended.set()
        _shut(self._listener)  # or a thread inside accept() would take one more
        self._listener.close()
        with self._lock:
            sockets = list(self._sockets)
        for one in sockets:
            _shut(one)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            serve = self._pass_raw if self._raw else self._pass_http
            threading.Thread(target=self._guarded, args=(serve, client), name="faulty-proxy", daemon=True).start()

    def _guarded(self, serve: Callable[[socket.socket], None], client: socket.socket) -> None:
        with self._lock:
            self._sockets.add(client)
        try:
            with client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                serve(client)
        except OSError:
            pass  # one of the two went away
        finally:
            with self._lock:
                self._sockets.discard(client)

    def _next_fault(self, method: str) -> Fault | None:
        with self._lock:
            fault = self._always
            if fault is None and self._faults and method in self._faults[0].methods:
                fault = self._faults.popleft()
            if fault is None or method not in fault.methods:
                return None
            self.spoilt.append(fault)
            return fault

    def _pass_http(self, client: socket.socket) -> None:
        while True:
            request, _ = _until(client, b"\r\n\r\n")
            if not request:
                return
            method = request.split(b" ", 1)[0].decode()
            wanted = _headers(request).get("range", "")
            with self._lock:
                self.requests.append((method, wanted))
            fault = self._next_fault(method)
            if fault is not None and fault.kind in ("shifted", "whole"):
                request = _spoilt_request(request, wanted, fault.kind)
            with socket.create_connection(self._server) as server:  # one for each: some servers hang up after an answer
                server.sendall(request)
                answer = _read_answer(server, method)
            if fault is None:
                client.sendall(answer.head + answer.body)
            elif not self._spoil(client, answer, fault):
                return

    def _spoil(self, client: socket.socket, answer: _Answer, fault: Fault) -> bool:
        """Send a bad answer; whether the connection goes on."""
        if self._before_fault is not None:
            self._before_fault()
        if fault.kind == "status":
            text = b"spoilt on purpose"
            client.sendall(b"HTTP/1.1 %d Spoilt\r\ncontent-length: %d\r\n\r\n%s" % (fault.status, len(text), text))
            return True
        if fault.kind == "short":
            client.sendall(_shortened(answer, fault.keep) + answer.body[: fault.keep])
            return True
        if fault.kind in ("shifted", "whole"):  # what the server made of another request
            client.sendall(answer.head + answer.body)
            return True
        if fault.kind != "mute":
            client.sendall(answer.head + answer.body[: fault.keep])
        return self._end(client, fault.kind)

    def _end(self, client: socket.socket, kind: str) -> bool:
        if kind in ("stall", "mute"):
            self._ended.wait()
        if kind == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    def _pass_raw(self, client: socket.socket) -> None:
        with socket.create_connection(self._server) as server:
            with self._lock:
                self._sockets.add(server)
            try:
                self._pass_bytes(client, server)
            finally:
                with self._lock:
                    self._sockets.discard(server)

    def _pass_bytes(self, client: socket.socket, server: socket.socket) -> None:
        forward = threading.Thread(target=_pump, args=(client, server), name="faulty-proxy", daemon=True)
        forward.start()
        while True:
            data = server.recv(1 << 16)
            if not data:
                return
            fault = self._next_fault("GET")
            if fault is None:
                client.sendall(data)
                continue
            client.sendall(data[: fault.keep])
            self._end(client, fault.kind)
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _shut(one: socket.socket) -> None:
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return


def _until(source: socket.socket, mark: bytes) -> tuple[bytes, bytes]:
    """What comes up to the mark, and what came behind it."""
    data = b""
    while mark not in data:
        more = source.recv(1 << 16)
        if not more:
            return b"", b""
        data += more
    head, _, rest = data.partition(mark)
    return head + mark, rest


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}


def _read_answer(server: socket.socket, method: str) -> _Answer:
    head, body = _until(server, b"\r\n\r\n")
    headers = _headers(head)
    length = 0 if method == "HEAD" else int(headers.get("content-length", "0"))
    pieces, size = [body], len(body)
    while size < length:
        more = server.recv(1 << 20)
        if not more:
            break
        pieces.append(more)
        size += len(more)
    return _Answer(head, b"".join(pieces), headers)


def _spoilt_request(request: bytes, wanted: str, kind: str) -> bytes:
    """Ask for other bytes than the client did: those one further on, or all."""
    if not wanted:
        return request
    line = next(line for line in request.split(b"\r\n") if line.lower().startswith(b"range:"))
    if kind == "whole":
        return request.replace(line + b"\r\n", b"")
    first, last = map(int, wanted.removeprefix("bytes=").split("-"))
    return request.replace(line, b"Range: bytes=%d-%d" % (first + 1, last + 1))


def _replaced(head: bytes, name: str, value: str) -> bytes:
    lines = [line for line in head.decode("latin-1").split("\r\n") if not line.lower().startswith(name + ":")]
    return "\r\n".join([*lines[:-2], f"{name}: {value}", "", ""]).encode("latin-1")


def _shortened(answer: _Answer, keep: int) -> bytes:
    head = _replaced(answer.head, "content-length", str(min(keep, len(answer.body))))
    span = answer.headers.get("content-range")
    if span:
        first, total = span.removeprefix("bytes ").split("-")[0], span.rpartition("/")[2]
        head = _replaced(head, "content-range", f"bytes {first}-{int(first) + keep - 1}/{total}")
    return head
