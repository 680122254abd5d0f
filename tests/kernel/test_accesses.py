"""Every way in which the kernel touches memory for a process, on an absent page: served, or failing as documented."""

from __future__ import annotations

import json
import signal

import pytest

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
