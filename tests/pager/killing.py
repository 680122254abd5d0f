"""A process that kills or stops the pager of another one, which may be unable to do so: `python -m pager.killing ...`."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path


def pagers_of(owner: int) -> list[int]:
    """The pager processes of a process."""
    found = []
    for task in Path(f"/proc/{owner}/task").iterdir():
        with suppress(OSError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return [pid for pid in found if is_pager(pid)]


def is_pager(pid: int) -> bool:
    """Whether it is one, and lives."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        alive = state(Path(f"/proc/{pid}")) != "Z"
    except OSError:
        return False
    return b"userfault.pager" in command and alive


def state(task: Path) -> str:
    """What a thread is doing, as a letter (proc(5))."""
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def hit(owner: int, number: int, limit: float = 20) -> int:
    """Send a signal to the pager of a process; returns whom."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        for pid in pagers_of(owner):
            with suppress(OSError):
                os.kill(pid, number)
                while number == signal.SIGSTOP and not is_stopped(pid):
                    time.sleep(0.001)
                return pid
        time.sleep(0.002)
    raise TimeoutError("no pager to be hit")


def wait_for(file: Path, limit: float = 20) -> None:
    """Until it exists."""
    end = time.monotonic() + limit
    while not file.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"there is no {file}")
        time.sleep(0.005)


def is_stopped(pid: int) -> bool:
    """Whether no thread of it runs any more."""
    return all(state(task) == "T" for task in Path(f"/proc/{pid}/task").iterdir())


def storm(owner: int, kills: int, seed: int, until: Path) -> None:
    """Kill it so often, and then until a file is there, at random moments: in the middle of starting, too."""
    chance = random.Random(seed)
    last = done = 0
    while done < kills or not until.exists():
        done += 1
        while (pids := [pid for pid in pagers_of(owner) if pid != last]) == []:
            time.sleep(0.001)
        time.sleep(chance.choice([0.0, 0.05, 0.2, 0.4]) * chance.random())
        last = pids[0]
        with suppress(ProcessLookupError):
            os.kill(last, signal.SIGKILL)


def start(*arguments: object) -> subprocess.Popen[bytes]:
    """Run this as a program beside."""
    return subprocess.Popen([sys.executable, __file__, *map(str, arguments)])


if __name__ == "__main__":
    verb, process, *rest = sys.argv[1:]
    if verb == "storm":
        storm(int(process), int(rest[0]), int(rest[1]), Path(rest[2]))
    else:
        if len(rest) > 2:
            wait_for(Path(rest[2]))
        time.sleep(float(rest[1]) if len(rest) > 1 else 0)
        hit(int(process), int(rest[0]))
