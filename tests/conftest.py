"""Fixtures of the whole suite: children with a deadline, kernel skips, and a guard against skipped folders.

A test that touches lazy memory does it in a child: a page that never comes stops the toucher inside a load, where no
Python time limit can reach it. The parent kills the child's whole process group when the time is up.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from support.child import ChildResult, run_child, why_no_user
from support.kernel import Kernel

__all__ = ["ChildResult"]

ROOM_OF_TESTS = os.path.dirname(os.path.abspath(__file__))
sys.path.append(os.path.dirname(ROOM_OF_TESTS))  # for the package `bench`


@pytest.fixture
def child():
    """Run Python code in a child process: ``child(code, timeout=20, user=None, env=None, args=()) -> ChildResult``."""
    return run_child


@pytest.fixture
def memory_limit():
    """A memory cgroup without a limit yet, a `userfault.testing.MemoryGroup`; a child joins it by writing to its cgroup.procs."""
    testing = pytest.importorskip("userfault.testing")
    try:
        with testing.memory_group() as group:
            yield group
    except OSError as error:
        pytest.skip(str(error))


@pytest.fixture
def as_nobody():
    """The same as `child`, in a process that is the user nobody; skipped where that cannot be arranged."""
    reason = why_no_user("nobody")
    if reason:
        pytest.skip(reason)

    def run(code, **options) -> ChildResult:
        return run_child(code, user="nobody", **options)

    return run


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    """What the kernel permits here: ``kernel.need("move")`` skips with the reason that was found by trying."""
    found = Kernel()
    found.need()
    return found


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fail-if-folder-skipped",
        action="store_true",
        help="fail when every test of a folder below tests/ was skipped: nothing was proven there",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--fail-if-folder-skipped"):
        config.pluginmanager.register(FolderGuard(config), "folder-guard")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the `slow` long forms only when the markers of the command line name them."""
    if "slow" in (config.getoption("markexpr") or ""):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="long form: ask for it with -m slow"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs to be root")
    if item.get_closest_marker("kernel"):
        Kernel().need()


class FolderGuard:
    """Counts outcomes by the first folder below tests/, and fails the session where all of one were skipped."""

    def __init__(self, config: pytest.Config) -> None:
        self.root = str(config.rootpath)
        self.ran: dict[str, int] = {}
        self.skipped: dict[str, int] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        folder = self.folder_of(report.nodeid)
        if report.skipped:
            self.skipped[folder] = self.skipped.get(folder, 0) + 1
        elif report.when == "call":
            self.ran[folder] = self.ran.get(folder, 0) + 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            folder = self.folder_of(report.nodeid)
            self.skipped[folder] = self.skipped.get(folder, 0) + 1

    def folder_of(self, nodeid: str) -> str:
        path = os.path.join(self.root, nodeid.split("::")[0])
        return os.path.relpath(path, ROOM_OF_TESTS).split(os.sep)[0]

    def empty_folders(self) -> list[str]:
        return sorted(folder for folder in self.skipped if not self.ran.get(folder))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.empty_folders() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(wrapper=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
        result = yield
        for folder in self.empty_folders():
            terminalreporter.write_line(
                f"error: all {self.skipped[folder]} tests of tests/{folder} were skipped: nothing was proven there",
                red=True,
            )
        return result
