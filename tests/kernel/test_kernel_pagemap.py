"""`userfault.kernel.scan`: page states and write tracking."""

from __future__ import annotations

import mmap
import os

import pytest

from userfault import kernel as uk

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]
PAGE = mmap.PAGESIZE


@pytest.fixture(autouse=True)
def scanning(kernel):
    """All of this needs PAGEMAP_SCAN."""
    kernel.need("pagemap_scan")


def private(pages: int) -> mmap.mmap:
    return mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def pages_of(memory: mmap.mmap, found: list[uk.PageRange]) -> list[int]:
    start, _ = uk.range_of(memory)
    return [(address - start) // PAGE for run in found for address in range(run.start, run.stop, PAGE)]


def test_scan_finds_present_pages_without_touching_any():
    """Absent pages stay absent."""
    memory = private(8)
    memory[2 * PAGE] = memory[3 * PAGE] = memory[6 * PAGE] = 1
    for _ in range(2):
        found = uk.scan(memory, all_of=uk.PageCategory.PRESENT)
        assert pages_of(memory, found) == [2, 3, 6]
        assert [run.bytes // PAGE for run in found] == [2, 1]


def test_scan_reports_exactly_what_was_written(kernel):
    """Protect, write, scan: the kernel notes the pages, and nobody gets a message."""
    kernel.need("write_tracking")
    memory = private(32)
    written = {"all_of": uk.PageCategory.WRITTEN, "report": uk.PageCategory.WRITTEN}
    with uk.Userfaultfd(uk.Features.WP_ASYNC, user_mode_only=True) as fd:
        fd.register(memory, uk.RegisterMode.WP)
        assert fd.write_protect(memory).done
        assert uk.scan(memory, **written) == []
        for page in (0, 7, 8, 31):
            memory[page * PAGE] = 1
        flags = uk.ScanFlags.WP_MATCHING | uk.ScanFlags.CHECK_WPASYNC
        assert pages_of(memory, uk.scan(memory, flags=flags, **written)) == [0, 7, 8, 31]
        memory[7 * PAGE] = 2
        assert pages_of(memory, uk.scan(memory, **written)) == [7]
        assert fd.read_events(timeout=0) == []


def test_scan_joins_runs_across_calls():
    """More runs than one system call returns come out whole and in order."""
    memory = private(3000)
    for page in range(0, 3000, 2):
        memory[page * PAGE] = 1
    assert pages_of(memory, uk.scan(memory, all_of=uk.PageCategory.PRESENT)) == list(range(0, 3000, 2))


def test_scan_stops_after_max_pages():
    """The bound holds over all calls."""
    memory = private(8)
    memory[:] = b"x" * len(memory)
    found = uk.scan(memory, all_of=uk.PageCategory.PRESENT, max_pages=5)
    assert pages_of(memory, found) == [0, 1, 2, 3, 4]


def test_scan_refuses_bad_arguments_with_the_errno():
    """The kernel's word, as an exception."""
    memory = private(1)
    start, length = uk.range_of(memory)
    with pytest.raises(OSError, match="PAGEMAP_SCAN"):
        uk.scan((start + 1, length))
    with pytest.raises(PermissionError):
        uk.scan(memory, flags=uk.ScanFlags.CHECK_WPASYNC | uk.ScanFlags.WP_MATCHING)
    with pytest.raises(FileNotFoundError):
        uk.scan(memory, pid=2**31 - 1)


def test_scan_of_a_named_process_is_the_same():
    """Our own pid is a process like any other."""
    memory = private(4)
    memory[PAGE] = 1
    assert uk.scan(memory, pid=os.getpid()) == uk.scan(memory)
