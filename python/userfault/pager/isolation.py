"""What a pager gives up: being its owner's user, privileges, system calls."""

from __future__ import annotations

import ctypes
import os
import pwd
import struct

__all__ = ["DENIED", "become", "give_up"]

_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SET_MODE_FILTER, _ALL_THREADS = 1, 1

#: Calls that the sandbox answers with EPERM, by machine: numbers of <asm/unistd.h>. Not a list of what is dangerous: a source
#: may open files and sockets and start programs. It is what no source needs and what leads out: calls that reach into other
#: processes, mounts, namespaces, kernel keys and modules. Files of /proc are for the kernel's own checks: become another user.
DENIED: dict[str, dict[str, int]] = {
    "x86_64": {
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "pidfd_getfd": 438, "process_madvise": 440,
        "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "setns": 308, "unshare": 272, "move_mount": 429,
        "open_tree": 428, "fsopen": 430, "fsmount": 432, "mount_setattr": 442, "swapon": 167, "swapoff": 168, "reboot": 169,
        "init_module": 175, "delete_module": 176, "finit_module": 313, "kexec_load": 246, "kexec_file_load": 320, "bpf": 321,
        "perf_event_open": 298, "add_key": 248, "request_key": 249, "keyctl": 250, "userfaultfd": 323, "acct": 163,
        "quotactl": 179, "iopl": 172, "ioperm": 173, "settimeofday": 164, "clock_settime": 227, "io_uring_setup": 425,
    },
    "aarch64": {
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "pidfd_getfd": 438, "process_madvise": 440,
        "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "setns": 268, "unshare": 97, "move_mount": 429,
        "open_tree": 428, "fsopen": 430, "fsmount": 432, "mount_setattr": 442, "swapon": 224, "swapoff": 225, "reboot": 142,
        "init_module": 105, "delete_module": 106, "finit_module": 273, "kexec_load": 104, "kexec_file_load": 294, "bpf": 280,
        "perf_event_open": 241, "add_key": 217, "request_key": 218, "keyctl": 219, "userfaultfd": 282, "acct": 89,
        "quotactl": 60, "settimeofday": 170, "clock_settime": 112, "io_uring_setup": 425,
    },
}  # fmt: skip

_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_KILL, _ALLOW, _REFUSE = 0x80000000, 0x7FFF0000, 0x00050000 | 1  # EPERM
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_X32 = 0x40000000


def become(user: str) -> None:
    """Become another user, for good, with that user's groups.

    Args:
        user: Its name.

    Raises:
        KeyError: There is no such user.
        PermissionError: This process may not.
    """
    about = pwd.getpwnam(user)
    if os.geteuid() == about.pw_uid:
        return
    os.initgroups(user, about.pw_gid)
    os.setresgid(about.pw_gid, about.pw_gid, about.pw_gid)
    os.setresuid(about.pw_uid, about.pw_uid, about.pw_uid)
    os.environ.update(HOME=about.pw_dir, USER=user, LOGNAME=user)
    if not os.access(".", os.X_OK):
        os.chdir("/")


def give_up() -> None:
    """No new privileges by set-user-ID programs, no core dumps or tracing by others, and none of the calls in `DENIED`.

    Raises:
        OSError: The kernel has no seccomp filters, or this machine is not known.
    """
    machine = os.uname().machine
    if machine not in DENIED:
        raise OSError(f"sandbox: no list of system calls for {machine}")
    libc = ctypes.CDLL(None, use_errno=True)
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1, 0)
    _prctl(libc, _PR_SET_DUMPABLE, 0, 0)
    code = _program(machine)
    room = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(room)))
    words = [ctypes.c_long(word) for word in (_SECCOMP[machine], _SET_MODE_FILTER, _ALL_THREADS, ctypes.addressof(program))]
    if libc.syscall(*words) != 0:  # the native threads run already, hence for all of them
        errno = ctypes.get_errno()
        raise OSError(errno, f"sandbox: seccomp: {os.strerror(errno)}")


def _prctl(libc: ctypes.CDLL, option: int, second: int, third: int) -> None:
    words = [ctypes.c_ulong(word) for word in (second, third, 0, 0)]
    if libc.prctl(ctypes.c_int(option), *words) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"sandbox: prctl({option}): {os.strerror(errno)}")


def _program(machine: str) -> bytes:
    """The filter: another architecture's calls kill, those of the list are refused, all others are allowed."""
    numbers = sorted(DENIED[machine].values())
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCHITECTURE[machine]), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    if machine == "x86_64":
        steps += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _REFUSE)]
    steps += [(_EQUAL, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)
