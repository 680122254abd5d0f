"""The bench of the byte-shuffle measures what it says. Times are not judged here."""

import json

import pytest
from bench import filters


def test_scans_have_distinct_names_made_of_parameters():
    """A name cannot say another thing than the parameters do."""
    names = [scan.name for scan in filters.scans()]
    assert len(set(names)) == len(names) == 36
    assert filters.Scan("decimals", "64KiB", "64KiB", 3).name == "decimals-64KiB-64KiB-level3"


@pytest.mark.kernel
def test_bench_saves_samples_of_both_sides(child, tmp_path):
    """A short run in a process of its own, since it touches lazy memory."""
    code = "import sys; from bench.filters import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["decimals-64KiB-64KiB-level3", "--rounds", "2", "--size", "2MiB", "--out", tmp_path]
    table = child(code, args=arguments, timeout=50).check().stdout
    assert "decimals-64KiB-64KiB-level3-huge" in table
    (saved,) = tmp_path.glob("*-filters-*.json")
    rows = json.loads(saved.read_text())["rows"]
    assert [row["scan"]["huge"] for row in rows] == [False, True]
    for row in rows:
        assert {name: len(samples) for name, samples in row["ns"].items()} == {"plain": 2, "shuffled": 2}
        assert row["smaller"] == row["file_bytes"]["plain"] / row["file_bytes"]["shuffled"] > 1
