"""The examples of README and docs run, page by page, as a reader would type them; the programs of examples/ have tests."""

import os
import re
import sys
from pathlib import Path

import pytest
from support.house import ROOT
from support.kernel import Kernel

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- not run: [^\n]* -->\n)?^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def script_of(page):
    """One Python program of all blocks of a page: shell blocks become calls of bash."""
    parts = []
    for skip, language, code in BLOCK.findall(page.read_text()):
        if skip:
            continue
        if language == "sh":
            code = f"__import__('subprocess').run(['bash', '-euo', 'pipefail', '-c', {code!r}], check=True)\n"
        parts.append(code)
    return "\n".join(parts)


@pytest.mark.parametrize("page", [page for page in PAGES if script_of(page)], ids=lambda page: page.stem)
@pytest.mark.parametrize("user", [None, "nobody"], ids=["as-we-are", "as-nobody"])
def test_examples_of_page_run(page, user, child, tmp_path):
    """Every block that is not marked as «not run» works, one after the other, without privileges too."""
    Kernel().need()
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    code = f"import os; os.chdir({str(tmp_path)!r})\n" + script_of(page)
    child(code, user=user, timeout=50, env={"PATH": path}, warnings=None).check()


def test_every_block_has_a_language():
    """A block without a language is never run, and nobody notices."""
    for page in PAGES:
        fences = re.findall(r"^```(\w*)$", page.read_text(), re.MULTILINE)
        assert [fence for fence in fences[::2] if fence not in {"python", "sh", "text", "c", "rust"}] in ([], [""])


@pytest.mark.parametrize("program", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_every_example_program_has_a_test_and_a_page(program):
    """A program that nothing runs is wrong before long, and one that no page names is never found."""
    tests = [path.read_text() for path in (ROOT / "tests" / "e2e").glob("test_example_*.py")]
    assert any(program.name in text for text in tests)
    assert any(f"examples/{program.name}" in page.read_text() for page in PAGES)
