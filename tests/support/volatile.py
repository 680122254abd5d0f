"""What tests of volatile buffers have in common: buffers full of known bytes, and a child that must say nothing."""

from __future__ import annotations

import pytest

DELIVERIES = pytest.mark.parametrize("delivery", ["signal", "thread"])

BASE = """
import errno, os, pickle, sys, threading, time
import numpy as np
import userfault as uf
from support.lazy import PAGE, check_endings, in_threads, known_bytes, libc, raised
from userfault.testing import purge

def filled(pages, **options):
    buffer = uf.VolatileBuffer(pages * PAGE, **options)
    data = known_bytes(pages * PAGE)
    buffer.numpy()[:] = data
    purge(buffer)  # takes nothing, but has each CPU let go of pages that another could not mark
    return buffer, buffer.numpy(), data

def write(path, data):
    with open(path, "wb") as file:
        file.write(data.tobytes())

def lost_pages(slices):
    return [page for part in slices for page in range(part.start // PAGE, -(-part.stop // PAGE))]
"""


def run(child, code, **options):
    """Run in a child that must say nothing."""
    result = child(BASE + code, **options)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", ""), result.talk()
