"""The pager is killed again and again while every byte is compared."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.kernel]


@pytest.mark.timeout(120)
def test_a_pager_killed_at_random_moments_never_shows_a_wrong_byte(child):
    """Forty kills under four touching threads: zero wrong bytes, zero hangs, and the law of endings with what was requeued."""
    child("from pager.storming import storm; storm(40, 1, 90)", timeout=110).check()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_thousand_kills(child):
    """The same, a thousand times."""
    print(child("from pager.storming import storm; storm(1000, 2, 1100)", timeout=1180).check().stdout)
