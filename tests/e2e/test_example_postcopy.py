"""The example runs, as a reader would run it."""

from __future__ import annotations

import sys

import pytest
from support.child import run_command
from support.house import ROOT

pytest.importorskip("userfault.mman")
pytestmark = pytest.mark.kernel

EXAMPLE = ROOT / "examples" / "postcopy_2014.py"


@pytest.mark.root
def test_example_postcopy_receives_every_byte(tmp_path):
    """Python, read(2), O_DIRECT and process_vm_readv, over a socket from another process."""
    result = run_command([sys.executable, "-W", "error", str(EXAMPLE)], timeout=40, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, ""), result.talk()
    assert result.stdout == "1024 pages arrived as they were touched, every byte right\n"


def test_example_postcopy_is_short():
    """It is there to be read."""
    assert len(EXAMPLE.read_text().splitlines()) <= 80
