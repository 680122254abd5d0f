"""What the kernel permits in this process, found by trying, and skips that give the reason."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

import pytest

USER_MODE_ONLY = 1
SYSCALL_NUMBERS = {"x86_64": 323, "aarch64": 282}


class Kernel:
    """Skips for tests: ``Kernel().need("move", "poison")`` goes on only where all of these work here."""

    def need(self, *features: str) -> None:
        """Skip the test with the reason that the probe gave, unless userfaultfd and `features` work here."""
        reason = why_no_userfaultfd()
        if reason:
            pytest.skip(reason)
        for feature in features:
            reason = why_not(feature)
            if reason:
                pytest.skip(f"{feature}: {reason}")


@cache
def why_no_userfaultfd() -> str | None:
    """Why this process gets no descriptor at all, or None."""
    number = SYSCALL_NUMBERS.get(platform.machine())
    if number is None:
        return f"no userfaultfd call number known for {platform.machine()}"
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(number, os.O_CLOEXEC | USER_MODE_ONLY)
    if descriptor < 0:
        return f"userfaultfd(2): {os.strerror(ctypes.get_errno())}"
    os.close(descriptor)
    return None


@cache
def why_not(feature: str) -> str | None:
    """Why `feature`, an attribute of ``userfault.capabilities()``, does not work here, or None."""
    from userfault.kernel import capabilities

    found = getattr(capabilities(), feature)
    return None if found else getattr(found, "why", None) or "does not work here"
