"""The command line as a user meets it."""

import json
import shutil
import subprocess
import sys

import pytest
from support.child import run_command

from userfault.cli import VERBS


def userfault(*arguments, timeout=30, **options):
    return run_command([sys.executable, "-m", "userfault", *arguments], timeout=timeout, **options)


def test_help_names_every_verb_on_stdout():
    """`userfault --help` is data, and complete."""
    result = userfault("--help")
    assert result.returncode == 0
    assert result.stderr == ""
    assert all(verb in result.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_verb_help_has_example_and_json(verb):
    """Each verb explains itself with an example, and can print JSON."""
    result = userfault(verb, "--help")
    assert result.returncode == 0, result.talk()
    assert f"userfault {verb}" in result.stdout.split("Example: ")[1]
    assert "--json" in result.stdout


@pytest.mark.parametrize("arguments", [["nonsense"], ["completion"], ["completion", "csh"], ["completion", "--what"]])
def test_wrong_usage_is_status_2_with_hint(arguments):
    """A mistake in the call is a line and a hint, never a traceback."""
    result = userfault(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "hint: " in result.stderr
    assert "Traceback" not in result.stderr


def test_verb_imports_only_its_module(child):
    """Starting one verb costs one verb."""
    code = """
        import sys
        from userfault.cli import main
        try:
            main(["completion", "--help"], prog_name="userfault")
        except SystemExit as end:
            assert end.code == 0
        loaded = sorted(name for name in sys.modules if name.startswith("userfault.cli."))
        assert loaded == ["userfault.cli.common", "userfault.cli.completion"], loaded
        assert "numpy" not in sys.modules
        assert "rich" not in sys.modules
        """
    child(code).check()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_is_printed(shell):
    """Each shell has its script, as text and as JSON."""
    script = userfault("completion", shell).stdout
    assert "_USERFAULT_COMPLETE" in script
    assert json.loads(userfault("completion", shell, "--json").stdout)["script"] in script


def test_environment_gives_options():
    """What the help promises: each option has a name in the environment."""
    result = userfault("completion", "zsh", env={"USERFAULT_COMPLETION_JSON": "1"})
    assert json.loads(result.stdout)["schema"] == 1


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_completion_offers_verbs():
    """Pressing Tab after `userfault in` offers `inspect`."""
    asked = {"_USERFAULT_COMPLETE": "bash_complete", "COMP_WORDS": "userfault in", "COMP_CWORD": "1"}
    code = "from userfault.cli import main; main(prog_name='userfault')"
    result = run_command([sys.executable, "-c", code], timeout=30, env=asked)
    assert result.stdout.split() == ["plain,inspect"]


def test_man_writes_page_per_verb(tmp_path):
    """The man pages come from the same words as the help."""
    pytest.importorskip("click_man")
    result = userfault("man", str(tmp_path))
    assert result.returncode == 0, result.talk()
    assert {page.name for page in tmp_path.iterdir()} == {
        "userfault.1",
        *(f"userfault-{verb}.1" for verb in VERBS),
    }
    assert "Example: userfault man" in (tmp_path / "userfault-man.1").read_text()


def test_closed_reader_is_no_error():
    """``userfault completion bash | true`` ends without a word."""
    command = f"{sys.executable} -m userfault completion bash | true"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=False)
    assert result.stderr == ""
