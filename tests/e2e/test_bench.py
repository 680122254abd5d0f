"""The bench measures what it says, and loses nothing on the way to the file. Times are not judged here."""

import json
import shutil

import pytest
from bench import counted, pairs, peers, report, run, scenarios

needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")


def test_scenarios_have_distinct_names_made_of_parameters():
    """A name cannot say another thing than the parameters do."""
    names = [one.name for one in scenarios.SCENARIOS]
    assert len(set(names)) == len(names)
    assert scenarios.Touches("signal", "4KiB", "random", 8, 1, "touch_signal", 1.5).name == "touch-4KiB-random-signal"


def test_calls_of_2014_are_scaled_by_their_number_not_their_size():
    """A short round makes few calls as large as ever; touched memory, and memory that has to be filled first, shrinks."""
    touches = scenarios.Calls2014("flagged-source", "64MiB", "touch_signal", bar=1.15)
    calls = scenarios.Calls2014("remap", "2MiB", "remap", calls=2000, huge=True, bar=1.15)
    assert (touches.name, calls.name) == ("flagged-source", "remap-2MiB-thp")
    assert touches.scaled(0.04).size == "2MiB"
    assert touches.scaled(0.000001).size == "4KiB"
    assert (calls.scaled(0.01).size, calls.scaled(0.01).calls) == ("2MiB", 20)
    assert calls.scaled(0.000001).calls == 2
    full = scenarios.Calls2014("flag", "1GiB", "watch", calls=2, full=True, bar_us=1000)
    assert (full.scaled(0.1).size, full.scaled(0.1).calls) == ("64MiB", 2)


def test_scenario_survives_json():
    """Data made of a scenario makes the same scenario again."""
    for one in scenarios.SCENARIOS:
        assert scenarios.from_data(json.loads(json.dumps(scenarios.to_data(one)))) == one


def test_report_survives_json_and_file(tmp_path):
    """What is saved is what was measured."""
    rows = [report.Row(one, [1e3, 2e3, 3e3], [2e3, 4e3, 6e3], [[3e3] * 3]) for one in scenarios.SCENARIOS]
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
@pytest.mark.parametrize("program", peers.TOUCHING)
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
@pytest.mark.parametrize("program", peers.CALLING)
@pytest.mark.parametrize("special", ["0", "1"])
def test_floor_program_makes_calls(program, special):
    """Each baseline makes as many calls as it is told; the bytes survive every round, of huge or present pages too."""
    peer = peers.Peer([str(peers.build_floor() / program), str(2 << 20), "0", "4", special])
    try:
        rounds = [peer.play() for _ in range(3)]
    finally:
        peer.close()
    assert [one["calls"] for one in rounds] == [4, 4, 4]
    assert len({one["sum"] for one in rounds}) == 1
    assert all(one["ns_per_call"] > 0 for one in rounds)


@needs_compiler
@pytest.mark.kernel
@pytest.mark.parametrize("one", scenarios.SCENARIOS, ids=lambda one: one.name)
def test_scenario_plays_both_sides(one):
    """All sides are played equally often, and see the same bytes (`measure` compares them)."""
    if reason := counted.missing(getattr(one, "needs", "")):
        pytest.skip(reason)
    row = run.measure(one.scaled(0.001), peers.build_floor(), rounds=2, cpu=0)
    baselines = [row.floor, *row.others] if row.floor else []
    assert [len(samples) for samples in (row.ours, *baselines)] == [2] * (1 + len(baselines))
    assert len(baselines) == len(getattr(one, "against", [row.floor] if row.floor else []))
    assert one.name == "idle-10000" or min(map(min, (row.ours, *baselines))) > 0
    assert report.Report([row]).table()


@pytest.mark.parametrize(("median_us", "verdict"), [(14.9, ""), (15.1, "MISSED")])
def test_report_table_judges_an_absolute_bar(median_us, verdict):
    """Where the C program does less than we do, what counts is the time itself; the ratio is shown all the same."""
    one = scenarios.Calls2014("flagged-callable", "4KiB", "touch_move", bar_us=15)
    row = report.Row(one, [1e3] * 3, [1e3, median_us * 1e3, 99e3])
    table = report.Report([row]).table()
    assert row.within_bar == (not verdict)
    assert ("MISSED" in table) == bool(verdict)
    assert f"{median_us:.2f}x" in table
    assert "<= 15 us" in table


def test_report_table_has_a_line_for_each_baseline_and_for_a_speed():
    """Two baselines are two bars, and one that is missed marks its own line; speeds are compared the other way round."""
    pair = pairs.Pair(
        "made-up",
        "think",
        4,
        against=(pairs.Against("near", at_most=1.3), pairs.Against("far", at_least=3.0), pairs.Against("beside")),
        bytes_each=2000,
        least_gbps=5,
    )
    row = report.Row(pair, [1000.0] * 3, [1200.0] * 3, [[2400.0] * 3, [1.0] * 3])
    near, far, beside, speed = report.lines_of(row)
    assert near.startswith("made-up")
    assert "1.20x" in near
    assert "MISSED" not in near + beside
    assert "2.00x" in far
    assert far.endswith(">= 3.0x speed  MISSED")
    assert speed.endswith(">= 5 GB/s  MISSED")
    assert not row.within_bar
    assert report.Row(pair, [1000.0] * 3, [300.0] * 3, [[900.0] * 3, [1.0] * 3]).within_bar


def test_counts_are_judged_as_counts():
    """A wheel weighs so much, or more; one more system call per touch is one too many."""
    assert report.Row(pairs.WheelSize(6.0), [], [5.9]).within_bar
    assert not report.Row(pairs.WheelSize(6.0), [], [6.1]).within_bar
    calls = pairs.KernelCalls("thread", 64, "touch_thread")
    assert report.Row(calls, [2.0], [2.001]).within_bar
    assert not report.Row(calls, [2.0], [2.06]).within_bar


def test_run_skips_what_cannot_be_played_and_says_why(monkeypatch, capsys, tmp_path):
    """A missing tool is no failure, and no row."""
    monkeypatch.setattr(run, "missing", lambda tool: f"no {tool} here" if tool else None)
    assert run.main(["--out", str(tmp_path), "wheel-size"]) == 0
    assert "wheel-size: skipped: no maturin here" in capsys.readouterr().err


@needs_compiler
def test_run_keeps_the_rows_beside_one_that_fails(monkeypatch, capsys, tmp_path):
    """A side that ends early costs its own row and the status, not what was measured in an hour before."""

    def measure(scenario, *_, **__):
        if scenario.name == "remap-64KiB":
            raise RuntimeError("it ended")
        return report.Row(scenario, [1.0] * 3, [1.0] * 3)

    monkeypatch.setattr(run, "measure", measure)
    assert run.main(["--out", str(tmp_path), "remap-"]) == 1
    assert "remap-64KiB: failed: it ended" in capsys.readouterr().err
    rows = json.loads(next(tmp_path.iterdir()).read_text())["rows"]
    assert [row["scenario"]["name"] for row in rows] == ["remap-2MiB", "remap-2MiB-thp"]


@needs_compiler
@pytest.mark.kernel
def test_run_saves_the_rows_of_the_calls_of_2014(tmp_path):
    """The file has each side's samples, and all that the name was made of."""
    run.main(["--rounds", "3", "--scale", "0.001", "--out", str(tmp_path), "flagged-source", "remap-64KiB", "switch-64GiB"])
    (path,) = tmp_path.iterdir()
    rows = json.loads(path.read_text())["rows"]
    assert [row["scenario"]["name"] for row in rows] == ["flagged-source", "remap-64KiB", "switch-64GiB"]
    assert all(len(row[side]) == 3 and min(row[side]) > 0 for row in rows for side in ("floor", "ours"))
    assert [row["scenario"]["bar"] or row["scenario"]["bar_us"] for row in rows] == [1.15, 1.15, 1000]


def test_run_lists_names(capsys):
    """The names are there to be chosen from."""
    assert run.main(["--list", "touch-4KiB"]) == 0
    assert capsys.readouterr().out.split() == ["touch-4KiB-random-signal", "touch-4KiB-random-thread"]
