"""The tracked text speaks of the project alone, and keeps its size."""

import os
import re
import sys
from pathlib import Path

import pytest
from support.house import ROOT, tracked_files

LONGEST = 450
GENERATED = {"Cargo.lock", "LICENSE"}


def texts():
    for path in tracked_files():
        try:
            yield path, path.read_text()
        except UnicodeDecodeError:
            continue


def machine_paths():
    """Where this checkout, this user and this interpreter live, if that says anything about the machine."""
    places = {str(ROOT), str(Path.home()), os.path.expanduser("~"), sys.base_prefix, sys.prefix, str(ROOT.parent) + "/"}
    usual = {"/", "//", "/usr", "/usr/local", "/home", "/tmp", "/tmp/", "/opt", "/nonexistent"}
    return sorted(place for place in places - usual if not place.startswith("/usr/"))


@pytest.mark.parametrize("place", machine_paths())
def test_no_file_names_a_path_of_this_machine(place):
    """What is committed works elsewhere."""
    pattern = re.compile(re.escape(place) + (r"(?![\w-])" if place[-1] != "/" else ""))
    assert [str(path.relative_to(ROOT)) for path, text in texts() if pattern.search(text)] == []


def test_no_file_is_long():
    """One idea in each file."""
    sources = [(path, text) for path, text in texts() if path.suffix in {".py", ".rs", ".c", ".h", ".sh", ".md"}]
    longest = {str(path.relative_to(ROOT)): text.count("\n") for path, text in sources if path.name not in GENERATED}
    assert {name: lines for name, lines in longest.items() if lines > LONGEST} == {}


def test_links_in_pages_lead_somewhere():
    """A page names only files that are there."""
    for path, text in texts():
        if path.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name} leads to {target}"


def test_pages_that_are_named_exist():
    """A comment that leads to a page leads to one of this project."""
    names = {path.name for path in tracked_files()}
    lost = {
        f"{path.relative_to(ROOT)}: {page}"
        for path, text in texts()
        for page in re.findall(r"\b([\w-]+\.md)\b", text)
        if page not in names
    }
    assert lost == set()
