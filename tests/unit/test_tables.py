"""The tables of the docs say what the kept run measured."""

import json

import pytest
from bench.report import Report
from bench.tables import KEPT, ROOT, TABLES, lines_of, with_table


@pytest.fixture(scope="module")
def kept() -> Report:
    return Report.from_data(json.loads(KEPT.read_text()))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.page)
def test_page_says_what_the_kept_run_measured(table, kept):
    """`python -m bench.tables` was run after the run was kept."""
    page = (ROOT / table.page).read_text()
    assert with_table(page, table, kept) == page


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.page)
def test_every_row_has_a_number_of_both_sides(table, kept):
    """No scenario was renamed, or left out of the run."""
    lines = lines_of(table, {row.scenario.name: row for row in kept.rows})[2:]
    assert len(lines) >= len(table.rows)
    assert all(line.split("|")[2].strip() for line in lines[: len(table.rows)])


def test_kept_run_is_of_a_revision_and_of_at_least_nine_rounds(kept):
    """And its kernel is a version, not the name of somebody's build."""
    assert kept.revision
    assert "dirty" not in kept.revision
    assert kept.machine["kernel"].count("-") == 0
    assert all(len(row.ours) >= 9 for row in kept.rows if row.scenario.name != "wheel-size")
