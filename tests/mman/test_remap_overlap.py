"""remap_anon_pages within one mapping, from a range to another that has pages in common with it."""

from __future__ import annotations

import errno
import sys

import pytest

from mman.kit import PAGE, UserFault, at, errno_of, filled, flagged, mman, raised, touch, vm_flags

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("is_flagged", [False, True])
def test_ranges_may_overlap(act, is_flagged):
    """Page by page from the first on: down by five pages goes, up finds the sixth page in its way."""

    def code():
        def made(first):
            memory = flagged(64) if sys.argv[1] == "True" else mman.anonymous(64 * PAGE)
            for page in range(first, first + 10):
                staging = filled(page + 1)
                mman.remap_anon_pages(at(memory, page), at(staging), PAGE)
            return memory

        memory = made(5)
        assert mman.remap_anon_pages(at(memory), at(memory, 5), 10 * PAGE) == 10 * PAGE
        assert [memory[page * PAGE] for page in range(10)] == list(range(6, 16))
        if sys.argv[1] == "True":
            raised(UserFault, lambda: touch(at(memory, 10)))
        else:
            assert not any(memory[10 * PAGE :])
            assert "um" not in vm_flags(at(memory))
        memory = made(0)
        assert errno_of(mman.remap_anon_pages, at(memory, 5), at(memory), 10 * PAGE) == errno.EEXIST
        assert [memory[page * PAGE] for page in range(10)] == list(range(1, 11))

    act(code, args=[is_flagged])
