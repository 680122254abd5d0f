"""The comparison with rivals: turns, verdicts, the page. Nothing is measured here."""

import json
import re
from html.parser import HTMLParser

import pytest
from bench import measured

from userfault.rivals import contenders, page, plots
from userfault.rivals.contenders import CONTENDERS, GROUPS, MEASURES
from userfault.rivals.figures import quartiles, take_turns
from userfault.rivals.playing import Failed, samples_of
from userfault.rivals.results import Cell, Results, ScaleCell
from userfault.rivals.verdicts import factor, fault_verdict, least_of, verdict, verdicts, when_not_to_use_it

MACHINE = {"cpu": "a <fast> one", "cpus": 2, "memory_bytes": 1 << 30, "kernel": "6.8", "python": "3.11", "load": 0.5}
BY_NAME = {one.name: one for one in CONTENDERS}
ELEMENT = MEASURES[0]


def results_of(cells, scale=()):
    return Results("2026-01-01", 8 << 20, 3, MACHINE, {"zarr": None}, list(cells), list(scale))


def full_results(times=None, reasons=None):
    """A number for everybody, or a reason."""
    times, reasons = times or {}, reasons or {}
    cells = [
        Cell(one.name, asked.key, reason=reasons[one.name])
        if one.name in reasons
        else Cell(one.name, asked.key, [value * times.get(one.name, 1.0) for value in (1.0, 1.1, 1.2)])
        for one in CONTENDERS
        for asked in MEASURES
    ]
    scale = [
        ScaleCell(one.name, span, threads, [1e-6 * threads, 2e-6, 3e-6])
        for one in contenders.FAULTING
        for span in contenders.SPANS
        for threads in contenders.THREADS
    ]
    return results_of(cells, scale)


def test_turns_are_fair_and_the_first_round_is_dropped():
    """Everybody plays in every round, another one begins each time, and the warm-up counts for nothing."""
    played = []
    kept = take_turns("abc", lambda side, number: played.append((number, side)) or (number, side), 3)
    assert kept == [[(number, side) for number in (1, 2, 3)] for side in "abc"]
    rounds = ["".join(side for number, side in played if number == one) for one in range(4)]
    assert rounds == ["abc", "bca", "cab", "abc"]
    assert take_turns("ab", lambda side, number: number, 1, warm_up=False) == [[1], [1]]


@pytest.mark.parametrize(("samples", "expected"), [([3.0], (3, 3, 3)), ([1.0, 2.0], (1.25, 1.5, 1.75)), ([5, 1, 3], (2, 3, 4))])
def test_quartiles_lie_within_what_was_measured(samples, expected):
    """None is extrapolated, and one sample is its own quartiles."""
    assert quartiles(samples) == expected


def test_contenders_have_distinct_names_and_known_families():
    """A name means one contender, and whoever wins has an advice to go with it."""
    assert len(BY_NAME) == len(CONTENDERS)
    assert {one.family for one in CONTENDERS} == set(contenders.ADVICE)
    assert {one.group for one in CONTENDERS} == set(GROUPS)
    assert all(advice for family, advice in contenders.ADVICE.items() if family != "userfault")


def test_results_survive_json_and_file(tmp_path):
    """What is saved is what was measured."""
    made = full_results(reasons={"eager zstd": "not here"})
    made.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == made
    assert json.loads((tmp_path / "results.json").read_text())["schema"] == 1


def test_verdict_names_the_rival_that_wins_and_says_when_to_use_it():
    """The advice of the family goes with the numbers of both."""
    judged = verdict(full_results({"blosc2 lz4, 2MiB": 1 / 30}), ELEMENT, str(2 << 20))
    assert judged.outcome == "rival"
    assert judged.sentence.startswith("blosc2 lz4, 2MiB: 36.7ms, 30 times less than userfault")
    assert contenders.ADVICE["blosc2"] in judged.sentence


def test_verdict_is_level_where_spreads_overlap():
    """A difference within the spread is none."""
    judged = verdict(full_results({"blosc2 lz4, 2MiB": 0.99}), ELEMENT, str(2 << 20))
    assert judged.outcome == "level"
    assert "level" in judged.sentence


def test_verdict_for_us_needs_no_advice():
    """Where we win, it says so; a group without us is compared with our best compressed file."""
    results = full_results({"userfault zstd, signal, 64KiB": 0.1})
    assert verdict(results, ELEMENT, str(64 << 10)).sentence == "userfault zstd, signal, 64KiB: 110ms, the least."
    eager = verdict(results, ELEMENT, "0")
    assert eager.outcome == "userfault"
    assert eager.sentence == "userfault zstd, signal, 64KiB: 110ms, less than eager zstd: 1.1s."


def test_verdict_without_numbers_is_none_or_alone():
    """Who did not run wins nothing."""
    ours = {one.name: "refused" for one in CONTENDERS if one.family == "userfault"}
    assert verdict(full_results(reasons=ours), ELEMENT, "raw").outcome == "alone"
    assert verdict(full_results(reasons=dict.fromkeys(BY_NAME, "refused")), ELEMENT, "raw") is None


def test_sentences_of_defeat_come_from_the_numbers_alone():
    """They are there if a rival is quicker, and gone if it is not."""
    (line,) = when_not_to_use_it(full_results({"np.memmap": 0.01}))
    assert line.startswith("The raw file, in the page cache: random element 11ms with np.memmap, ours 1.1s; strided column")
    assert line.endswith(f"So {contenders.ADVICE['kernel']}.")
    assert when_not_to_use_it(full_results()) == []
    assert len(verdicts(full_results())) == len(GROUPS) * len(MEASURES)


def test_equal_is_level():
    """Nobody wins who is no better."""
    assert verdict(full_results(), ELEMENT, "raw").outcome == "level"


def test_faults_have_a_winner_in_each_case():
    """The least median for each span and number of threads, counted, with the advice of the family."""
    cells = [
        ScaleCell("mmap, MADV_RANDOM", 1, 1, [1e-6]),
        ScaleCell("userfault, thread, 4KiB", 1, 1, [2e-6]),
        ScaleCell("mmap, MADV_RANDOM", 1, 2, reason="not here"),
        ScaleCell("userfault, thread, 4KiB", 1, 2, [2e-6]),
    ]
    assert least_of(cells) == [cells[0], cells[3]]
    first, second = fault_verdict(cells).split("; ")
    assert first == f"mmap, MADV_RANDOM has the least in 1 of 2: {contenders.ADVICE['kernel']}"
    assert second == "userfault, thread, 4KiB has the least in 1 of 2."
    assert fault_verdict([]) == "Nothing could be measured."


@pytest.mark.parametrize(("ratio", "words"), [(1.25, "20%"), (2.0, "2.0 times"), (154.3, "154 times")])
def test_factor_in_words(ratio, words):
    assert factor(ratio) == words


def test_one_failed_round_leaves_no_number():
    """A contender that was wrong once is wrong."""
    answers = [{"scan": 1.0}, Failed("wrong answer: 1 instead of 2", wrong=True)]
    assert samples_of(answers, "scan") == {"reason": "wrong answer: 1 instead of 2", "wrong": True}
    assert samples_of(answers[:1], "scan") == {"samples": [1.0]}


class Page(HTMLParser):
    """Notes what is open, what a browser would load, and what it would run."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.tags, self.places, self.links = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data") and value[0] != "#"]
        self.places += [value for name, value in attrs if name == "id"]
        self.links += [value[1:] for name, value in attrs if name == "href"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"


def test_page_is_well_formed_and_loads_nothing():
    """Every element is closed in order; nothing is fetched or run; text of others is escaped."""
    text = page.page_of(full_results(reasons={"eager zstd": "<script>"}))
    parsed = Page(text)
    assert parsed.open == []
    assert parsed.loads == []
    assert parsed.links
    assert set(parsed.links) <= set(parsed.places)
    assert "script" not in parsed.tags
    assert not re.search(r"https?://|url\(|@import", text)
    assert "a &lt;fast&gt; one" in text
    assert "$" not in text


def test_page_shows_every_number_or_its_reason():
    """Each contender is in each measure's table, with its median or why there is none."""
    text = page.page_of(full_results(reasons={"h5py gzip, 2MiB": "h5py is not installed"}))
    for name in BY_NAME:
        assert text.count(f'<td class="name">{name}') == len(MEASURES), name
    assert text.count("h5py is not installed") == len(MEASURES)
    assert text.count("&#9733;</td>") == len(GROUPS) * len(MEASURES)


def test_page_says_errors_aloud():
    """A wrong answer is above everything else."""
    wrong = Cell("np.memmap", "scan", reason="wrong answer: 1 instead of 2", wrong=True)
    results = results_of([wrong])
    assert results.errors == ["np.memmap: wrong answer: 1 instead of 2"]
    text = page.page_of(results)
    assert text.index("Error: np.memmap: wrong answer") < text.index("<h2>")
    assert "Not measured." in text


def test_bars_and_lines_stay_inside():
    """The least and the greatest value have a place, and order is kept."""
    scale = plots.LogScale([1e-6, 1e-3, 2.0])
    places = [scale.place(value) for value in (1e-6, 1e-3, 2.0)]
    assert 0 < places[0] < places[1] < places[2] < 1
    assert all(1e-7 < tick <= 10 for tick in scale.ticks)
    assert plots.lines("a figure", {"one": []}, "below").count("Nothing could be measured") == 1


def test_paragraph_is_replaced_between_its_marks():
    """What people wrote around it stays."""
    before = f"above\n{measured.BEGIN}old\n{measured.END}below\n"
    after = measured.with_paragraph(before, full_results({"np.memmap": 0.01}))
    assert after.startswith("above\n")
    assert after.endswith(f"{measured.END}below\n")
    assert "old" not in after
    assert "11ms with np.memmap" in after


def test_readme_says_what_was_measured():
    """Its sentences are made of the kept run, never written by hand."""
    text = measured.README.read_text()
    assert measured.with_paragraph(text, Results.load(measured.KEPT)) == text
