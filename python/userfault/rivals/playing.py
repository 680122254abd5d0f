"""Have the contenders take turns, each in a fresh process, and compare what they saw with the truth.

The array is a noisy sine as a twelve-bit converter would give it: it compresses, but not to nothing. All files lie in a
temporary folder and in the page cache.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from userfault.errors import OptionError
from userfault.rivals.child import measure
from userfault.rivals.child.ways import COLUMNS, RAW, unmounter
from userfault.rivals.contenders import CONTENDERS, FAULTING, MEASURES, SPANS, THREADS, Contender
from userfault.rivals.figures import take_turns
from userfault.rivals.machine import describe_machine, versions
from userfault.rivals.results import Cell, Results, ScaleCell
from userfault.units import format_bytes

ROW_BYTES = 4 * COLUMNS
BLOCK_BYTES = measure.BLOCK_ROWS * ROW_BYTES
PATIENCE_SECONDS = 120.0
ROOM = 6
"""The files take less than so many times the array."""
RUNS = ("first", "elements", "column", "scan")


@dataclass(frozen=True)
class Failed:
    """Why there is no number; `wrong` if that is an error."""

    reason: str
    wrong: bool = False


Answer = dict[str, Any] | Failed
Say = Callable[[str], object]


@dataclass(frozen=True)
class Form:
    """How much is done.

    Attributes:
        rounds: how many are kept.
        warm_up: whether a round before them is dropped.
        spans: over how many bytes single faults are measured.
        threads: with how many threads.
    """

    rounds: int = 5
    warm_up: bool = True
    spans: tuple[int, ...] = SPANS
    threads: tuple[int, ...] = THREADS


SHORT = Form(rounds=1, warm_up=False, spans=SPANS[:1], threads=THREADS[:2])
"""Shows that all works; its times mean little."""


class Table:
    """Plays contenders against each other over the files of one folder.

    Args:
        folder: where the files go.
        size: bytes of the array, a multiple of 8 MiB.
        form: how often.
        say: told what happens.
    """

    def __init__(self, folder: Path, size: int, form: Form, say: Say) -> None:
        self.folder, self.form, self.say = folder, form, say
        make_array(folder / RAW, size)
        self.truth = cache(self._truth)

    def _truth(self, raw: str, run: str, seed: int) -> int:
        """What a contender has to see."""
        array = np.memmap(self.folder / raw, "f4", "r").reshape(-1, COLUMNS)
        return int(measure.RUNS[run](array, seed, 1)["answer"])

    def play(self, contender: Contender, run: str, seed: int = 0, raw: str = RAW, threads: int = 1) -> Answer:
        """Run one process; `first` gets its time from our clock, which both share."""
        request = {"way": contender.way, "chunk": contender.chunk, "options": contender.options, "folder": str(self.folder)}
        request |= {"run": run, "seed": seed, "raw": raw, "threads": threads}
        started = time.monotonic()
        answer = run_child(request)
        if isinstance(answer, Failed) or run == "make":
            return answer
        true = self.truth(raw, run, 0 if run in ("scan", "touches") else seed)
        if answer["answer"] != true:
            return Failed(f"wrong answer: {answer['answer']} instead of {true} ({run}, seed {seed})", wrong=True)
        return answer | {"first": answer.get("at", 0) - started, f"peak_{run}": answer["peak"]}

    def compare(self, contenders: Sequence[Contender]) -> list[Cell]:
        """All measures of all contenders."""
        answers: dict[tuple[str, str], list[Answer]] = {}
        for number, one in enumerate(contenders, 1):
            self.say(f"file {number} of {len(contenders)}: {one.name}")
            answers[one.name, "make"] = [self.play(one, "make")]
        able = [one for one in contenders if not isinstance(answers[one.name, "make"][0], Failed)]
        for run in RUNS:
            self.say(f"{run}: {self.form.rounds + self.form.warm_up} rounds of {len(able)} processes")
            for one, results in zip(able, self._turns(able, self._once(run)), strict=True):
                answers[one.name, run] = results
        return [
            Cell(one.name, asked.key, **samples_of(answers.get((one.name, asked.run), answers[one.name, "make"]), asked.key))
            for one in contenders
            for asked in MEASURES
        ]

    def _turns(self, sides: Sequence[Contender], play: Callable[[Contender, int], Answer]) -> list[list[Answer]]:
        return take_turns(sides, play, self.form.rounds, warm_up=self.form.warm_up)

    def _once(self, run: str, **options: Any) -> Callable[[Contender, int], Answer]:
        """Play rounds, and none after one that failed: it may have taken long."""
        failed: dict[str, Failed] = {}

        def play(one: Contender, number: int) -> Answer:
            answer = failed.get(one.name) or self.play(one, run, number + 1, **options)
            if isinstance(answer, Failed):
                failed[one.name] = answer
            return answer

        return play

    def scale(self, contenders: Sequence[Contender]) -> list[ScaleCell]:
        """The cost of a fault by span and number of threads."""
        cells = []
        for span in self.form.spans:
            raw = make_sparse(self.folder, span)
            for threads in self.form.threads:
                self.say(f"faults over {format_bytes(span)}, {threads} threads")
                play = self._once("touches", raw=raw, threads=threads)
                for one, answers in zip(contenders, self._turns(contenders, play), strict=True):
                    cells.append(ScaleCell(one.name, span, threads, **samples_of(answers, "touches")))
        return cells


def samples_of(answers: list[Answer], key: str) -> dict[str, Any]:
    """The fields of a cell."""
    failed = next((one for one in answers if isinstance(one, Failed)), None)
    if failed:
        return {"reason": failed.reason, "wrong": failed.wrong}
    return {"samples": [one[key] for one in answers if not isinstance(one, Failed)]}


def run_child(request: dict[str, Any]) -> Answer:
    """Start a process, wait for its line; whatever it started ends with it."""
    command = [sys.executable, measure.__file__, json.dumps(request)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as child:
        try:
            output, errors = child.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            return Failed(f"did not end within {PATIENCE_SECONDS:.0f} s ({request['run']})", wrong=True)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    if child.returncode != 0:
        said = [line for line in errors.splitlines() if line.strip()] or [f"exit status {child.returncode}"]
        return Failed(f"{said[-1][:200]} ({request['run']})", wrong=True)
    answer: dict[str, Any] = json.loads(output)
    return Failed(answer["reason"]) if "reason" in answer else answer


def unmount_all(folder: Path) -> None:
    """Take away the mounts of processes that were killed."""
    for place in folder.glob("mount-*"):
        subprocess.run([unmounter(), "-u", "-z", str(place)], check=False, stderr=subprocess.DEVNULL)


class _Ended(BaseException):
    """A signal asks this process to end."""


@contextmanager
def tidy_end() -> Iterator[None]:
    """For a block that has files and children: SIGTERM and SIGHUP end it, and then the process, as if nobody had handled them."""
    came: list[int] = []

    def end(number: int, _frame: object) -> None:
        came.append(number)
        raise _Ended

    wanted = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in wanted:
            signal.signal(number, end)
        yield
    finally:
        for number in wanted:
            signal.signal(number, signal.SIG_DFL)
        if came:
            os.kill(os.getpid(), came[0])


def make_array(path: Path, size: int) -> None:
    """Write the array, a stretch at a time."""
    random = np.random.default_rng(1)
    count = BLOCK_BYTES // 4
    with open(path, "wb") as file:
        for start in range(0, size // 4, count):
            values = np.sin(np.arange(start, start + count) / 1000) + 0.01 * random.standard_normal(count)
            (np.round(values * 1024) / 1024).astype("f4").tofile(file)


def make_sparse(folder: Path, span: int) -> str:
    """Write a file of holes that has data only in the pages that will be touched: their numbers. Returns its name."""
    name = f"sparse-{span}"
    if not (folder / name).exists():
        with open(folder / name, "wb") as file:
            file.truncate(span)
            for page in measure.touched_pages(span // 4096).tolist():
                os.pwrite(file.fileno(), np.full(1024, page + 1, "u4").tobytes(), page * 4096)
    return name


def check_size(size: int) -> int:
    """A size of the array that can be cut into everybody's pieces.

    Raises:
        OptionError: it is not.
    """
    if size < BLOCK_BYTES or size % BLOCK_BYTES:
        raise OptionError(f"the array must have a multiple of {format_bytes(BLOCK_BYTES)}, not {format_bytes(size)}")
    return size


def compare(
    size: int,
    form: Form,
    say: Say,
    *,
    contenders: Sequence[Contender] = CONTENDERS,
    faulting: Sequence[Contender] = FAULTING,
) -> Results:
    """Measure everything.

    Args:
        size: bytes of the array, a multiple of 8 MiB.
        form: how often, and over which spans.
        say: told what happens.
        contenders: who is compared.
        faulting: whose single faults are measured.

    Raises:
        OptionError: the size is not possible.
        OSError: there is no room for the files.

    Blocks:
        Until all is done: minutes.
    """
    check_size(size)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    machine = describe_machine()
    with tidy_end(), tempfile.TemporaryDirectory(prefix="userfault-rivals-") as name:
        free = shutil.disk_usage(name).free
        if free < ROOM * size:
            raise OSError(f"the files need {format_bytes(ROOM * size)} in {tempfile.gettempdir()}, {format_bytes(free)} are free")
        try:
            table = Table(Path(name), size, form, say)
            cells = table.compare(contenders)
            scale = table.scale(faulting)
        finally:
            unmount_all(Path(name))
    return Results(at, size, form.rounds, machine, versions(), cells, scale)
