"""What `Served` and `pager.share` say to each other: one question, one answer, again and again over one connection.

Each message is its length (4 bytes, little endian) and msgpack; behind `Given` come the bytes themselves. Numbers, texts and
bytes travel, and no objects: nothing is unpickled on either side.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any, TypeAlias, TypeVar

import msgspec

from userfault.errors import OptionError

__all__ = [
    "MOST_BYTES",
    "Answer",
    "Ask",
    "Changed",
    "Found",
    "Given",
    "Missing",
    "Raised",
    "named",
    "owner_of",
    "place_of",
    "receive",
    "receive_into",
    "send",
]

#: Of one answer; longer reads ask several times.
MOST_BYTES = 4 << 20
_LONGEST_MESSAGE = 1 << 16
#: Bytes of UTF-8: a score of them go into one message.
_LONGEST_NAME = 1000
#: What the kernel takes.
_LONGEST_PATH = 107
_HEAD = struct.Struct("<I")
_WHO = struct.Struct("3i")


class Ask(msgspec.Struct, frozen=True):
    """For bytes, or with an empty range for what there is.

    Attributes:
        name: Which source.
        tag: Its version, as `Found` told; not looked at with an empty range.
        start: The first byte.
        stop: Behind the last one.
    """

    name: str
    tag: str = ""
    start: int = 0
    stop: int = 0


class Found(msgspec.Struct, frozen=True, tag="found"):
    """The source: bytes in all, and a version."""

    length: int
    tag: str


class Given(msgspec.Struct, frozen=True, tag="given"):
    """So many bytes follow: all that were asked for."""

    count: int


class Missing(msgspec.Struct, frozen=True, tag="missing"):
    """There is no source of that name, but these."""

    names: list[str]


class Changed(msgspec.Struct, frozen=True, tag="changed"):
    """It has another version than the one that was asked for."""

    tag: str
    length: int


class Raised(msgspec.Struct, frozen=True, tag="raised"):
    """The read failed: the parts of a `RemoteError`."""

    kind: str
    message: str
    traceback: str
    transient: bool


Answer: TypeAlias = Found | Given | Missing | Changed | Raised

_Message = TypeVar("_Message")


def send(to: socket.socket, message: Ask | Answer, data: memoryview | None = None) -> None:
    """Send a message, and the bytes behind it.

    Args:
        to: The connection.
        message: What to say.
        data: The bytes that `Given` announces.

    Raises:
        OSError: The other side is gone, or too slow.

    Blocks: until the other side takes it, within the socket's timeout. GIL: released.
    """
    packed = msgspec.msgpack.encode(message)
    begin = _HEAD.pack(len(packed)) + packed
    if data is None:
        to.sendall(begin)
        return
    sent = to.sendmsg([begin, data])  # together: the other side wakes once
    if sent < len(begin):
        to.sendall(begin[sent:])
    if rest := data[max(0, sent - len(begin)) :]:
        to.sendall(rest)


def receive(connection: socket.socket, kind: type[_Message]) -> _Message:
    """Receive a message.

    Args:
        connection: Where from.
        kind: What may come.

    Raises:
        EOFError: The other side is gone.
        OSError: The same, or it is too slow.
        ValueError: What came is no such message.

    Blocks: until it is there, within the socket's timeout. GIL: released.
    """
    head = bytearray(_HEAD.size)
    receive_into(connection, memoryview(head))
    (length,) = _HEAD.unpack(head)
    if length > _LONGEST_MESSAGE:
        raise ValueError(f"a message of {length} bytes")
    packed = bytearray(length)
    receive_into(connection, memoryview(packed))
    return msgspec.msgpack.decode(packed, type=kind)


def receive_into(connection: socket.socket, room: memoryview) -> None:
    """Receive bytes until the room is full.

    Args:
        connection: Where from.
        room: For them.

    Raises:
        EOFError: The other side is gone; the room is filled in part.
        OSError: The same, or it is too slow.

    Blocks: until they are there, within the socket's timeout. GIL: released.
    """
    while room:
        count = connection.recv_into(room)
        if not count:
            raise EOFError("the other side is gone")
        room = room[count:]


def owner_of(connection: socket.socket) -> int:
    """The user at the other end of a connection, as the kernel says.

    Args:
        connection: Of AF_UNIX.
    """
    uid: int = _WHO.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _WHO.size))[1]
    return uid


def named(name: object) -> str:
    """The name of a source, if it can be one.

    Args:
        name: What somebody gave.

    Raises:
        OptionError: It is no text, cannot be written in UTF-8, or is too long.
    """
    try:
        if isinstance(name, str) and len(name.encode()) <= _LONGEST_NAME:
            return name
    except UnicodeEncodeError:
        pass
    raise OptionError(f"name={name!r:.100}: must be a text of at most {_LONGEST_NAME} bytes of UTF-8")


def place_of(path: str | bytes | os.PathLike[Any]) -> str:
    """Where a socket is, absolute.

    Args:
        path: What somebody gave.

    Raises:
        OptionError: The kernel takes no such path for a socket.
        TypeError: It is no path.
    """
    place = os.path.abspath(os.fsdecode(path))
    length = len(os.fsencode(place))
    if length > _LONGEST_PATH or "\0" in place:
        raise OptionError(
            f"path={place!r}: must have no zero byte, and {_LONGEST_PATH} bytes at most, as the kernel takes no longer ones for "
            f"sockets; it has {length}"
        )
    return place
