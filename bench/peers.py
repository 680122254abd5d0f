"""Processes that play rounds when told to, and fresh processes that are timed."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "target" / "floor"
TOUCHING = ("touch_signal", "touch_thread", "touch_move", "sequential_2m", "volatile_pin")
CALLING = ("remap", "watch")
PAIRED = ("think_follow", "think_poll", "several", "recycle", "batched", "pread_mapped", "zeros")
DECODING = ("decode_scan", "decode_touch")
PROGRAMS = TOUCHING + CALLING + PAIRED
PATIENCE_SECONDS = 120.0


class Peer:
    """A process that answers each line with one round's result."""

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self._answer()

    def play(self) -> dict[str, float]:
        """Have one round played."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE_SECONDS)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.process.kill()
            self.close()
            raise RuntimeError(f"{' '.join(self.command)}: {'ended' if ready else 'hangs'}")
        return json.loads(line)

    def close(self) -> None:
        """Let it end by itself."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class FreshImport:
    """Times a fresh interpreter that imports `modules`, one per round."""

    def __init__(self, *modules: str) -> None:
        self.command = [sys.executable, "-c", "import " + ", ".join(modules)]

    def play(self) -> dict[str, float]:
        """Start one, wait for its end."""
        start = time.perf_counter_ns()
        subprocess.run(self.command, check=True, cwd=ROOT)
        return {"ns": time.perf_counter_ns() - start}

    def close(self) -> None:
        """Nothing is left running."""


def build_floor() -> Path:
    """Compile what is older than its sources; return the folder."""
    BUILT.mkdir(parents=True, exist_ok=True)
    sources = ROOT / "bench" / "floor"
    newest = max(path.stat().st_mtime for path in sources.iterdir())
    for name in PROGRAMS:
        compile_if_old(newest, sources / f"{name}.c", BUILT / name)
    compile_if_old(newest, sources / "toucher.c", BUILT / "toucher.so", "-shared", "-fPIC")
    return BUILT


def build_decoders() -> None:
    """The same for those that need libzstd."""
    sources = ROOT / "bench" / "floor"
    newest = max(path.stat().st_mtime for path in sources.iterdir())
    for name in DECODING:
        compile_if_old(newest, sources / f"{name}.c", BUILT / name, "-lzstd")


def compile_if_old(newest: float, source: Path, target: Path, *options: str) -> None:
    """One call of the C compiler."""
    if target.exists() and target.stat().st_mtime > newest:
        return
    command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", str(target), str(source), *options]
    subprocess.run(command, check=True)
