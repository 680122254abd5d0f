"""`userfault bench --report` from its processes to a picture of its page. Times are not judged here."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.child import run_command
from support.house import ROOT

from userfault.rivals import playing
from userfault.rivals.child import measure, ways
from userfault.rivals.contenders import CONTENDERS, FAULTING, MEASURES, Contender, chosen
from userfault.rivals.results import Results

BLOCK = 8 << 20
BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


FEWER = ("np.memmap", "mmap", "64KiB", "4KiB", "huge", "eager")
"""Of every kind, without the same again in larger pieces."""


def short_report(folder, only=()):
    """Have a short run write its report."""
    command = [sys.executable, "-m", "userfault", "bench", "--report", str(folder), "--short", "--json"]
    result = run_command([*command, *(word for text in only for word in ("--only", text))], timeout=280)
    assert result.returncode == 0, result.talk()
    assert json.loads(result.stdout)["page"] == str(folder / "index.html")
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What one short run wrote, of all who can run here."""
    return short_report(tmp_path_factory.mktemp("report"), FEWER)


def check_shape(results, contenders, faulting):
    """Each measure of each contender has a number, or a reason that is no error; the kernel's way and ours always run."""
    assert results.errors == []
    assert len(results.cells) == len(contenders) * len(MEASURES)
    assert len(results.scale) == len(faulting) * 2
    for cell in [*results.cells, *results.scale]:
        assert bool(cell.samples) != bool(cell.reason), cell
        assert all(sample > 0 for sample in cell.samples)
    for name in ("np.memmap", "userfault zstd, thread, 64KiB"):
        assert all(results.cell(name, asked.key).samples for asked in MEASURES)


@pytest.mark.kernel
@pytest.mark.timeout(300)
def test_short_report_has_a_number_or_a_reason_for_everything(report):
    """Nothing is left out without a word, and the file says all."""
    results = Results.load(report / "results.json")
    check_shape(results, chosen(CONTENDERS, FEWER), chosen(FAULTING, FEWER))
    assert Results.from_data(json.loads(json.dumps(results.to_data()))) == results
    assert results.versions["numpy"]


@pytest.mark.slow
@pytest.mark.kernel
@pytest.mark.timeout(300)
def test_report_of_everybody(tmp_path):
    """The same without leaving anybody out."""
    check_shape(Results.load(short_report(tmp_path) / "results.json"), CONTENDERS, FAULTING)


@pytest.mark.kernel
@pytest.mark.timeout(300)
def test_report_can_be_drawn_again(report, tmp_path):
    """The page is made of the file alone."""
    command = [sys.executable, "-m", "userfault", "bench", "--report", str(tmp_path), "--from", str(report / "results.json")]
    result = run_command(command, timeout=30)
    assert result.returncode == 0, result.talk()
    assert "np.memmap" in result.stdout
    assert (tmp_path / "index.html").read_text() == (report / "index.html").read_text()


@pytest.mark.kernel
@pytest.mark.timeout(300)
@pytest.mark.skipif(not BROWSER, reason="no chromium to look at the page with")
@pytest.mark.parametrize("width", [1280, 390])
def test_page_fills_a_browser_window(report, tmp_path, width):
    """It is drawn with its colours, and nothing hangs over the right edge."""
    image = pytest.importorskip("matplotlib.image")
    picture = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},4000"]
    command = [BROWSER, *options, f"--user-data-dir={tmp_path}/profile", f"--screenshot={picture}", f"file://{report}/index.html"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    pixels = (image.imread(picture)[..., :3] * 255).round().astype(int)
    assert pixels.shape == (4000, width, 3)
    drawn = (pixels != pixels[0, 0]).any(axis=2)
    assert drawn[:, : width - 8].any(axis=1).sum() > 1000, "an empty page"
    assert not drawn[:, width - 8 :].any(), "something is wider than the window"
    assert (pixels == (0x00, 0x72, 0xB2)).all(axis=2).any(), "no bar of ours"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--short"],
        ["--report", "x", "--size", "5MiB"],
        ["--report", "x", "--only", "nobody"],
        ["--report", "x", "--from", str(ROOT / "bench" / "speed.json")],
        ["--report", "x", "--from", str(ROOT / "README.md")],
        ["--report", "x", "--from", str(ROOT / "bench" / "speed.json"), "--rounds", "3"],
    ],
)
def test_wrong_usage_is_told(arguments, tmp_path):
    """What cannot be measured is refused before anything is written."""
    result = run_command([sys.executable, "-m", "userfault", "bench", *arguments], timeout=30, cwd=tmp_path)
    assert result.returncode == 2, result.talk()
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def table(tmp_path):
    """The files of a short form."""
    return playing.Table(tmp_path, BLOCK, playing.SHORT, lambda text: None)


def test_wrong_answer_is_an_error(table, tmp_path):
    """Who sees other bytes than there are has no number, and the run fails."""
    memmap = Contender("np.memmap", "kernel", "memmap")
    assert table.play(memmap, "scan")["scan"] > 0
    with open(tmp_path / ways.RAW, "r+b") as file:
        file.seek(4096)
        file.write(b"\x01")
    found = table.play(memmap, "scan")
    assert isinstance(found, playing.Failed)
    assert found.wrong
    assert found.reason.startswith("wrong answer: ")


def test_missing_rival_is_a_reason_not_an_error(table, tmp_path, monkeypatch):
    """Its row says what to install."""
    (tmp_path / "blind").mkdir()
    (tmp_path / "blind" / "blosc2.py").write_text("raise ModuleNotFoundError('hidden', name='blosc2')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "blind"))
    cells = table.compare([Contender("blosc2", "blosc2", "blosc2", 64 << 10, {"codec": "lz4"})])
    assert {cell.reason for cell in cells} == {"blosc2 is not installed: pip install 'userfault[bench]'"}
    assert not any(cell.wrong for cell in cells)


def test_crash_is_an_error_with_its_last_line(table):
    """A contender that dies says why."""
    found = table.play(Contender("nobody", "kernel", "no such way"), "scan")
    assert (found.wrong, found.reason) == (True, "KeyError: 'no such way' (scan)")


def test_child_that_does_not_end_is_ended(table, monkeypatch):
    """A rival that hangs costs its time limit, not the run."""
    monkeypatch.setattr(playing, "PATIENCE_SECONDS", 0.0)
    found = table.play(Contender("np.memmap", "kernel", "memmap"), "scan")
    assert found.wrong
    assert "did not end" in found.reason


def test_rival_is_measured_without_us():
    """Nothing that a rival's process loads is ours."""
    folder = Path(measure.__file__).parent
    for path in folder.glob("*.py"):
        imports = [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert not any("userfault" in line for line in imports), path.name


def test_elements_lie_in_distinct_stretches():
    """Each is the first of its 2 MiB, whoever cuts the array how."""
    places = measure.places((256, 8192), seed=3)
    stretches = [row // measure.ELEMENT_STEP_ROWS for row, _ in places]
    assert stretches[0] == 0
    assert sorted(stretches) == list(range(4))
    assert measure.places((256, 8192), 3) == places != measure.places((256, 8192), 4)


@pytest.mark.kernel
@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_report_that_is_killed_leaves_nothing(tmp_path, number):
    """No files, no processes; and it ends by the signal, as everybody does."""
    (tmp_path / "files").mkdir()
    command = [sys.executable, "-m", "userfault", "bench", "--report", str(tmp_path / "report"), "--short"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "files")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        while not (children := [child for child in children_of(process.pid) if is_measuring(child)]):
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(20) == -number
    finally:
        process.kill()
        process.wait()
    assert list((tmp_path / "files").iterdir()) == []
    end = time.monotonic() + 10
    while any(is_measuring(child) for child in children):
        assert time.monotonic() < end
        time.sleep(0.01)


def is_measuring(pid):
    """Not one that is not yet what it will be: whom its parent starts just then, it does not know."""
    try:
        return b"measure.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def children_of(pid):
    """Those of its only thread that is to have any."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
