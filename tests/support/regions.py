"""What tests of regions have in common: bytes, a file of them, and a child that must say nothing."""

from __future__ import annotations

BASE = """
import os, pickle, sys, tempfile, time
import numpy as np
import userfault as uf
rng = np.random.default_rng(7)
data = rng.integers(0, 256, 3 * 65536 + 123, dtype="u1").tobytes()
folder = tempfile.mkdtemp()
path = os.path.join(folder, "data.bin")
with open(path, "wb") as file:
    file.write(data)
"""


def run_quietly(child, code, **options):
    result = child(BASE + code, **options)
    assert (result.returncode, result.stdout) == (0, ""), f"{result.stdout}\n{result.stderr}"
