"""Wrong values are OptionErrors that name the parameter and what it must be, before anything is opened."""

import numpy as np
import pytest

import userfault as uf
from userfault.region import Options
from userfault.testing import Chaos

ZERO = uf.Zero(4096)


class Lengthy(uf.Source):
    """Says of its length what it is told to, or fails to find it out."""

    def __init__(self, length, error=None):
        self.given = length
        self.error = error

    @property
    def length(self):
        if self.error is not None:
            raise self.error
        return self.given

    def read_into(self, offset, buffer):
        raise AssertionError


class Forgetful(uf.sources.RemoteSource):
    """Is never made ready."""

    def __init__(self):
        pass

    def look(self):
        raise AssertionError

    def get(self, version, start, stop):
        raise AssertionError


@pytest.mark.parametrize("error", [TypeError("inside"), AttributeError("inside"), KeyError("inside")])
def test_what_the_code_of_a_length_raises_is_not_hidden(error):
    """It is not as if there was no length."""
    with pytest.raises(type(error), match="inside"):
        uf.map(Lengthy(1, error))


@pytest.mark.parametrize(
    ("open_it", "words"),
    [
        (lambda: uf.map(b"x", unit=-1), "unit=-1: must be 0 or more"),
        (lambda: uf.map(b"x", unit="banana"), "unit='banana': must be a size such as 64KiB"),
        (lambda: uf.map(b"x", unit=2**63), "unit=9223372036854775808: must be at most 9223372036854775807"),
        (lambda: uf.map(b"x", unit=1.5), "unit=1.5: must be a whole number of bytes"),
        (lambda: uf.map(b"x", timeout="abc"), "timeout='abc': must be a time such as 250ms"),
        (lambda: uf.map(b"x", timeout=0), "timeout=0.0: must be above zero"),
        (lambda: uf.map(b"x", timeout=float("nan")), "timeout=nan: must be finite"),
        (lambda: uf.map(b"x", timeout=10**400), "timeout=1000.*: must be finite"),
        (lambda: uf.Zero(-1).open(), "length=-1: must be 0 or more"),
        (lambda: uf.File("x", offset=-1).open(), "offset=-1: must be 0 or more"),
        (lambda: uf.File("x", length="x").open(), "length='x': must be a size"),
        (lambda: uf.Bytes(np.zeros((4, 4))[:, 1]).open(), "contiguous; numpy.ascontiguousarray"),
        (lambda: uf.Retry(ZERO, attempts=0).open(), "attempts=0: must be from 1 to 4294967295"),
        (lambda: uf.Retry(ZERO, attempts=2**40).open(), "attempts=1099511627776: must be from 1 to 4294967295"),
        (lambda: uf.Retry(ZERO, pause="-1s").open(), "pause='-1s': must be a time"),
        (lambda: uf.Deadline(ZERO, limit=0).open(), "limit=0: must be above zero"),
        (lambda: uf.Deadline(ZERO, limit="soon").open(), "limit='soon': must be a time"),
        (lambda: uf.Checksum(ZERO, 4096, [-1]).open(), r"sums\[0\]=-1: must be from 0 to 18446744073709551615"),
        (lambda: uf.Checksum(ZERO, 2048, [0, 2**64]).open(), r"sums\[1\]=18446744073709551616: must be from 0 to"),
        (lambda: uf.Checksum(ZERO, "-1", [0]).open(), "block='-1': must be a size"),
        (lambda: Chaos(ZERO, delay=-1).open(), "delay=-1: must be 0 or more"),
        (lambda: uf.Served("room/s", 5), "name=5: must be a text"),
        (lambda: uf.Served("room/s", "\udc80"), "must be a text of at most 1000 bytes of UTF-8"),
        (lambda: uf.Served("room/s", "n" * 1001), "must be a text of at most 1000 bytes of UTF-8"),
        (lambda: uf.Served("r" * 200, "n"), "107 bytes at most"),
        (lambda: uf.Served("room/s\0x", "n"), "must have no zero byte"),
        (lambda: uf.pager.share("r" * 200, {}), "107 bytes at most"),
        (lambda: uf.pager.serve("room/s\0x"), "must have no zero byte"),
        (lambda: uf.pager.share("room/s", {5: ZERO}), "name=5: must be a text"),
        (lambda: uf.pager.share("room/s", [ZERO]), "a mapping of names to Sources"),
        (lambda: uf.Retry(b"x").open(), "source: must be a Source, .*bytes.*userfault.map takes"),
        (lambda: uf.Deadline("path", 1).open(), "source: must be a Source, .*str"),
        (lambda: uf.Checksum(None, 4096, []).open(), "source: must be a Source, .*NoneType"),
        (lambda: Chaos(5).open(), "source: must be a Source, .*int"),
        (lambda: uf.Region(b"x"), "source: must be a Source, .*bytes"),
        (lambda: uf.Region(ZERO, {"unit": 4096}), "options: must be userfault.region.Options, .*dict"),
        (lambda: Options(unit=-1), "unit=-1: must be 0 or more"),
        (lambda: Options(timeout=float("nan")), "timeout=nan: must be finite"),
        (lambda: uf.map(b"x", on_pager_death="poison"), "on_pager_death: only delivery='process'"),
        (lambda: uf.map(b"x", pager=5), "pager: only delivery='process'"),
        (lambda: uf.map(b"x", delivery=None), "delivery=None: must be 'thread', 'signal' or 'process'"),
        (lambda: uf.map(b"x", mode=5), "mode=5: must be 'r' or 'c'"),
        (lambda: uf.pager.Pager(user=5), "user=5: must be the name of a user"),
        (lambda: uf.pager.Pager(sandbox="no"), "sandbox='no': must be True or False"),
        (lambda: uf.Fsspec(5), "Fsspec: the url must be a text, and is of type int"),
        (lambda: uf.Redis(5), "Redis: the url must be a text, and is of type int"),
        (lambda: uf.map(Forgetful()), r"Forgetful.__init__ must call super\(\).__init__\(url\)"),
        (lambda: uf.sources.Computed(max, 5, "3i4"), "is an array itself"),
        (lambda: uf.map(Lengthy(None)), "Lengthy.length: must be a number of bytes, and is of type NoneType"),
        (lambda: uf.VolatileCache(0), "maxsize=0: must be from 1 to"),
        (lambda: uf.checked("x"), "checked: takes regions and was given a str"),
    ],
)
def test_wrong_value_is_refused_by_name(open_it, words):
    """What it is, where it was given, and what would do instead."""
    with pytest.raises(uf.OptionError, match=words):
        open_it()


@pytest.mark.parametrize("maxsize", [True, 1.5, "x"])
def test_a_count_is_a_whole_number(maxsize):
    """The error says of which parameter."""
    with pytest.raises(TypeError, match="maxsize must be a whole number"):
        uf.VolatileCache(maxsize)


def test_a_pager_at_a_path_is_a_socket(tmp_path):
    """Not another file, nor nothing."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        uf.pager.Pager(path=tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(uf.OptionError, match="is no socket"):
        uf.pager.Pager(path=tmp_path / "file")
