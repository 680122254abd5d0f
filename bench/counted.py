"""Sides of rows that count something else than time: system calls, and the size of the wheel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from bench import stores
from bench.peers import PATIENCE_SECONDS, ROOT

ROUNDS = (1, 3)
"""Played under strace; the calls of the longer run that the shorter has not are those of its touches."""


class Straced:
    """Plays a program under strace and counts system calls per touch, of all its threads."""

    def __init__(self, command: list[str]) -> None:
        self.command = command

    def play(self) -> dict[str, float]:
        """Two runs of different length."""
        calls, touches, total = {}, {}, 0
        for rounds in ROUNDS:
            calls[rounds], answers = self._run(rounds)
            touches[rounds] = sum(answer.get("touches", answer.get("calls")) for answer in answers)
            total = answers[-1]["sum"]
        few, many = ROUNDS
        return {"value": (calls[many] - calls[few]) / (touches[many] - touches[few]), "sum": total}

    def _run(self, rounds: int) -> tuple[int, list[dict[str, float]]]:
        with tempfile.NamedTemporaryFile() as summary:
            command = ["strace", "-f", "-c", "-o", summary.name, *self.command]
            done = subprocess.run(
                command, input="go\n" * rounds, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE_SECONDS, check=True
            )
            total = Path(summary.name).read_text().strip().splitlines()[-1].split()
        return int(total[3]), [json.loads(line) for line in done.stdout.splitlines()[1:]]

    def close(self) -> None:
        """Nothing is left running."""


class Wheel:
    """Weighs the wheel, in MB: built for the purpose, or what is installed, packed as a wheel is."""

    def __init__(self, *, build: bool) -> None:
        self.build = build
        self.weight = 0.0

    def play(self) -> dict[str, float]:
        """It weighs the same in each round."""
        if not self.weight:
            with tempfile.TemporaryDirectory() as folder:
                self.weight = (built(Path(folder)) if self.build else packed(Path(folder))).stat().st_size / 1e6
        return {"value": self.weight}

    def close(self) -> None:
        """Nothing is left."""


def built(folder: Path) -> Path:
    """The wheel that users get."""
    subprocess.run(
        [sys.executable, "-m", "maturin", "build", "-q", "--release", "--strip", "-o", str(folder)], cwd=ROOT, check=True
    )
    return next(folder.glob("*.whl"))


def packed(folder: Path) -> Path:
    """The installed package, its native part stripped if strip is there."""
    import userfault

    package, out = Path(userfault.__file__).parent, folder / "packed.zip"
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path in package.rglob("*"):
            if path.suffix == ".so" and shutil.which("strip"):
                subprocess.run(["strip", "-o", str(folder / path.name), str(path)], check=True)
                path = folder / path.name
            if path.suffix in (".py", ".pyi", ".so", ".typed"):
                wheel.write(path)
    return out


def has_header(name: str) -> bool:
    """Whether the C compiler finds it."""
    tried = subprocess.run(["cc", "-E", "-include", name, "-x", "c", os.devnull], capture_output=True, check=False)
    return tried.returncode == 0


def missing(tool: str) -> str | None:
    """Why a row that needs `tool` cannot be played here; None: it can."""
    if tool == "zstd" and not has_header("zstd.h"):
        return "zstd.h is missing (apt install libzstd-dev)"
    if tool == "nginx":
        return stores.why_not()
    if tool == "strace":
        if not shutil.which("strace"):
            return "strace is missing (apt install strace)"
        tried = subprocess.run(["strace", "-c", "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
        return f"strace may not trace here: {tried.stderr.strip()}" if tried.returncode else None
    if tool == "maturin" and subprocess.run([sys.executable, "-m", "maturin", "-V"], capture_output=True, check=False).returncode:
        return "maturin is missing (pip install maturin)"
    return None
