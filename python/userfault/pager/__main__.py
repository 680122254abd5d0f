"""The program: `python -m userfault.pager`, started by a process that has regions. It is of no use to people."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading

from userfault import _core
from userfault.pager.described import source_from
from userfault.pager.protocol import Settings, SourceMessage, decode
from userfault.pager.remote import described
from userfault.sources import Source, native
from userfault.sources.called import close_all

_SOCKET = 3  # what crates/engine/src/pager/spawn.rs says


def main() -> None:
    """Serve the regions of the process at the other end of descriptor 3 until that is gone."""
    # Ctrl-C and Ctrl-Z go to all processes of a terminal; the first is the owner's to act upon.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    given = sys.argv[1:]
    # With this a client is anybody of this user: it says what to open, and nothing else.
    data_only = given == ["--data"]
    server = _core.PagerServer(_SOCKET)
    settings = decode(Settings, server.settings())
    if not data_only:
        _be(settings)
        _be_isolated(given)
    for _ in range(min(settings.threads, 32)):
        threading.Thread(target=server.serve, name="userfault-serve", daemon=True).start()
    while (request := server.next_region()) is not None:
        _open_beside(server, request, data_only)
    close_all()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(0)  # the servers wait in the kernel, for a process that is gone


def _be(settings: Settings) -> None:
    sys.path[:] = settings.path
    with contextlib.suppress(OSError):  # it may be gone
        os.chdir(settings.directory)
    os.environ.pop("PYTHONPATH", None)
    if settings.python_path is not None:
        os.environ["PYTHONPATH"] = settings.python_path


def _be_isolated(given: list[str]) -> None:
    """`--user NAME` and `--sandbox`: arguments, which no pager before this one can have written."""
    if given:
        from userfault.pager.isolation import become, give_up

        if given[0] == "--user":
            become(given[1])
        if given[-1] == "--sandbox":
            give_up()


def _open_beside(server: _core.PagerServer, request: tuple[int, bytes], data_only: bool) -> None:
    """In a thread: a source that takes long to open, or for ever, keeps nobody else waiting."""
    thread = threading.Thread(target=_open_all, args=(server, request, data_only), name="userfault-open", daemon=True)
    try:
        thread.start()
    except BaseException as error:  # none is to be had, and the owner waits for an answer
        server.refuse(request[0], described(error))


def _open_all(server: _core.PagerServer, request: tuple[int, bytes] | None, data_only: bool) -> None:
    while request is not None:
        _open(server, *request, data_only)
        request = server.waiting_region()


def _open(server: _core.PagerServer, number: int, told: bytes, data_only: bool) -> None:
    try:
        message = decode(SourceMessage, told)
        if message.described is not None:
            source = source_from(message.described)
        elif data_only or message.pickled is None:
            raise PermissionError("this pager takes data, not code")
        else:
            source = pickle.loads(message.pickled)
        if not isinstance(source, Source):
            raise TypeError(f"a source was expected, and came a {type(source).__name__}")
        server.accept(number, native(source))
    except BaseException as error:  # whatever it is, the owner waits for an answer
        server.refuse(number, described(error))


if __name__ == "__main__":
    main()
