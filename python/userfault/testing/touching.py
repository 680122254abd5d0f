"""Lazy memory touched in a child process, under a deadline.

A page that never comes stops a thread where no time limit of Python reaches it: so what may hang is touched by a process that
can be killed. `TouchChild` starts a fresh interpreter (never a fork), maps a source there and does what it is told.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from userfault.errors import PageError
from userfault.sources import Source

__all__ = ["TouchChild", "TouchDied", "TouchTimeout"]


class TouchTimeout(AssertionError, TimeoutError):
    """The child did not answer in time, and was killed: a touch, or whatever it was told, hangs."""


class TouchDied(AssertionError):
    """The child ended.

    Attributes:
        returncode: As `subprocess.Popen.returncode`: a negative number is the signal that ended it.
        stderr: What it said.
    """

    def __init__(self, returncode: int, stderr: str) -> None:
        ending = signal.Signals(-returncode).name if returncode < 0 else f"exit status {returncode}"
        super().__init__(f"the child ended with {ending}\n{stderr}")
        self.returncode = returncode
        self.stderr = stderr


class TouchChild:
    """A child process that has a source mapped.

    Args:
        source: What it maps; pickled by cloudpickle, so that classes and functions of a script may be in it.
        timeout: Seconds for each answer.
        **options: As `userfault.map`.

    Raises:
        Exception: What `userfault.map` raised in the child, or what pickling raised here.
        TouchTimeout: Mapping took too long.

    Example:
        >>> with TouchChild(userfault.Bytes(bytes(10_000)), delivery="signal") as child:
        ...     child.touch(5000, 10) == bytes(10)
        True
    """

    def __init__(self, source: Source, *, timeout: float = 20.0, **options: Any) -> None:
        self.timeout = timeout
        job = _pickled((source, options))
        ours, theirs = socket.socketpair()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - no pipe: it could fill
        path = os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH")]))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from userfault.testing.touching import serve; serve({theirs.fileno()})"],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=self._said,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
        self._connection = Connection(ours.detach())
        try:
            self._connection.send_bytes(job)
            self._answer()
        except BaseException:
            self.close()
            raise

    def touch(self, offset: int, length: int = 1) -> bytes:
        """Load bytes from the memory, with the GIL held as `bytes(view)` holds it.

        Args:
            offset: Of the first byte.
            length: Bytes.

        Returns:
            What was there.

        Raises:
            PageError: A page could not be had.
            TouchTimeout: It did not end; the child is dead now.
            TouchDied: The child died of it.
        """
        found: bytes = self.call("touch", offset, length)
        return found

    def write_out(self, offset: int, length: int = 1) -> bytes:
        """Have a system call load the bytes: `os.write` of the memory to a pipe.

        Args:
            offset: As `touch`; likewise for the others.
            length: Bytes, at most 64 KiB.

        Raises:
            OSError: EFAULT: a page could not be had.
        """
        found: bytes = self.call("write_out", offset, length)
        return found

    def call(self, what: str, *arguments: Any) -> Any:
        """Have the child do something, and wait for it.

        Args:
            what: "touch", "write_out", or a method of `userfault.Region`, such as "populate", "read", "evict", "statistics".
            *arguments: Picklable.

        Returns:
            The answer.

        Raises:
            Exception: What it raised there.
            TouchTimeout: As `touch`; likewise TouchDied.
        """
        self._send((what, arguments))
        return self._answer()

    def close(self) -> None:
        """End the child, whatever it is doing."""
        self._connection.close()
        if self._process.poll() is None:
            self._kill()
        self._process.wait()
        self._said.close()

    def _send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError:
            raise self._died() from None

    def _answer(self) -> Any:
        if not self._connection.poll(self.timeout):
            self._kill()
            raise TouchTimeout(f"the child gave no answer within {self.timeout:g} s, and was killed")
        try:
            is_good, answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._died() from None
        if is_good:
            return answer
        raise answer

    def _died(self) -> TouchDied:
        self._process.wait(self.timeout)
        self._said.seek(0)
        return TouchDied(self._process.returncode, self._said.read().decode(errors="replace"))

    def _kill(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _pickled(what: Any) -> bytes:
    import cloudpickle  # type: ignore[import-untyped]

    pickled: bytes = cloudpickle.dumps(what)
    return pickled


def serve(descriptor: int) -> None:
    """Be the child. `TouchChild` calls this in a fresh interpreter.

    Args:
        descriptor: Of a socket to the parent.
    """
    import userfault

    connection = Connection(descriptor)
    source, options = pickle.loads(connection.recv_bytes())  # from the parent, which has started this very process
    try:
        region = userfault.map(source, **options)
    except Exception as error:
        _tell(connection, False, error)
        return
    view = memoryview(region)
    _tell(connection, True, None)
    while True:
        try:
            what, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = _done(region, view, what, arguments)
        except Exception as error:
            _tell(connection, False, error)
        else:
            _tell(connection, True, answer)


def _done(region: Any, view: memoryview, what: str, arguments: Any) -> Any:
    if what == "touch":
        offset, length = arguments
        return bytes(view[offset : offset + length])
    if what == "write_out":
        return _written(view, *arguments)
    return getattr(region, what)(*arguments)


def _written(view: memoryview, offset: int, length: int) -> bytes:
    reader, writer = os.pipe()
    with open(reader, "rb") as out, open(writer, "wb", buffering=0) as into:
        written = into.write(view[offset : offset + length])
        return out.read(written or 0)


def _tell(connection: Connection, is_good: bool, answer: Any) -> None:
    """Answer; an exception whose cause cannot travel goes without it."""
    try:
        message = pickle.dumps((is_good, answer))
        pickle.loads(message)
    except Exception:
        if isinstance(answer, PageError):
            answer = PageError(answer.source, answer.offset, f"{type(answer.cause).__name__}: {answer.cause}")
        else:
            answer = RuntimeError(f"{type(answer).__name__}: {answer}")
        message = pickle.dumps((is_good, answer))
    connection.send_bytes(message)
