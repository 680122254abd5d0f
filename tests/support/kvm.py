"""Examples that want /dev/kvm, run where there is none."""

from __future__ import annotations

import builtins
import os
import runpy
import sys


def run_without_kvm(example: str, *arguments: str) -> None:
    """Run a program in this process as python would, except that /dev/kvm may not be opened."""
    real = builtins.open

    def refusing(path, *rest, **named):
        if path == "/dev/kvm":
            raise PermissionError(13, "Permission denied")
        return real(path, *rest, **named)

    builtins.open = refusing
    sys.argv[1:] = arguments
    sys.path.insert(0, os.path.dirname(example))  # as for a program; what it imports is beside it
    runpy.run_path(example, run_name="__main__")
