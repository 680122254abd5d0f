"""The example runs, as a reader would run it."""

from __future__ import annotations

import fcntl
import os
import platform
import sys

import pytest
from support.child import run_command
from support.house import ROOT

pytest.importorskip("userfault.mman")
pytestmark = pytest.mark.kernel

EXAMPLE = ROOT / "examples" / "postcopy_2014.py"


RIGHT = "1024 pages arrived as they were touched, every byte right\n"
KVM_CREATE_VM = 0xAE01  # linux/kvm.h


def has_kvm():
    """Whether a machine can be had here, found by making one."""
    try:
        with open("/dev/kvm", "r+b", buffering=0) as kvm:
            os.close(fcntl.ioctl(kvm, KVM_CREATE_VM, 0))
    except OSError:
        return False
    return platform.machine() == "x86_64"


@pytest.mark.root
def test_example_postcopy_receives_every_byte(tmp_path):
    """KVM where it works, Python, read(2), O_DIRECT and process_vm_readv, over a socket from another process."""
    result = run_command([sys.executable, "-W", "error", str(EXAMPLE)], timeout=40, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, ""), result.talk()
    first, rest = result.stdout.split("\n", 1)
    if has_kvm():
        assert first == "KVM's guest walked 256 pages, its sum is right"
    else:
        assert first.startswith("without KVM: ")
    assert rest == RIGHT


@pytest.mark.root
def test_example_postcopy_without_kvm_says_why_and_goes_on(child, tmp_path):
    """A machine without /dev/kvm, or a user who may not open it."""

    code = "import sys; from support.kvm import run_without_kvm; run_without_kvm(sys.argv[1])"
    result = child(code, timeout=40, args=(str(EXAMPLE),), cwd=tmp_path).check()
    assert result.stdout.splitlines() == ["without KVM: /dev/kvm: Permission denied", RIGHT.strip()]


def test_example_postcopy_is_short():
    """It is there to be read."""
    assert len(EXAMPLE.read_text().splitlines()) <= 80
