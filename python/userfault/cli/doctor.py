"""`userfault doctor`: what works here, what does not, why, and the one command that would change it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from userfault.cli.common import Exit, console, emit_json, verb, wants_json
from userfault.kernel import Capabilities, Limit, Trial, capabilities

SIGBUS_BIT = 1 << 6
FEW_FILES = 4096
FILLED_UNITS = (4 << 10, 64 << 10, 256 << 10)
SIGNAL_CODES = {2: "BUS_ADRERR", 4: "BUS_MCEERR_AR"}
SECCOMP_MODES = {0: "no filter", 1: "strict mode", 2: "a filter is in force"}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report.

    Attributes:
        thing: what was tried.
        works: whether it does.
        why: why not; or details, where it does.
        change: the one command (or deed) that would change it.
    """

    thing: str
    works: bool
    why: str = ""
    change: str | None = None


@verb("doctor", example="userfault doctor")
def command() -> int:
    """Try what the kernel permits here, and say what would change it.

    Needs no permission. Exit status 0 if userfaultfd can be used at all, 3 otherwise.
    """
    found = capabilities(refresh=True)
    blocked = sigbus_blocked()  # before the engine starts: its own threads block everything, and touch no region
    checks = [check for room in ROOMS for check in room(found)] + [_threads(blocked)]
    if wants_json():
        _print_json(found, checks, blocked)
    else:
        _print_table(found, checks)
    return Exit.DONE if found.userfaultfd else Exit.FORBIDDEN


def _access(found: Capabilities) -> Iterator[Check]:
    """Ways to a descriptor."""
    yield _tried("userfaultfd", found.userfaultfd, found.hint)
    without = "system calls on absent pages get EFAULT; touching them works"
    why = "" if found.kernel_faults else (without if found.userfaultfd else "no descriptor at all")
    yield Check("faults of system calls", found.kernel_faults, why, None if found.kernel_faults else found.hint)
    yield _tried("/dev/userfaultfd", found.device, _device_change(found))
    sysctl = "unknown" if found.unprivileged_sysctl is None else str(found.unprivileged_sysctl)
    details = f"vm.unprivileged_userfaultfd is {sysctl}"
    change = "sudo sysctl vm.unprivileged_userfaultfd=1" if found.unprivileged_sysctl == 0 else None
    yield _tried("userfaultfd(2), all faults", found.syscall, change, details)
    yield _tried("userfaultfd(2), user mode only", found.user_mode, found.hint)
    yield Check("CAP_SYS_PTRACE", found.sys_ptrace, "" if found.sys_ptrace else "not effective", _as_root(found.sys_ptrace))
    yield _tried("following forks (EVENT_FORK)", found.event_fork, _as_root(bool(found.event_fork)))
    yield Check("seccomp", found.seccomp == 0, SECCOMP_MODES.get(found.seccomp or 0, "unknown"), _unconfined(found))


def _operations(found: Capabilities) -> Iterator[Check]:
    """What can be done with pages."""
    yield _tried("MOVE: pages without copying", found.move, _newer(found, "6.8"))
    code = found.poison_signal_code
    details = f"SIGBUS with {SIGNAL_CODES.get(code, code)}" if code is not None else "signal code not found"
    yield _tried("POISON: errors as SIGBUS", found.poison, _newer(found, "6.6"), details)
    yield _tried("PAGEMAP_SCAN: page states", found.pagemap_scan, _newer(found, "6.7"))
    yield _tried("write tracking (WP_ASYNC)", found.write_tracking, _newer(found, "6.7"))


def _filling(found: Capabilities) -> Iterator[Check]:
    """Which way of filling is cheaper: measured now, by what measures it for regions with a resident budget."""
    if not found.userfaultfd:
        return
    from userfault.report.filling import filling_costs

    for unit in FILLED_UNITS:
        one, two = (filling_costs(unit, threads) for threads in (1, 2))
        yield Check(f"filling units of {_size(unit)}", True, f"one thread: {one}; two: {two}")


def _machine(found: Capabilities) -> Iterator[Check]:
    """Huge pages, virtual machines, limits."""
    mode = found.transparent_huge_pages
    enable = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
    never = mode in (None, "never")
    yield Check("transparent huge pages", not never, mode or "not in this kernel", enable if mode == "never" else None)
    for pool in found.huge_pools:
        name = f"hugetlb pool of {_size(pool.page_bytes)} pages"
        path = f"/sys/kernel/mm/hugepages/hugepages-{pool.page_bytes // 1024}kB/nr_hugepages"
        change = f"echo 64 | sudo tee {path}" if not pool.total_pages and pool.page_bytes < 1 << 30 else None
        yield Check(name, pool.total_pages > 0, f"{pool.free_pages} of {pool.total_pages} free", change)
    absent = found.kvm.errno == 2
    yield _tried("/dev/kvm", found.kvm, None if absent else "sudo chown $(id -un) /dev/kvm")
    yield _limit("locked memory", found.memlock_bytes, lambda n: f"{n // 1024} KiB", "ulimit -l unlimited", 1 << 20)
    yield _limit("open files", found.open_files, str, f"ulimit -n {found.open_files.hard or 'unlimited'}", FEW_FILES)
    maps = found.max_map_count or 0
    yield Check("mappings per process", maps >= 65530, f"vm.max_map_count is {maps}", "sudo sysctl vm.max_map_count=1048576")


def _threads(blocked: list[tuple[int, str]]) -> Check:
    """Threads of this process that a SIGBUS would kill."""
    names = ", ".join(f"{name} ({tid})" for tid, name in blocked)
    why = f"blocked in {names}: a fault there kills the process" if blocked else "no thread blocks it"
    return Check("SIGBUS delivery", not blocked, why, "start without SIGBUS in the signal mask" if blocked else None)


ROOMS: tuple[Callable[[Capabilities], Iterator[Check]], ...] = (_access, _operations, _filling, _machine)


def sigbus_blocked() -> list[tuple[int, str]]:
    """Return (tid, name) of each thread of this process that has SIGBUS blocked."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        try:
            lines = (task / "status").read_text().splitlines()
        except OSError:  # the thread has ended, or /proc hides it
            continue
        fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        if int(fields.get("SigBlk", "0"), 16) & SIGBUS_BIT:
            found.append((int(task.name), fields.get("Name", "?")))
    return found


def _tried(thing: str, trial: Trial, change: str | None, details: str = "") -> Check:
    """A line for something that was tried: the change is shown where it failed."""
    if trial:
        return Check(thing, True, details)
    return Check(thing, False, "; ".join(filter(None, [trial.why, details])), change)


def _limit(thing: str, limit: Limit, show: Callable[[int], str], change: str, least: int) -> Check:
    """A line for a limit; low ones come with a change."""
    soft, hard = ("no limit" if value is None else show(value) for value in (limit.soft, limit.hard))
    enough = limit.soft is None or limit.soft >= least
    return Check(thing, enough, f"{soft} (may be raised to {hard})" if soft != hard else soft, None if enough else change)


def _device_change(found: Capabilities) -> str:
    if found.device_present:
        return "sudo chown $(id -un) /dev/userfaultfd"
    return "boot Linux 6.1 or newer; in a container: --device /dev/userfaultfd"


def _newer(found: Capabilities, release: str) -> str | None:
    """The deed for an operation: access first, a kernel after that."""
    return f"boot Linux {release} or newer" if found.userfaultfd else found.hint


def _as_root(works: bool) -> str | None:
    return None if works else "run it with sudo; in a container: docker run --cap-add SYS_PTRACE"


def _unconfined(found: Capabilities) -> str | None:
    if found.seccomp == 0 or found.userfaultfd:
        return None
    return "docker run --security-opt seccomp=unconfined, or --device /dev/userfaultfd"


def _size(count: int) -> str:
    return f"{count >> 30} GiB" if count >= 1 << 30 else f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"


def _print_json(found: Capabilities, checks: list[Check], blocked: list[tuple[int, str]]) -> None:
    emit_json(
        {
            "usable": bool(found.userfaultfd),
            "kernel_faults": found.kernel_faults,
            "user": os.geteuid(),
            "checks": [asdict(check) for check in checks],
            "sigbus_blocked_threads": [{"tid": tid, "name": name} for tid, name in blocked],
            "capabilities": found.as_dict(),
        }
    )


def _print_table(found: Capabilities, checks: list[Check]) -> None:
    from rich import box
    from rich.table import Table

    title = f"Linux {found.kernel}, pages of {found.page_bytes} bytes"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    table.add_column("thing", no_wrap=True)
    table.add_column("here", no_wrap=True)
    table.add_column("why", overflow="fold")
    for check in checks:
        table.add_row(check.thing, "[green]works[/]" if check.works else "[yellow]does not[/]", check.why)
    out = console()
    out.print(table)
    changes = [check for check in checks if not check.works and check.change]
    if changes:
        out.print("What would change it:", style="bold")
    for check in changes:  # never folded: somebody wants to paste it
        out.print(f"  {check.thing}:\n    {check.change}", soft_wrap=True, markup=False)
    out.print(f"\n{_verdict(found)}", soft_wrap=True, markup=False)


def _verdict(found: Capabilities) -> str:
    if not found.userfaultfd:
        return f"userfaultfd cannot be used here. {found.hint or ''}".rstrip()
    if not found.kernel_faults:
        return f"Touching lazy memory works; system calls on absent pages get EFAULT. To change that: {found.hint}"
    return "Everything the main job needs works here." if found.move and found.poison else "userfaultfd works here."
