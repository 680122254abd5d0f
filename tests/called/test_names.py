"""Sources have names, whatever their own `__repr__` says, and a PageError has the name of its source."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel

DELIVERIES = pytest.mark.parametrize("delivery", ["thread", "signal", "process"])


@DELIVERIES
def test_a_region_that_is_gone_when_the_exception_is_made_is_named(child, delivery):
    """Of a temporary region the PageError says which source failed, and not that it is closed."""

    def code():
        import sys

        from support.lazy import raised

        import userfault as uf

        class Named(uf.Source):
            length = 65536

            def __init__(self, number):
                self.number = number

            def __repr__(self):
                return f"Named({self.number})"

            def read_into(self, offset, buffer):
                raise ValueError("never")

        for number in range(300):  # more than are remembered
            error = raised(uf.PageError, lambda number=number: bytes(memoryview(uf.map(Named(number), delivery=sys.argv[1]))[:3]))
            assert error.source == f"Named({number})", error
            assert str(error).startswith(f"Named({number}) at byte 0: ")

    child(code, args=[delivery]).check()
