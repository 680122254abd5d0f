"""What works in this process, on this machine, with these permissions: tried, not read from a version."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from userfault import _core
from userfault.kernel.flags import Features


@dataclass(frozen=True, slots=True)
class Trial:
    """The end of one trial; true where it works.

    Attributes:
        works: whether it did.
        why: what the kernel said where it did not.
        errno: the same as a number.
    """

    works: bool
    why: str | None = None
    errno: int | None = None

    def __bool__(self) -> bool:
        return self.works


@dataclass(frozen=True, slots=True)
class Limit:
    """A resource limit; None means no limit.

    Attributes:
        soft: what is enforced.
        hard: how far the process may raise it.
    """

    soft: int | None
    hard: int | None


@dataclass(frozen=True, slots=True)
class HugePool:
    """A pool of huge pages.

    Attributes:
        page_bytes: bytes in one page of it.
        total_pages: pages it has.
        free_pages: pages nobody uses.
    """

    page_bytes: int
    total_pages: int
    free_pages: int


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What works here.

    Attributes:
        userfaultfd: a descriptor of any kind.
        features: all that the kernel has.
        device: a descriptor from /dev/userfaultfd.
        syscall: one from userfaultfd(2), faults of system calls included.
        user_mode: one from userfaultfd(2), for faults of user-mode code only.
        event_fork: a descriptor with `Features.EVENT_FORK`.
        move: UFFDIO_MOVE.
        poison: UFFDIO_POISON.
        pagemap_scan: PAGEMAP_SCAN.
        write_tracking: WP_ASYNC and PAGEMAP_SCAN together find a write.
        kvm: /dev/kvm can be opened.
        kernel_faults: whether system calls on absent pages can be served; otherwise they get EFAULT.
        device_present: whether /dev/userfaultfd exists.
        hint: the one command that would get or widen access to userfaultfd; None where nothing is missing or known.
        kernel: release of the kernel, for people.
        page_bytes: bytes in a base page.
        unprivileged_sysctl: vm.unprivileged_userfaultfd.
        sys_ptrace: CAP_SYS_PTRACE is effective, if only in the own user namespace.
        poison_signal_code: si_code of the SIGBUS of a poisoned page.
        transparent_huge_pages: "always", "madvise" or "never".
        seccomp: 0 none, 1 strict, 2 filter.
        huge_pools: pools of huge pages, smallest pages first.
        memlock_bytes: RLIMIT_MEMLOCK.
        open_files: RLIMIT_NOFILE.
        max_map_count: vm.max_map_count.
    """

    userfaultfd: Trial
    features: Features
    device: Trial
    syscall: Trial
    user_mode: Trial
    event_fork: Trial
    move: Trial
    poison: Trial
    pagemap_scan: Trial
    write_tracking: Trial
    kvm: Trial
    kernel_faults: bool
    device_present: bool
    hint: str | None
    kernel: str
    page_bytes: int
    unprivileged_sysctl: int | None
    sys_ptrace: bool
    poison_signal_code: int | None
    transparent_huge_pages: str | None
    seccomp: int | None
    huge_pools: tuple[HugePool, ...]
    memlock_bytes: Limit
    open_files: Limit
    max_map_count: int | None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries, lists and numbers, for JSON; features by name."""
        plain = asdict(self)
        plain["features"] = [feature.name for feature in self.features]
        plain["huge_pools"] = list(plain["huge_pools"])
        return plain


_TRIALS = (
    *("userfaultfd", "device", "syscall", "user_mode", "event_fork"),
    *("move", "poison", "pagemap_scan", "write_tracking", "kvm"),
)
_cached: tuple[tuple[int, int], Capabilities] | None = None


def capabilities(*, refresh: bool = False) -> Capabilities:
    """Try what the kernel permits to this process.

    Args:
        refresh: try again; otherwise the first answer is kept, until a fork or a change of the user.

    Returns:
        What works, and why the rest does not. Needs no permission and never raises for want of one.

    Blocks: no (about 2 ms the first time).
    GIL: released.
    """
    global _cached
    who = (os.getpid(), os.geteuid())
    if refresh or _cached is None or _cached[0] != who:
        _cached = (who, _probe())
    return _cached[1]


def _probe() -> Capabilities:
    found = dict(_core.capabilities())
    for name in _TRIALS:
        refused = found[name]
        found[name] = Trial(True) if refused is None else Trial(False, refused[1], refused[0])
    found["features"] = Features(found["features"])
    found["huge_pools"] = tuple(HugePool(*pool) for pool in found["huge_pools"])
    found["memlock_bytes"] = Limit(*found["memlock_bytes"])
    found["open_files"] = Limit(*found["open_files"])
    return Capabilities(**found)
