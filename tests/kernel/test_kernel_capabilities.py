"""`capabilities()` and `userfault doctor`: answers for everybody, whatever is permitted."""

from __future__ import annotations

import json
import os
import platform

import pytest
from support.kernel import SYSCALL_NUMBERS

from userfault import kernel as uk

pytestmark = pytest.mark.timeout(60)

DOCTOR = "from userfault.cli import main; main()"


def sandboxed(code: str) -> str:
    """The same code under a seccomp filter that refuses userfaultfd(2), as containers have it."""
    number = SYSCALL_NUMBERS[platform.machine()]
    return f"""
import ctypes, struct
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, {number}), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
program = b"".join(struct.pack("HBBI", *rule) for rule in rules)
table = ctypes.create_string_buffer(program, len(program))
header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rules), ctypes.addressof(table)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, header) == 0
{code}
"""


def test_capabilities_are_kept_until_refreshed():
    """One probe per process, and another when asked."""
    first = uk.capabilities()
    assert uk.capabilities() is first
    assert uk.capabilities(refresh=True) is not first


def test_capabilities_agree_with_the_features():
    """A trial works exactly where the kernel has the feature."""
    found = uk.capabilities()
    if not found.userfaultfd:
        pytest.skip(f"userfaultfd: {found.userfaultfd.why}")
    assert found.move.works == (uk.Features.MOVE in found.features)
    assert found.poison.works == (uk.Features.POISON in found.features)
    assert (found.poison_signal_code in (2, 4)) == found.poison.works
    assert found.kernel_faults == (found.syscall.works or found.device.works)
    assert found.page_bytes == os.sysconf("SC_PAGESIZE")


def test_capabilities_go_into_json():
    """Plain data, features by name."""
    plain = uk.capabilities().as_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert all(isinstance(name, str) for name in plain["features"])


def test_probe_leaves_signals_children_and_descriptors_alone(child):
    """The trial of the poisoned page is invisible to the process that asks."""

    def code():
        import os
        import signal

        seen = []
        signal.signal(signal.SIGCHLD, lambda *_: seen.append("SIGCHLD"))
        signal.signal(signal.SIGBUS, lambda *_: seen.append("SIGBUS"))
        from userfault import kernel as uk

        before = sorted(os.listdir("/proc/self/fd"))
        for _ in range(20):
            uk.capabilities(refresh=True)
        assert sorted(os.listdir("/proc/self/fd")) == before
        assert seen == []
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            print("no children")

    assert child(code).check().stdout == "no children\n"


def test_doctor_as_root_prints_every_check(child):
    """A table on standard output, nothing on standard error, status 0 where userfaultfd is usable."""
    result = child(DOCTOR, args=["doctor"])
    assert result.returncode == (0 if uk.capabilities().userfaultfd else 3)
    assert result.stderr == ""
    for thing in (
        "faults of system calls",
        "CAP_SYS_PTRACE",
        "MOVE",
        "POISON",
        "PAGEMAP_SCAN",
        "seccomp",
        "/dev/kvm",
        "filling units of 64 KiB",
    ):
        assert thing in result.stdout


def test_doctor_json_has_a_schema_and_stable_keys(child):
    """Programs read it: the keys are a promise."""
    data = json.loads(child(DOCTOR, args=["doctor", "--json"]).stdout)
    assert data["schema"] == 1
    assert data["usable"] == bool(uk.capabilities().userfaultfd)
    assert {"kernel_faults", "checks", "sigbus_blocked_threads", "capabilities"} <= data.keys()
    assert all(set(check) == {"thing", "works", "why", "change"} for check in data["checks"])
    # What it measures starts threads that block all signals: they are no trouble of the user's.
    assert data["sigbus_blocked_threads"] == []
    assert next(check for check in data["checks"] if check["thing"] == "SIGBUS delivery")["works"]


def test_doctor_names_threads_that_block_sigbus(child):
    """A fault in such a thread would kill the process."""
    blocked = f"import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGBUS]); {DOCTOR}"
    data = json.loads(child(blocked, args=["doctor", "--json"]).stdout)
    assert [thread["tid"] for thread in data["sigbus_blocked_threads"]]
    check = next(check for check in data["checks"] if check["thing"] == "SIGBUS delivery")
    assert not check["works"]


def test_doctor_as_nobody_names_the_one_command(as_nobody):
    """An ordinary user gets an answer, and for each refusal what would lift it."""
    result = as_nobody(DOCTOR, args=["doctor"])
    assert "Traceback" not in result.stdout + result.stderr
    data = json.loads(as_nobody(DOCTOR, args=["doctor", "--json"]).stdout)
    assert result.returncode == (0 if data["usable"] else 3)
    checks = {check["thing"]: check for check in data["checks"]}
    assert data["user"] != 0
    assert not checks["CAP_SYS_PTRACE"]["works"]
    if not data["kernel_faults"]:
        assert checks["faults of system calls"]["change"].startswith("sudo ")
        assert checks["faults of system calls"]["change"] in result.stdout


def test_doctor_in_a_sandbox_exits_3_with_a_hint(as_nobody):
    """Where userfaultfd is refused altogether the status says so."""
    result = as_nobody(sandboxed(DOCTOR), args=["doctor"])
    data = json.loads(as_nobody(sandboxed(DOCTOR), args=["doctor", "--json"]).stdout)
    if data["capabilities"]["device"]["works"]:
        pytest.skip("/dev/userfaultfd is open to everybody here")
    assert (result.returncode, data["usable"]) == (3, False)
    assert "--device /dev/userfaultfd" in result.stdout


def test_open_in_a_sandbox_raises_permission_error_with_a_hint(as_nobody):
    """The exception says what was refused, by which door, and what would help."""
    code = """
from userfault import kernel as uk
try:
    uk.Userfaultfd(user_mode_only=True)
except PermissionError as error:
    print(error.strerror, "|", error.hint, "|", error.__notes__)
"""
    result = as_nobody(sandboxed(code)).check()
    assert "userfaultfd(2) EPERM" in result.stdout
    assert "--device /dev/userfaultfd" in result.stdout


def test_open_as_nobody_is_refused_unless_user_mode_only(as_nobody):
    """By default an ordinary user may have user-mode faults, and nothing else."""

    def code():
        import os

        from kernel.touching import PAGE, private
        from userfault import kernel as uk

        found = uk.capabilities()
        if found.kernel_faults or not found.userfaultfd:
            print("skip")
            return
        hint = None
        try:
            uk.Userfaultfd()
        except PermissionError as error:
            hint = error.hint
        assert hint == found.hint
        assert "sudo" in hint
        with uk.Userfaultfd(user_mode_only=True) as fd:
            memory = private(2)
            fd.register(memory)
            assert fd.copy(memory, b"n" * PAGE).done
            assert memory[0] == ord("n")
            zero = os.open("/dev/zero", os.O_RDONLY)
            try:
                os.readv(zero, [memoryview(memory)[PAGE:]])
            except OSError as error:
                print("EFAULT", error.errno)

    result = as_nobody(code).check()
    if result.stdout == "skip\n":
        pytest.skip("kernel faults are open to everybody here, or userfaultfd to nobody")
    assert result.stdout == "EFAULT 14\n"
