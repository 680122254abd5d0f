"""A pager at a path: whoever is the same user may ask it for one, which is a process of its own and takes data, not code."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from userfault.errors import OptionError
from userfault.sources.wire import owner_of, place_of

__all__ = ["listening", "put_off", "serve"]


def serve(path: str | os.PathLike[str]) -> None:
    """Serve, for good, at a socket of this path.

    The socket is for this user alone (0600), as is its directory (0700), which is made if it is not there. Each client gets a
    process of its own, which opens what the client names (`File`, `Image`, `Zero`) and never unpickles anything.

    Args:
        path: Where; an older socket there is replaced.

    Raises:
        OptionError: The directory is another user's, or others may enter it; the path is something else than a socket, or too
            long for one.
        OSError: It cannot be made.

    Blocks: until it is interrupted.
    """
    children = set[int]()
    with listening(path, socket.SOCK_SEQPACKET) as listener:
        while True:
            _serve_one(listener, children)


@contextlib.contextmanager
def listening(path: str | os.PathLike[str], kind: socket.SocketKind) -> Iterator[socket.socket]:
    """A socket at a path that is this user's alone: 0600 in a directory of 0700.

    Args:
        path: Where; an older socket there is replaced.
        kind: Of socket.

    Returns:
        A context: the socket, which accepts connections; the path is gone afterwards.

    Raises:
        OptionError: As `serve`.
        OSError: It cannot be made.
    """
    place = Path(place_of(path))
    _make_room(place)
    with socket.socket(socket.AF_UNIX, kind) as listener:
        mask = os.umask(0o177)
        try:
            listener.bind(str(place))
        finally:
            os.umask(mask)
        listener.listen(128)
        ours = place.lstat().st_ino
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if place.lstat().st_ino == ours:  # else somebody else serves there by now
                    place.unlink()


#: No descriptor or no process can be had: before the next try, which may find some.
_PAUSE_SECONDS = 0.1


def put_off(error: BaseException) -> None:
    """Say that a client could not be served, where anybody can read it, and give the next one a better chance.

    Args:
        error: Why.

    Blocks: for a moment.
    """
    with contextlib.suppress(OSError, ValueError):  # standard error may be a pipe that nobody reads any more
        print(f"userfault: a client could not be served: {error}", file=sys.stderr)
    time.sleep(_PAUSE_SECONDS)


def _serve_one(listener: socket.socket, children: set[int]) -> None:
    """The next client. What fails for it fails for nobody else: it sees the end of its connection."""
    try:
        client, _ = listener.accept()
        with client:
            _begin(client, children)
    except OSError as error:
        put_off(error)


def _make_room(place: Path) -> None:
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = place.parent.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or stat.S_IMODE(about.st_mode) & 0o077:
        raise OptionError(f"{place.parent}: must be a directory of this user that nobody else may enter: chmod 700")
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(place.lstat().st_mode):
            raise OptionError(f"{place} is there, and no socket")
        place.unlink()


def _begin(client: socket.socket, children: set[int]) -> None:
    """A process for this client, unless it is another user: root may enter any directory."""
    for child in list(children):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(child, os.WNOHANG) == (0, 0):
                continue
        children.discard(child)
    if owner_of(client) != os.geteuid():
        return
    program = [sys.executable, "-P", "-m", "userfault.pager", "--data"]
    actions = [(os.POSIX_SPAWN_DUP2, client.fileno(), 3), (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    home = os.fspath(Path(__file__).resolve().parents[2])
    before = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": home if before is None else f"{home}:{before}"}
    children.add(os.posix_spawn(sys.executable, program, environment, file_actions=actions))
