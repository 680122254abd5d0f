"""The example of volatile memory does what its page says."""

from __future__ import annotations

import re
import sys

import pytest
from support.child import run_command
from support.house import ROOT

EXAMPLE = str(ROOT / "examples" / "volatile_cache.py")


@pytest.mark.kernel
@pytest.mark.root
@pytest.mark.timeout(120)
def test_the_dict_is_killed_and_the_volatile_cache_is_not(memory_limit):
    """Same program, same limit: what the kernel took is made again, everything else is right."""
    del memory_limit  # here, so that the test is skipped where there are no memory cgroups
    result = run_command([sys.executable, EXAMPLE, "80MiB", "200MiB"], timeout=100)
    assert result.returncode == 0, result.talk()
    _, first, second = result.stdout.splitlines()
    assert re.fullmatch(r"dict: +killed for want of memory \(1 kill\)", first), first
    made, found, taken = map(int, re.search(r"(\d+) tiles made, (\d+) found, (\d+) taken by the kernel", second).groups())
    assert made + found == 1600
    assert made > 800
    assert taken > 200, second


def test_without_permission_the_example_says_so_and_ends_with_3(as_nobody):
    """It needs root, and says which part of it does."""
    code = f"import runpy, sys; sys.argv = ['example', '80MiB', '200MiB']; runpy.run_path({EXAMPLE!r}, run_name='__main__')"
    result = as_nobody(code)
    assert result.returncode == 3, result.talk()
    assert "cgroup" in result.stderr
