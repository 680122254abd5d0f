"""The suite's own fixtures keep their promises."""

import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
from support.child import BECOME, run_command


def test_child_prints_and_exits_returns_both(child):
    """Output, arguments, input and status of a child come back."""
    result = child(
        "import sys; print(sys.argv[1:], sys.stdin.read()); print('talk', file=sys.stderr); sys.exit(3)",
        args=["a", "b c"],
        stdin="given",
    )
    assert (result.returncode, result.signal, result.timed_out) == (3, None, False)
    assert result.stdout == "['a', 'b c'] given\n"
    assert result.stderr == "talk\n"


def test_child_dies_by_signal_names_it(child):
    """A deadly signal is told apart from an exit status."""
    result = child("import os; os.kill(os.getpid(), 7)")
    assert (result.returncode, result.signal) == (None, signal.SIGBUS)


def test_child_hangs_is_killed_with_its_children(child):
    """The time limit ends the whole group."""
    code = """
        import os, subprocess, sys, time
        grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(grandchild.pid, flush=True)
        time.sleep(600)
        """
    result = child(code, timeout=2, may_time_out=True)
    assert result.timed_out
    assert result.signal == signal.SIGKILL
    assert ended(int(result.stdout))


def test_child_hangs_fails_the_test(child):
    """Without `may_time_out` a hang is a failure that shows what was printed."""
    with pytest.raises(pytest.fail.Exception, match="did not end within"):
        child("import time; print('so far', flush=True); time.sleep(600)", timeout=0.5)


def test_child_function_runs_its_source(child):
    """A function is shipped by its source."""

    def story():
        import os

        print(os.environ.get("USERFAULT_STORY"))

    assert child(story, env={"USERFAULT_STORY": "told"}).check().stdout == "told\n"


@pytest.mark.parametrize("ending", ["pass", "import os; os.kill(os.getpid(), 9)"])
def test_what_a_child_put_into_temporary_files_goes_with_it(child, ending):
    """However it ended."""
    result = child(f"import tempfile; print(tempfile.mkdtemp(), tempfile.mkstemp()[1], flush=True); {ending}")
    folder, file = map(Path, result.stdout.split())
    assert not folder.parent.exists()
    assert folder.parent == file.parent != Path(tempfile.gettempdir())


def test_as_nobody_imports_numpy_with_no_privilege(as_nobody):
    """The other user's process has the same interpreter and packages, and no capabilities."""
    code = """
        import os
        import numpy
        status = open("/proc/self/status").read()
        print(os.geteuid() != 0, [line.split()[1] for line in status.splitlines() if line.startswith("CapEff")])
        print(len(os.listdir("/proc/self/fd")) > 0)
        """
    assert as_nobody(code).check().stdout == "True ['0000000000000000']\nTrue\n"


def test_folder_guard_all_skipped_fails(pytester_lite):
    """A folder whose tests were all skipped fails the session; one test that ran is enough to pass."""
    skipped = "import pytest\n@pytest.mark.skip(reason='no')\ndef test_a(): pass\n"
    assert pytester_lite({"unit/test_a.py": skipped}) == pytest.ExitCode.TESTS_FAILED
    assert pytester_lite({"unit/test_a.py": skipped + "def test_b(): pass\n"}) == pytest.ExitCode.OK


@pytest.fixture
def pytester_lite(tmp_path):
    """Run a small suite with this suite's conftest in another process, and give its exit status."""

    def run(files):
        suite = tmp_path / "tests"
        shutil.copytree(BECOME.parent, suite / "support", dirs_exist_ok=True)
        shutil.copy(BECOME.parent.parent / "conftest.py", suite)
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        for name, text in files.items():
            (suite / name).parent.mkdir(exist_ok=True)
            (suite / name).write_text(text)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--fail-if-folder-skipped", "tests"]
        result = run_command(command, timeout=60, cwd=tmp_path, env={"PYTHONPATH": None})
        print(result.talk())
        return result.returncode

    return run


def ended(pid):
    """Wait up to two seconds for a process that is no child of ours to be gone or a zombie."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state in "ZX":
            return True
        time.sleep(0.01)
    return False
