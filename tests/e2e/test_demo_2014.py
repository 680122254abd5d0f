"""`userfault demo 2014` uses the three calls, counts what they did, and leaves out what is not permitted."""

import json
import sys

import pytest
from support.child import run_command

pytest.importorskip("userfault.mman")

DEMO = [sys.executable, "-m", "userfault", "demo", "2014"]
ALL = ["touch of flagged memory", "touch of registered memory", "read(2) into registered memory"]


def check_rows(data, names):
    """Every absent page that was used came, once or (two waiters, or one that asked twice) a little oftener."""
    assert [row["what"] for row in data["rows"]] == names
    for row in data["rows"]:
        assert 200 < row["pages"] <= row["calls"] <= row["pages"] * 2, row
        assert 0 < row["seconds_per_touch"] < 1
    assert "no userfaultfd" in data["after_close"]


@pytest.mark.kernel
def test_demo_2014_uses_all_three_calls():
    """Flag and signal, descriptor with a system call, close: what each did is data."""
    result = run_command([*DEMO, "--json"], timeout=40)
    assert result.returncode == 0, result.talk()
    data = json.loads(result.stdout)
    if data["left_out"]:
        pytest.skip(data["left_out"][0]["why"])
    check_rows(data, ALL)
    assert data["rows"][0]["pages"] == data["rows"][0]["calls"], "the function ran for a page that was there"


@pytest.mark.kernel
def test_demo_2014_prints_a_table():
    """The same for people: a line for each use, and what came of the close."""
    result = run_command(DEMO, timeout=40)
    assert result.returncode == 0, result.talk()
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["answered", "by", "pages", "calls", "per", "touch"]
    assert all(any(line.startswith(name) for line in lines) for name in ALL[:2])
    assert "UserFault" in lines[-1]


@pytest.mark.kernel
def test_demo_2014_without_faults_of_system_calls_says_what_it_left_out(as_nobody):
    """An ordinary user has the touches, by signal and by descriptor; read(2) is named, with the reason."""
    code = """
        import sys
        from userfault.cli import main
        main(["demo", "2014", *sys.argv[1:]], prog_name="userfault")
        """
    data = json.loads(as_nobody(code, args=("--json",), timeout=40).check().stdout)
    if not data["left_out"]:
        pytest.skip("this kernel lets everybody serve faults of system calls")
    check_rows(data, ALL[:2])
    assert data["left_out"][0]["what"] == "read(2) into absent pages"
    assert "not permitted" in data["left_out"][0]["why"]
    assert as_nobody(code, timeout=40).check().stderr.startswith("left out: read(2) into absent pages: ")


def test_demo_2014_refused_altogether_is_status_3(child):
    """Where nobody may have a userfaultfd, that is an error with a hint, not a bug."""

    def code():
        from userfault import mman
        from userfault.cli import main
        from userfault.errors import RefusedError

        def refuse(*_arguments, **_named):
            raise RefusedError(1, "userfaultfd is not permitted here")

        mman.madvise = refuse
        main(["demo", "2014"], prog_name="userfault")

    result = child(code)
    assert result.returncode == 3, result.talk()
    assert result.stderr.startswith("error: ")
    assert "userfaultfd is not permitted here" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", [["--size", "4MiB"], ["--fresh"], ["2015"]])
def test_demo_2014_with_what_does_not_go_with_it_is_wrong_usage(arguments):
    """Its numbers are fixed: an option of the other demo would be ignored, so it is refused."""
    result = run_command([*DEMO, *arguments], timeout=20)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "hint: userfault demo --help" in result.stderr
