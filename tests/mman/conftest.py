"""The fixture of these tests: a child that knows their kit."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from support.child import ChildResult, source_of

collect_ignore_glob = [] if find_spec("userfault.mman") else ["test_*.py"]

#: What the children find imported; the test files import the same names, to be whole in themselves.
PRELUDE = """
import ctypes, errno, gc, hashlib, mmap, os, select, signal, struct, sys, threading, time, warnings
import numpy as np
from mman.kit import *
from mman.waiting import *
"""


#: Under option 1 the flag is set by mprotect: the same program, with this in front.
BY_MPROTECT = """
mman.set_policy("mprotect")
_madvise = mman.madvise
def _madvise_by_mprotect(range, advice, **options):
    wanted = {mman.MADV_USERFAULT: mman.PROT_USERFAULT, mman.MADV_NOUSERFAULT: mman.PROT_NONE}.get(advice)
    if wanted is None:
        return _madvise(range, advice, **options)
    return mman.mprotect(range, mman.PROT_READ | mman.PROT_WRITE | wanted)
mman.madvise = _madvise_by_mprotect
"""


def pytest_generate_tests(metafunc):
    """A test file that says `UNDER = (...)` is run under each of them."""
    policies = getattr(metafunc.module, "UNDER", None)
    if policies and "act" in metafunc.fixturenames:
        metafunc.parametrize("act", policies, indirect=True)


@pytest.fixture
def act(request, child, tmp_path):
    """Run a function in a child that knows the names above; it must end with status 0 and, by default, in silence."""
    prelude = PRELUDE + (BY_MPROTECT if getattr(request, "param", None) == "mprotect" else "")

    def run(code, *, timeout=20, args=(), silent=True, **options) -> ChildResult:
        result = child(prelude + source_of(code), timeout=timeout, args=args, cwd=tmp_path, **options).check()
        assert not silent or not result.stderr, result.stderr
        return result

    return run


PRELUDE_OF_FOLLOW = "import ctypes, os, signal, sys, threading, time\nfrom mman.following import *\n"

MAY_FOLLOW = """
from userfault import errors, mman
try:
    mman.madvise(mman.anonymous(4096), mman.MADV_USERFAULT, fork="follow")
except (errors.RefusedError, errors.UnsupportedError) as error:
    print(error)
"""


@pytest.fixture
def follow(child):
    """Run a function in a child that may follow its own children; skipped with the reason where it may not."""
    reason = child(MAY_FOLLOW).check().stdout.strip()
    if reason:
        pytest.skip(reason)

    def run(code, *, silent=True, **options):
        result = child(PRELUDE_OF_FOLLOW + source_of(code), **options).check()
        assert not silent or not result.stderr, result.stderr
        return result

    return run
