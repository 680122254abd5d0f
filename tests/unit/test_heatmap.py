"""Watching pages arrive, and the picture of it."""

import mmap

import numpy as np
import pytest

from userfault.report import heatmap

PAGE = mmap.PAGESIZE


def test_watch_sees_touched_pages_and_no_others():
    """A page that nobody touched never arrived."""
    memory = mmap.mmap(-1, 16 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    address = np.frombuffer(memory, "u1").ctypes.data
    with heatmap.Watch(address, 16 * PAGE) as watch:
        memory[3 * PAGE] = 1
        watch.look()
        memory[7 * PAGE] = 1
    arrivals = watch.arrivals()
    assert np.flatnonzero(~np.isnan(arrivals.seconds)).tolist() == [3, 7]
    assert arrivals.seconds[3] <= arrivals.seconds[7]
    assert arrivals.present_bytes == 2 * PAGE


def test_cells_keep_the_earliest_arrival():
    """A cell is as old as its first page; one without pages is empty."""
    seconds = np.array([np.nan, 2.0, 1.0, np.nan, np.nan, np.nan, 3.0])
    cells = heatmap.Arrivals(PAGE, seconds).cells(4)
    assert np.array_equal(cells, [2.0, 1.0, np.nan, 3.0], equal_nan=True)
    assert len(heatmap.Arrivals(PAGE, seconds).cells(100)) == 7


@pytest.mark.parametrize("seconds", [[np.nan], [0.5], [np.nan] * 9, list(range(100))], ids=len)
def test_save_picture_writes_png(seconds, tmp_path):
    """Any watch can be drawn, one that saw nothing too."""
    pytest.importorskip("matplotlib")
    arrivals = heatmap.Arrivals(PAGE, np.array(seconds, float))
    path = heatmap.save_picture(arrivals, tmp_path / "picture.png", moments={"answer": 0.25})
    assert path.read_bytes().startswith(b"\x89PNG")
