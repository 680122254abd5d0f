"""The bench measures what it says, and loses nothing on the way to the file. Times are not judged here."""

import json
import shutil

import pytest
from bench import peers, report, run, scenarios

needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")


def test_scenarios_have_distinct_names_made_of_parameters():
    """A name cannot say another thing than the parameters do."""
    names = [one.name for one in scenarios.SCENARIOS]
    assert len(set(names)) == len(names)
    assert scenarios.Touches("signal", "4KiB", "random", 8, 1, "touch_signal", 1.5).name == "touch-4KiB-random-signal"


def test_scenario_survives_json():
    """Data made of a scenario makes the same scenario again."""
    for one in scenarios.SCENARIOS:
        assert scenarios.from_data(json.loads(json.dumps(scenarios.to_data(one)))) == one


def test_report_survives_json_and_file(tmp_path):
    """What is saved is what was measured."""
    rows = [report.Row(one, [1e3, 2e3, 3e3], [2e3, 4e3, 6e3]) for one in scenarios.SCENARIOS]
    made = report.Report(rows)
    path = made.save(tmp_path)
    assert report.Report.from_data(json.loads(path.read_text())) == made
    assert made.machine["cpus"] >= 1


def test_report_table_pairs_rounds():
    """The ratio is that of neighbours in time, and a missed bar is marked."""
    slow = scenarios.Touches("signal", "4KiB", "random", 8, 1, "touch_signal", bar=1.5)
    table = report.Report([report.Row(slow, [1e3, 1e3, 8e3], [2e3, 2e3, 16e3])]).table()
    assert "touch-4KiB-random-signal" in table
    assert "2.00x" in table
    assert "MISSED" in table
    assert "MISSED" not in report.Report([report.Row(slow, [2e3] * 3, [2e3] * 3)]).table()


@needs_compiler
@pytest.mark.kernel
@pytest.mark.parametrize("program", peers.PROGRAMS)
def test_floor_program_plays_rounds(program):
    """Each baseline plays as many rounds as it is told, and sees the same bytes every time."""
    peer = peers.Peer([str(peers.build_floor() / program), "4", "0", "2"])
    try:
        rounds = [peer.play() for _ in range(3)]
    finally:
        peer.close()
    assert [one["touches"] for one in rounds] == [8, 8, 8]
    assert len({one["sum"] for one in rounds}) == 1
    assert all(one["ns_per_touch"] > 0 for one in rounds)


@needs_compiler
@pytest.mark.kernel
@pytest.mark.parametrize("one", scenarios.SCENARIOS, ids=lambda one: one.name)
def test_scenario_plays_both_sides(one):
    """Both sides are played equally often, and see the same bytes (`measure` compares them)."""
    row = run.measure(one.scaled(0.001), peers.build_floor(), rounds=2, cpu=0)
    assert len(row.floor) == len(row.ours) == 2
    assert min(row.floor + row.ours) > 0


def test_run_lists_names(capsys):
    """The names are there to be chosen from."""
    assert run.main(["--list", "4KiB"]) == 0
    assert capsys.readouterr().out.split() == ["touch-4KiB-random-signal", "touch-4KiB-random-thread"]
