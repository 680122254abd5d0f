"""Standard output as a place for bytes."""

from __future__ import annotations

import os
import sys

from userfault.cli.common import Exit, Failure


def stdout_for(what: str) -> Stdout:
    """Standard output, for `what`: bytes that are not for a terminal.

    Raises:
        Failure: it is one.
    """
    if sys.stdout.isatty():
        raise Failure(f"{what} is not for a terminal", hint="name a file with -o, or send it to a pipe", status=Exit.USAGE)
    return Stdout()


class Stdout:
    """Standard output; what it takes has left the process, so that a reader who left is noticed."""

    def write(self, data: bytes | memoryview, /) -> int:
        """Write some of it."""
        return os.write(sys.stdout.fileno(), data)
