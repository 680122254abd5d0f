"""``python become.py USER COMMAND...``: run COMMAND as USER, with this interpreter and this checkout in reach.

A checkout or an interpreter below a closed directory (root's home, say) is out of reach for another user. So the
needed directories are shown again inside a private mount namespace: a small tmpfs lies over the closed directory, and
the directories below it that are needed are bound into it. Nothing changes outside of this process.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import stat
import sys

CLONE_NEWNS = 0x00020000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    """Call a libc function and raise OSError where it fails."""
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    call("mount", *encoded, ctypes.c_ulong(flags), None if data is None else data.encode())


def needed_directories() -> list[str]:
    """What a Python process of this project reads."""
    checkout = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths = {checkout, sys.prefix, sys.base_prefix, os.path.dirname(os.path.realpath(sys.executable))}
    paths.update(path for path in sys.path if os.path.isdir(path))
    return sorted(os.path.realpath(path) for path in paths)


def closed_ancestor(path: str, uid: int) -> str | None:
    """The topmost directory on the way to `path` that a stranger may not pass."""
    parts = path.strip("/").split("/")
    for depth in range(1, len(parts) + 1):
        upper = "/" + "/".join(parts[:depth])
        state = os.stat(upper)
        if state.st_uid != uid and not state.st_mode & stat.S_IXOTH:
            return upper
    return None


def show_again(uid: int) -> None:
    """Make every needed directory reachable, in a mount namespace of our own."""
    closed: dict[str, list[str]] = {}
    for path in needed_directories():
        above = closed_ancestor(path, uid)
        if above is not None and above != path:
            closed.setdefault(above, []).append(path)
    if not closed:
        return
    call("unshare", CLONE_NEWNS)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    for above, paths in closed.items():
        outermost = [path for path in paths if not any(path.startswith(other + "/") for other in paths)]
        descriptors = [os.open(path, os.O_PATH | os.O_DIRECTORY) for path in outermost]
        mount("none", above, "tmpfs", 0, "mode=755,size=1m")
        for path, descriptor in zip(outermost, descriptors, strict=True):
            os.makedirs(path)
            mount(f"/proc/self/fd/{descriptor}", path, None, MS_BIND | MS_REC)
            os.close(descriptor)


def main() -> None:
    """Become the user, then the command."""
    user, command = sys.argv[1], sys.argv[2:]
    entry = pwd.getpwnam(user)
    show_again(entry.pw_uid)
    os.initgroups(user, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    os.environ.update(HOME="/tmp", USER=user, PYTHONDONTWRITEBYTECODE="1")
    if not os.access(os.getcwd(), os.X_OK):
        os.chdir("/tmp")
    os.execv(command[0], command)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"become: {error}")
