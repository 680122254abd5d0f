"""Every way in which the kernel touches memory for a process, on an absent page: served, or failing as documented."""

from __future__ import annotations

import json
import signal

import pytest

from kernel import accesses_middle
from kernel.accesses_region import expected_of
from kernel.accesses_table import KILLED, KINDS, TABLE, Seen, expected

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("access", TABLE, ids=lambda access: access.name)
def test_access_of_an_absent_page_ends_as_documented(child, tmp_path, access, kind):
    """Served with the right bytes, or refused without a message and without a page."""
    code = "import sys; from kernel.accesses_table import report; report(*sys.argv[1:])"
    result = child(code, args=(access.name, kind), timeout=15, cwd=tmp_path)
    if access.ending(kind) == KILLED:
        assert result.signal == signal.SIGBUS, result.talk()
        return
    found = Seen(**json.loads(result.check().stdout))
    if found.lacking:
        pytest.skip(found.lacking)
    assert found == expected(access, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_call_over_three_pages_of_which_the_middle_is_bad_does_what_it_can(child, kernel, tmp_path, kind):
    """A short count, from most; sockets and O_DIRECT fail as a whole; what was done is right."""
    kernel.need("poison")
    code = "import sys; from kernel.accesses_middle import report; report(sys.argv[1])"
    found, lacking = json.loads(child(code, args=(kind,), cwd=tmp_path).check().stdout)
    if not found:
        pytest.skip(f"{lacking}")
    assert found == accesses_middle.expected(kind, set(lacking))


@pytest.mark.parametrize("delivery", ["thread", "signal"])
def test_accesses_of_a_region_end_like_those_of_its_kind_of_descriptor(child, tmp_path, delivery):
    """Thread delivery serves what a normal descriptor can; signal delivery what the CPU touches, and no process dies."""
    code = "import sys; from kernel.accesses_region import report; report(sys.argv[1])"
    result = child(code, args=(delivery,), cwd=tmp_path, timeout=50, warnings="ignore").check()
    lines = dict(line.split(" ", 1) for line in result.stdout.splitlines())
    found = {name: Seen(**json.loads(text)) for name, text in lines.items()}
    assert set(found) == {access.name for access in TABLE}
    tried = {name: one for name, one in found.items() if not one.lacking}
    if not tried:
        pytest.skip(found["load"].lacking)
    assert tried == {access.name: expected_of(access, delivery) for access in TABLE if access.name in tried}


def test_file_behind_a_shared_region_is_read_without_faults(child):
    """sendfile and pread of the memory file see holes as zeros: a file is not the mapping."""

    def code():
        import os

        import userfault as uf

        with uf.map(b"x" * 8192, shared=True, on_error="abort", unit=4096) as region:
            region.populate(slice(0, 4096))
            out, into = os.pipe()
            assert os.sendfile(into, region.fileno(), 0, 8192) == 8192
            assert os.read(out, 8192) == b"x" * 4096 + bytes(4096)
            assert region.statistics().faults == 0
            assert os.pread(region.fileno(), 10, 4096) == bytes(10)
            assert region.read(4096, 10) == b"x" * 10

    child(code).check()
