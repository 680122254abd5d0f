"""Long forms that need a nightly compiler: pure modules under miri, the engine under ThreadSanitizer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
from support.house import CRATES

ROOT = CRATES.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
# What calls nothing that miri lacks: no mappings, no zstd. Futexes it knows.
PURE = [f"{name}::" for name in ("bits", "counters", "policy", "queue", "readahead", "residence", "slots", "states")]
PURE += [f"image::index::tests::refuses_{what}" for what in ("what", "lies", "reserved")]
PURE += ["image::frame::tests::zeros_are_told", "image::frame::tests::no_single_byte"]


def cargo(*arguments: str, **environment: str) -> str:
    """Run nightly's cargo with these variables; returns what it says, with a build folder of its own."""
    where = os.path.join(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"), "nightly")
    done = subprocess.run(
        ["cargo", "+nightly", *arguments],
        cwd=ROOT,
        env={**os.environ, "CARGO_TARGET_DIR": where, **environment},
        capture_output=True,
        text=True,
        timeout=2300,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-8000:]
    assert sum(map(int, re.findall(r"(\d+) passed", said))) > 10, said[-8000:]
    return said


def need(component: str) -> None:
    """Skip where rustup has no nightly with this component."""
    if not shutil.which("rustup"):
        pytest.skip("needs a nightly compiler; there is no rustup")
    asked = subprocess.run(
        ["rustup", "component", "list", "--toolchain", "nightly", "--installed"], capture_output=True, text=True
    )
    if asked.returncode != 0:
        pytest.skip("needs a nightly compiler: rustup toolchain install nightly")
    if component not in {line.partition("-x86_64")[0].partition("-aarch64")[0] for line in asked.stdout.splitlines()}:
        pytest.skip(f"needs nightly's {component}: rustup component add --toolchain nightly {component}")


def test_pure_modules_are_sound_under_miri():
    """No undefined behaviour and no data race in modules that need no kernel; weak memory is simulated."""
    need("miri")
    cargo("miri", "test", "--locked", "-p", "engine", "--lib", "--", *PURE)


def test_engine_has_no_data_race_under_threadsanitizer():
    """The engine's own tests with its readers and workers, the standard library instrumented too.

    Not those that count mappings and refuse memory (leaks): the sanitizer needs its own.
    """
    need("rust-src")
    host = re.search(r"host: (\S+)", subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout)[1]
    cargo(
        *("test", "--locked", "-Zbuild-std", "--target", host, "-p", "engine", "--lib", "--test=reader", "--test=regions"),
        RUSTFLAGS="-Zsanitizer=thread",
        TSAN_OPTIONS="halt_on_error=1",
    )
