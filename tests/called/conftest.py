"""The fixture of these tests."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["thread", "signal"])
def delivery(request) -> str:
    """Each delivery whose sources run in the process that touches."""
    return request.param
