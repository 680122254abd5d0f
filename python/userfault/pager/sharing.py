"""A pager that holds sources for several processes, which read them as `userfault.sources.Served`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
import threading
from collections.abc import Mapping

from userfault import _core
from userfault.errors import OptionError, PageError
from userfault.pager.pinned import seen
from userfault.pager.remote import described
from userfault.pager.service import listening, put_off
from userfault.sources import File, Image, Source, native
from userfault.sources.wire import MOST_BYTES, Answer, Ask, Changed, Found, Given, Missing, Raised, named, owner_of, receive, send

__all__ = ["share"]

#: Connections at once, each with a thread; more are closed at once, and try again.
_MOST_CONNECTIONS = 1024


def share(path: str | os.PathLike[str], sources: Mapping[str, Source]) -> None:
    """Read these sources for all processes of this user, for good, at a socket of this path.

    They are opened once, here, and each client is given bytes of them: one cache, one set of connections. Clients name what was
    shared and can bring nothing. The socket is 0600 in a directory that must be 0700, as that of `serve`.

    Args:
        path: Where; an older socket there is replaced.
        sources: By the names that `Served` asks for.

    Raises:
        OptionError: The directory is another user's, or others may enter it; the path is something else than a socket, or too
            long for one; a name or a source makes no sense.
        OSError: It cannot be made, or a source not be opened.

    Blocks: until it is interrupted.

    Example:
        >>> share("/run/user/1000/userfault/shared", {"weights": Cached(Blob("s3://bucket/weights"))})
    """
    if not isinstance(sources, Mapping):
        raise OptionError(f"share: takes a mapping of names to Sources, and was given one of type {type(sources).__name__}")
    held = {named(name): _Held(source) for name, source in sources.items()}
    with listening(path, socket.SOCK_STREAM) as listener:
        while True:
            try:
                client, _ = listener.accept()
                _begin(client, held)
            except (OSError, RuntimeError) as error:  # for this client: it sees the end of its connection
                put_off(error)


class _Held:
    """A source that is open, and what tells its version from others of the same name."""

    def __init__(self, source: Source) -> None:
        if not isinstance(source, Source):
            raise OptionError(f"share: takes Sources by name, and was given one of type {type(source).__name__}")
        before = _file(source)  # a file that is replaced after this is not taken for what is opened here
        self.native: _core.NativeSource = native(source)
        identity = getattr(source, "identity", None) or before
        self.tag = secrets.token_hex(8) if identity is None else _short(str(identity))

    @property
    def found(self) -> Found:
        return Found(self.native.length, self.tag)


def _file(source: Source) -> str | None:
    known = seen(source) if isinstance(source, File | Image) else None
    return None if known is None else f"{source!r} {known}"


def _short(identity: str) -> str:
    return hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _begin(client: socket.socket, held: Mapping[str, _Held]) -> None:
    """A thread for this client, unless it is another user: root may enter any directory."""
    try:
        if owner_of(client) != os.geteuid() or threading.active_count() > _MOST_CONNECTIONS:
            client.close()
        else:
            threading.Thread(target=_serve, args=(client, held), name="userfault-share", daemon=True).start()
    except BaseException:
        client.close()
        raise


def _serve(client: socket.socket, held: Mapping[str, _Held]) -> None:
    """Answer until the client goes, or says what is no question."""
    room = bytearray()
    with client, contextlib.suppress(OSError, EOFError, ValueError):
        while True:
            ask = receive(client, Ask)
            count = ask.stop - ask.start
            if not 0 <= count <= MOST_BYTES:
                return
            if len(room) < count:
                room = bytearray(count)
            with memoryview(room)[:count] as data:
                answer = _answer(held, ask, data)
                send(client, answer, data if isinstance(answer, Given) else None)


def _answer(held: Mapping[str, _Held], ask: Ask, data: memoryview) -> Answer:
    one = held.get(ask.name)
    if one is None:
        return Missing(sorted(held)[:20])
    if not data:
        return one.found
    if ask.tag != one.tag:
        return Changed(one.tag, one.native.length)
    try:
        one.native.read_into(ask.start, data)
    except BaseException as error:  # whatever it is, the client waits for an answer
        return _raised(error)
    return Given(len(data))


def _raised(error: BaseException) -> Raised:
    if isinstance(error, PageError) and isinstance(error.cause, BaseException):
        error = error.cause  # what the source raised: the client's PageError is around it again
    kind, message, traceback = described(error).split("\0")
    return Raised(kind, message, traceback, _may_pass(error))


def _may_pass(error: BaseException) -> bool:
    """As it says itself, if it can."""
    try:
        return bool(getattr(error, "transient", isinstance(error, ConnectionError | TimeoutError)))
    except Exception:
        return False
