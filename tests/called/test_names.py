"""Sources have names, whatever their own `__repr__` says, and a PageError has the name of its source."""

from __future__ import annotations

import pytest

import userfault as uf

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


@DELIVERIES
def test_a_repr_that_is_no_text_or_fails_stops_nothing(child, delivery):
    """Lone surrogates are escaped; where `__repr__` raises, the class is the name."""

    def code():
        import sys

        from support.lazy import raised

        import userfault as uf

        class Odd(uf.Source):
            length = 65536

            def read_into(self, offset, buffer):
                if offset >= 32768:
                    raise ValueError("not \ud800")
                buffer[:] = b"\x07" * len(buffer)

            unit = 4096

        class Broken(Odd):
            def __repr__(self):
                raise RuntimeError("no name")

        class Surrogate(Odd):
            def __repr__(self):
                return "a\ud800b"

        class NoText(Odd):
            def __repr__(self):
                return 7

        for kind, name in ((Broken, "a Broken"), (Surrogate, "a\\ud800b"), (NoText, "a NoText")):
            region = uf.map(kind(), delivery=sys.argv[1])
            view = memoryview(region)
            assert view[0] == 7
            error = raised(uf.PageError, lambda view=view: bytes(view[40960:40964]))
            assert error.source == name
            assert "ValueError: not " in str(error)
            assert repr(region).startswith(f"<Region of {name}: ")
            error = raised(uf.OptionError, lambda kind=kind: uf.load(kind(), delivery=sys.argv[1]))
            assert str(error).startswith(f"{name} is not a .npy array")

    child(code, args=[delivery]).check()


@DELIVERIES
def test_names_of_files_that_are_no_text_are_opened(child, tmp_path, delivery):
    """A path of bytes that are no UTF-8, as `os.fsdecode` gives it: plain, as an array, and where it is not there."""

    def code():
        import os
        import sys

        import numpy as np
        from support.lazy import raised

        import userfault as uf

        delivery, directory = sys.argv[1:]
        path = os.fsdecode(os.fsencode(directory) + b"/\xff\xfe.npy")
        np.save(path, np.arange(1, 9000))
        with open(path, "rb") as file:
            whole = file.read()
        for source in (path, uf.File(path)):
            region = uf.map(source, delivery=delivery)
            assert bytes(memoryview(region)) == whole
            repr(region).encode()
        assert np.array_equal(uf.load(path, delivery=delivery), np.arange(1, 9000))
        region = uf.map(uf.File(path), delivery=delivery, unit="4KiB")
        os.truncate(path, 4096)
        error = raised(uf.PageError, lambda: bytes(memoryview(region)[8192:8200]))
        error.source.encode()
        raised(FileNotFoundError, lambda: uf.map(uf.File(path + "x"), delivery=delivery))
        assert "is not a .npy" in str(raised(uf.OptionError, lambda: uf.load(b"\x01" * 100, delivery=delivery)))

    child(code, args=[delivery, tmp_path]).check()


def test_a_pager_at_a_path_says_which_names_of_files_it_takes():
    """Its messages are UTF-8: another name is an OptionError, not one of encoding."""
    from userfault.pager.described import describe

    assert describe(uf.File("/there/é")).path == "/there/é"
    with pytest.raises(uf.OptionError, match="UTF-8"):
        describe(uf.File("/there/\udcff"))
