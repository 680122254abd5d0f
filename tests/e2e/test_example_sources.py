"""The examples of sources run, as a reader would run them, and are as short as they claim."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from support.child import run_command
from support.house import ROOT

EXAMPLES = ROOT / "examples"
pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]


def run(name, *arguments):
    result = run_command([sys.executable, str(EXAMPLES / name), *map(str, arguments)], timeout=100)
    assert result.returncode == 0, result.talk()
    assert result.stderr == ""
    return result.stdout


@pytest.mark.parametrize("name", ["mandelbrot.py", "s3_array.py", "terabyte.py", "policy.py"])
def test_it_is_short(name):
    """Under sixty lines, with its words."""
    assert len((EXAMPLES / name).read_text().splitlines()) < 60


def test_mandelbrot_computes_what_is_looked_at(tmp_path):
    """Three looks of 64 tiles, and the edges: a few hundred pages of a tebibyte, as a picture with something on it."""
    out = tmp_path / "out.pgm"
    said = run("mandelbrot.py", out)
    computed, of = map(int, re.match(r"(\d+) of (\d+) pages", said).groups())
    assert 3 * 64 <= computed <= 3 * 81
    assert of == 1 << 28
    head, _, pixels = out.read_bytes().partition(b"255\n")
    picture = np.frombuffer(pixels, "u1").reshape(512, 3 * 512)
    assert head == b"P5 1536 512 "
    assert all(len(np.unique(part)) > 50 for part in np.hsplit(picture, 3))


def test_s3_array_fetches_what_is_touched():
    """Three chunks of 32."""
    pytest.importorskip("obstore")
    pytest.importorskip("moto")
    assert run("s3_array.py") == "(8192, 1024), 32 MiB: mean of ten rows 2053119.5; fetched 3 MiB\n"


def test_a_terabyte_has_a_hundred_megabytes():
    """And what left came back in place of others."""
    said = run("terabyte.py")
    there, came, left, most = map(int, re.findall(r"(\d+) (?:MB of it|units came|left again|MiB)", said.replace(", ", " ")))
    assert 95 <= there <= 101
    assert came - left == there * 1_000_000 // 4096 or abs((came - left) * 4096 / 1e6 - there) < 1
    assert left > 1000
    assert most < 400


def test_the_policy_is_ahead_of_who_walks():
    """Most pages were there before they were touched, or as good as."""
    waited, ahead = map(
        int, re.findall(r"(\d+) (?:pages|were there)", run("policy.py").replace("pages were waited for, ", "pages "))
    )
    assert 1990 <= waited + ahead <= 2000  # one that came both ways at once is counted by neither
    assert ahead > 1000
