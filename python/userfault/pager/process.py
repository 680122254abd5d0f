"""Pager: the process, as its owner has it."""

from __future__ import annotations

import atexit
import os
import stat
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from userfault import _core
from userfault.errors import OptionError
from userfault.pager.protocol import VERSION, Settings, encode
from userfault.units import parse_count, parse_seconds

__all__ = ["Pager", "default_pager"]

_MOST_THREADS = 32


class Pager:
    """A process that fills regions of this one; made with `Pager()` or by the first `map(delivery="process")`.

    It starts at once and is not waited for. It ends when it is closed, or with this process. What it writes to standard output
    and error goes to our standard error where that is a file or a terminal, else nowhere: a pipe that Python reads would stop it
    once it is full.

    Args:
        restarts: How often another process may replace one that died, in `within`; after that its regions are poisoned.
        within: Seconds, or a string such as "60s".
        threads: Threads that answer faults to begin with, 1 to 32; more are started while all of them wait.
        user: Name of the user that the process becomes, if this one may do that; None: the same.
        path: Instead of starting a process: ask who serves at this path (`userfault.pager.serve`). It takes `File`, `Image` and
            `Zero` only, which it opens itself; the other arguments but `restarts` and `within` are its own business.
        sandbox: Give up privileges and system calls that a source rarely needs; see docs/pager.md for what that does and what
            it does not.

    Raises:
        RefusedError: This process may not have a userfaultfd.
        OptionError: A parameter makes no sense.
        OSError: No process can be started; FileNotFoundError: nobody serves at `path`.
    """

    def __init__(
        self,
        *,
        restarts: int = 3,
        within: float | str = "60s",
        threads: int = 4,
        user: str | None = None,
        sandbox: bool = False,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        if path is not None and (user is not None or sandbox):
            raise OptionError("path: whoever serves there is who it is; user and sandbox are for a process of our own")
        settings = Settings(
            version=VERSION,
            path=_import_path(),
            directory=os.getcwd(),
            python_path=os.environ.get("PYTHONPATH"),
            threads=parse_count(threads, "threads", 1, _MOST_THREADS),
        )
        isolation = _isolation(user, sandbox)
        most = parse_count(restarts, "restarts", 0, 2**31)
        seconds = parse_seconds(within, "within")
        self.path = None if path is None else _socket_at(path)
        where = None if self.path is None else os.fsencode(self.path)
        self._native = _core.NativePager(where, _arguments() + isolation, _environment(), encode(settings), most, seconds)

    @property
    def native(self) -> _core.NativePager:
        """The native half."""
        return self._native

    @property
    def pid(self) -> int:
        """The number of the process, 0 while none runs; another one after a restart."""
        return self._native.facts()[0]

    @property
    def regions(self) -> int:
        """How many regions it serves."""
        return self._native.facts()[1]

    @property
    def restarts(self) -> int:
        """How often it was replaced."""
        return self._native.facts()[2]

    @property
    def lost(self) -> str | None:
        """How it ended for good, or None while it may serve."""
        return self._native.facts()[3]

    def close(self) -> None:
        """End the process; twice is fine.

        Raises:
            BufferError: It serves regions; close those first.

        Blocks: until it is gone, at most some seconds. GIL: released.
        """
        if not self._native.close():
            raise BufferError(f"{self.regions} region(s) of this pager are open; close them first")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.regions:
            self.close()

    def __repr__(self) -> str:
        pid, regions, restarts, lost = self._native.facts()
        state = f"pid {pid}" if lost is None else f"gone: {lost}"
        again = f", restarted {restarts} times" if restarts else ""
        place = "" if self.path is None else f" at {self.path}"
        return f"<Pager{place} {state}, {regions} region(s){again}>"


@dataclass(frozen=True, slots=True)
class _Home:
    """What a process has from the one that started it; `directory` is None where that was removed."""

    pid: int
    directory: str | None
    path: list[str]
    environment: dict[bytes, bytes] = field(repr=False)  # it may have secrets in it

    @staticmethod
    def now() -> _Home:
        try:
            return _Home(os.getpid(), os.getcwd(), _import_path(), _variables())
        except FileNotFoundError:
            return _Home(os.getpid(), None, [], {})

    def is_as(self, before: _Home) -> bool:
        """In a directory that was removed no relative name means anything, and no pager can be started there."""
        return self == before or (self.pid == before.pid and self.directory is None)


def _variables() -> dict[bytes, bytes]:
    """The environment as it is now, though another thread may take variables out of it meanwhile."""
    found = ((name, os.environb.get(name)) for name in list(os.environb))
    return {name: value for name, value in found if value is not None}


def _import_path() -> list[str]:
    return [os.path.abspath(entry) for entry in sys.path]


# Reentrant: a finalizer or a signal handler may map something while it is held.
_LOCK = threading.RLock()
_DEFAULT: tuple[_Home, Pager] | None = None


def default_pager() -> Pager:
    """The pager that regions of this process share; started if need be.

    Returns:
        A pager that may serve: another one than before where that is gone, or where this process has gone to another working
        directory, imports from elsewhere or has other environment variables since: relative names in a source would mean
        something else there, and credentials that were set since would not be there.

    Raises:
        RefusedError: As `Pager`.
    """
    global _DEFAULT
    with _LOCK:
        here = _Home.now()
        if _DEFAULT is None or not here.is_as(_DEFAULT[0]) or _DEFAULT[1].lost is not None:
            _DEFAULT = (here, Pager())  # the one before ends with its last region
        return _DEFAULT[1]


def _new_lock() -> None:
    global _LOCK
    _LOCK = threading.RLock()


os.register_at_fork(after_in_child=_new_lock)


def _socket_at(path: str | os.PathLike[str]) -> str:
    absolute = os.path.abspath(path)
    if not stat.S_ISSOCK(os.stat(absolute).st_mode):
        raise OptionError(f"path={os.fspath(path)!r}: is no socket; userfault.pager.serve makes one")
    return absolute


def _isolation(user: str | None, sandbox: bool) -> list[bytes]:
    """As arguments of the program: no pager can change what the next one is started with."""
    _check_known(user)
    if not isinstance(sandbox, bool):
        raise OptionError(f"sandbox={sandbox!r}: must be True or False")
    words = [] if user is None else [b"--user", os.fsencode(user)]
    return [*words, b"--sandbox"] if sandbox else words


def _check_known(user: str | None) -> None:
    if user is None:
        return
    if not isinstance(user, str):
        raise OptionError(f"user={user!r}: must be the name of a user, as a text, or None")
    import pwd

    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        raise OptionError(f"user={user!r}: there is no such user") from None
    if os.geteuid() not in (0, uid):
        raise OptionError(f"user={user!r}: only root may have a pager of another user")


def _arguments() -> list[bytes]:
    if not sys.executable:
        raise OptionError("delivery='process': sys.executable is empty, so no pager can be started")
    warnings = [word for option in sys.warnoptions for word in ("-W", option)]
    site = [flag for flag, given in (("-s", sys.flags.no_user_site), ("-S", sys.flags.no_site)) if given]
    return [os.fsencode(word) for word in (sys.executable, "-P", *site, *warnings, "-m", "userfault.pager")]


def _environment() -> list[bytes]:
    """Ours; and the pager must find this package before it is told where the owner looks for modules."""
    home = os.fsencode(Path(__file__).resolve().parents[2])
    ours = _variables()
    if sys.flags.ignore_environment:  # -E or -I: whoever sets variables has no say here, and so not there
        ours = {name: value for name, value in ours.items() if not name.startswith(b"PYTHON")}
    before = ours.get(b"PYTHONPATH")
    ours[b"PYTHONPATH"] = home if before is None else home + b":" + before
    return [name + b"=" + value for name, value in ours.items()]


def _end() -> None:
    """At exit: whoever waits for the pager of an exiting process waits for nothing."""
    if _DEFAULT is not None and _DEFAULT[0].pid == os.getpid() and not _DEFAULT[1].regions:
        _DEFAULT[1].close()


atexit.register(_end)
