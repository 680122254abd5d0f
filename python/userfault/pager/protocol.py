"""What an owner tells its pager beside numbers: settings once, and a description of each source.

Numbers travel as frames of fixed size, which are native (`crates/engine/src/pager/wire.rs`). The owner keeps these messages as
bytes, because a pager that replaces a dead one needs them while nobody may run Python in the owner; each pager gets copies that
it cannot change. Who a pager shall be, and what it shall give up, are arguments of its program.
"""

from __future__ import annotations

from typing import TypeAlias, TypeVar

import msgspec

from userfault.sources.local import Seen

__all__ = [
    "VERSION",
    "Description",
    "FileDescription",
    "ImageDescription",
    "Settings",
    "SourceMessage",
    "ZeroDescription",
    "decode",
    "encode",
]

#: Both sides are of one installation; a pager of another one says so instead of guessing.
VERSION = 1


class Settings(msgspec.Struct, frozen=True):
    """How a pager shall be.

    Attributes:
        version: `VERSION`.
        path: `sys.path` of the owner: what it can import, the pager can.
        directory: Where the owner was when it made the pager; relative names of files are of there.
        python_path: The variable PYTHONPATH as it was, or None.
        threads: Threads that answer faults, to begin with.
    """

    version: int
    path: list[str]
    directory: str
    python_path: str | None
    threads: int


class FileDescription(msgspec.Struct, frozen=True, tag="file"):
    """A range of a file: its absolute path, the first byte, how many; and which file that is, where the client could tell."""

    path: str
    offset: int
    length: int | None
    seen: Seen | None = None


class ImageDescription(msgspec.Struct, frozen=True, tag="image"):
    """The bytes inside an image: its absolute path, and which file that is."""

    path: str
    seen: Seen | None = None


class ZeroDescription(msgspec.Struct, frozen=True, tag="zero"):
    """So many zeros."""

    length: int


Description: TypeAlias = FileDescription | ImageDescription | ZeroDescription


class SourceMessage(msgspec.Struct, frozen=True):
    """A source.

    Attributes:
        version: `VERSION`.
        pickled: The source, by cloudpickle. A pager unpickles only what the process that started it has sent.
        described: The source as data, for pagers that serve everybody of a user.
    """

    version: int
    pickled: bytes | None = None
    described: Description | None = None


_Message = TypeVar("_Message", Settings, SourceMessage)


def encode(message: Settings | SourceMessage) -> bytes:
    """As bytes.

    Args:
        message: Any of these.
    """
    return msgspec.msgpack.encode(message)


def decode(kind: type[_Message], data: bytes) -> _Message:
    """From bytes.

    Args:
        kind: What they should be.
        data: The bytes.

    Raises:
        ValueError: They are not, or of another version.
    """
    message = msgspec.msgpack.decode(data, type=kind)
    if message.version != VERSION:
        raise ValueError(f"a message of version {message.version}, and this is {VERSION}")
    return message
