"""Sources that another process holds and reads for all who ask it: `userfault.pager.share`."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

from userfault.errors import RemoteError, StoreError, StoreMissing
from userfault.sources.remote import RemoteSource, Version
from userfault.sources.wire import (
    MOST_BYTES,
    Answer,
    Ask,
    Changed,
    Found,
    Given,
    Missing,
    named,
    owner_of,
    place_of,
    receive,
    receive_into,
    send,
)
from userfault.units import parse_seconds

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Served"]

#: Connections that are kept for the next reads; as many as run at once are made.
_MOST_IDLE = 8
#: Before the next try.
_PAUSE_SECONDS = 0.05
#: Of which process, and they.
_Idle: TypeAlias = tuple[int, deque[socket.socket]]


class Served(RemoteSource):
    """A source that a pager at a path reads for several processes, by its name there.

    What the pager caches it caches for all of them, and the connections to a store are its own. What its source raises is a
    `RemoteError` here. A pager that ends and is started again is found again: its source has the same version if it tells one
    (`identity`, or a file that is the same), else reads are `StoreChanged`.

    Args:
        path: Of the pager's socket.
        name: Of the source, as the pager was given it.
        deadline: For one read; seconds, or a string such as "20s".
        patience: How long a read looks for a pager that is gone or gives no answer, within the deadline; seconds, or a string.
            What the source raises is not repeated: it may have `Retry` around it, over there or here.
        unit: Bytes filled for one touch.

    Raises:
        OptionError: No socket can have that path, or no source that name.

    Example:
        >>> weights = Served("/run/user/1000/userfault/shared", "weights")
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        name: str,
        *,
        deadline: float | str = "20s",
        patience: float | str = "5s",
        unit: int | str | None = None,
    ) -> None:
        self.path = place_of(path)
        self.name = named(name)
        self.patience = parse_seconds(patience, "patience")
        super().__init__(f"{self.path}:{name}", deadline=deadline, unit=unit)
        self._idle: _Idle = (os.getpid(), deque())

    def look(self) -> Version:
        """See `RemoteSource.look`."""
        found = self._answer(Ask(self.name), None)
        if not isinstance(found, Found):
            raise StoreError(self.url, f"the pager answers {found}")
        return Version(found.length, found.tag)

    def get(self, version: Version, start: int, stop: int) -> Buffer:
        """See `RemoteSource.get`."""
        room = bytearray(stop - start)
        with memoryview(room) as view:
            for low in range(start, stop, MOST_BYTES):
                high = min(low + MOST_BYTES, stop)
                answer = self._answer(Ask(self.name, version.tag, low, high), view[low - start : high - start])
                if isinstance(answer, Changed):
                    raise self.changed(version, f"{answer.tag} with {answer.length} bytes")
                if not isinstance(answer, Given):
                    raise StoreError(self.url, f"the pager answers {answer}")
        return room

    def place(self) -> str:
        """See `RemoteSource.place`: the path and the name, whatever is in them."""
        return f"{self.path!r} {self.name!r}"

    def close(self) -> None:
        """See `Source.close`."""
        super().close()
        self._hang_up()

    def _again(self, until: float, repeats: list[int], call: Any, arguments: tuple[Any, ...]) -> Any:
        """Until it succeeds or fails for good. A socket of this machine that nobody listens at costs little to try often."""
        until = min(until, time.monotonic() + self.patience)
        while True:
            try:
                return call(*arguments)
            except StoreError as error:
                if not error.transient or time.monotonic() + _PAUSE_SECONDS > until:
                    raise
            time.sleep(_PAUSE_SECONDS)
            repeats[0] += 1

    def _answer(self, ask: Ask, room: memoryview | None) -> Answer:
        """What the pager says, its bytes in `room`. A connection on which anything goes wrong is not used again."""
        try:
            connection = self._connection()
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(self.url, f"the pager cannot be reached: {error}", transient=True) from None
        try:
            answer = _exchange(connection, ask, room)
        except (OSError, EOFError, ValueError) as error:
            connection.close()
            self._hang_up()  # the others are to the same process
            raise StoreError(self.url, f"the pager gave no answer: {error}", transient=True) from None
        except BaseException:
            connection.close()
            raise
        self._keep(connection)
        if isinstance(answer, Missing):
            raise StoreMissing(self.url, f"the pager has no {self.name!r}, but {', '.join(map(repr, answer.names)) or 'nothing'}")
        if isinstance(answer, Found | Given | Changed):
            return answer
        raise RemoteError(answer.kind, answer.message, answer.traceback, answer.transient)

    def _connection(self) -> socket.socket:
        try:
            return self._mine().pop()
        except IndexError:
            return self._connected()

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self.deadline)
            connection.connect(self.path)
            if owner_of(connection) not in (os.geteuid(), 0):
                raise StoreError(self.url, "the pager belongs to another user")
        except BaseException:
            connection.close()
            raise
        return connection

    def _keep(self, connection: socket.socket) -> None:
        idle = self._mine()
        if len(idle) < _MOST_IDLE:
            idle.append(connection)
        else:
            connection.close()

    def _hang_up(self) -> None:
        idle = self._mine()
        while idle:
            idle.pop().close()

    def _mine(self) -> deque[socket.socket]:
        """Connections that nobody uses. Those of a forked child's parent would answer the questions of both."""
        if self._idle[0] != os.getpid():
            self._idle = (os.getpid(), deque())
        return self._idle[1]

    _KEPT_HERE = RemoteSource._KEPT_HERE | {"_idle"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._idle = (os.getpid(), deque())

    def __repr__(self) -> str:
        return f"Served({self.path!r}, {self.name!r})"


def _exchange(connection: socket.socket, ask: Ask, room: memoryview | None) -> Answer:
    send(connection, ask)
    answer: Answer = receive(connection, Answer)  # type: ignore[arg-type]  # a union is a type for msgspec
    if isinstance(answer, Given):
        if room is None or answer.count != len(room):
            raise ValueError(f"{answer.count} bytes came, {0 if room is None else len(room)} were asked for")
        receive_into(connection, room)
    return answer
