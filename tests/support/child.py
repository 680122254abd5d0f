"""Run Python in a child process with a hard time limit, as this user or as another one."""

from __future__ import annotations

import inspect
import os
import pwd
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

BECOME = Path(__file__).with_name("become.py")


@dataclass(frozen=True)
class ChildResult:
    """How a child ended.

    `returncode` is the exit status, None if a signal ended it; `signal` is that signal, None otherwise.
    `timed_out` is true where the time limit ended it (then `signal` is SIGKILL).
    """

    returncode: int | None
    signal: signal.Signals | None
    stdout: str
    stderr: str
    timed_out: bool = False

    def check(self) -> ChildResult:
        """Fail the test, showing everything, unless the child ended with status 0."""
        if self.returncode != 0:
            pytest.fail(self.talk(), pytrace=False)
        return self

    def ending(self) -> str:
        """One phrase for how it ended."""
        return f"exit status {self.returncode}" if self.signal is None else f"signal {self.signal.name}"

    def talk(self) -> str:
        """How it ended and both streams, labelled."""
        return f"--- {self.ending()}\n--- stdout\n{self.stdout}--- stderr\n{self.stderr}"


def run_child(
    code: str | Callable[[], object],
    *,
    timeout: float = 20,
    user: str | None = None,
    env: Mapping[str, str | None] | None = None,
    args: Sequence[str] = (),
    stdin: str | bytes | None = None,
    faulthandler: bool = False,
    may_time_out: bool = False,
    warnings: str | None = "error",
    cwd: str | os.PathLike[str] | None = None,
) -> ChildResult:
    """Run `code` in a fresh interpreter and wait for its end, at most `timeout` seconds.

    Args:
        code: source text (dedented first), or a function without arguments whose own source is run, so it must
            import what it uses.
        timeout: seconds; after them the child's process group is killed and the test fails, except with
            `may_time_out`.
        user: name of the user to be; needs root.
        env: changes to the environment; None as a value removes a name.
        args: become ``sys.argv[1:]``.
        stdin: fed to the child; nothing by default.
        faulthandler: start with ``-X faulthandler``.
        may_time_out: return with `timed_out` set where the time is up.
        warnings: the interpreter's -W filter, None for its default.
        cwd: working directory of the child.
    """
    command = [sys.executable]
    command += ["-X", "faulthandler"] if faulthandler else []
    command += ["-W", warnings] if warnings else []
    command += ["-c", source_of(code), *map(str, args)]
    if user is not None:
        reason = why_no_user(user)
        if reason:
            pytest.skip(reason)
        command = [sys.executable, str(BECOME), user, *command]
    result = run_command(command, timeout=timeout, env=env, stdin=stdin, cwd=cwd)
    if result.timed_out and not may_time_out:
        pytest.fail(f"child did not end within {timeout} s\n{result.talk()}", pytrace=False)
    return result


def run_command(
    command: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str | None] | None = None,
    stdin: str | bytes | None = None,
    cwd: str | os.PathLike[str] | None = None,
) -> ChildResult:
    """Run any command in a process group of its own, with files for its streams: no pipe can fill or stay open.

    Its temporary files are in a folder that goes with it: it may be killed before it removes them.
    """
    given = stdin.encode() if isinstance(stdin, str) else stdin
    with (
        tempfile.TemporaryFile() as source,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
    ):
        Path(scratch).chmod(0o1777)  # the command may become another user
        source.write(given or b"")
        source.seek(0)
        changed = environment({"TMPDIR": scratch, **(env or {})})
        process = subprocess.Popen(command, stdin=source, stdout=out, stderr=err, env=changed, cwd=cwd, start_new_session=True)
        timed_out = False
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            kill_group(process.pid)
            status = process.wait()
        return ChildResult(
            returncode=status if status >= 0 else None,
            signal=signal.Signals(-status) if status < 0 else None,
            stdout=read_back(out),
            stderr=read_back(err),
            timed_out=timed_out,
        )


def source_of(code: str | Callable[[], object]) -> str:
    """The text to hand to ``python -c``."""
    if isinstance(code, str):
        return textwrap.dedent(code)
    return textwrap.dedent(inspect.getsource(code)) + f"\n{code.__name__}()\n"


def environment(changes: Mapping[str, str | None] | None) -> dict[str, str]:
    """This process's environment with `changes`, and with tests/ importable as `support`."""
    merged: dict[str, str | None] = {**os.environ, "PYTHONPATH": python_path(), **(changes or {})}
    return {name: value for name, value in merged.items() if value is not None}


def kill_group(pid: int) -> None:
    """Kill what is left of a child's process group, its own children too."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def read_back(stream) -> str:
    """All that was written to a temporary file."""
    stream.seek(0)
    return stream.read().decode(errors="replace")


@cache
def why_no_user(name: str) -> str | None:
    """Why no child can be run as the user `name` here, or None where it can."""
    if os.geteuid() != 0:
        return f"needs to be root to become {name}"
    try:
        pwd.getpwnam(name)
    except KeyError:
        return f"there is no user {name}"
    probe = run_command([sys.executable, str(BECOME), name, sys.executable, "-c", "import os; print(os.geteuid())"], timeout=20)
    if probe.returncode != 0:
        return f"cannot run Python as {name}: {probe.stderr.strip()}"
    return None


def python_path() -> str:
    """This process's PYTHONPATH with tests/ in front, so that children can import `support`."""
    return os.pathsep.join(filter(None, [str(BECOME.parent.parent), os.environ.get("PYTHONPATH")]))
