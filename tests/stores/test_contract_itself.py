"""The contract finds what is wrong with a source."""

import pickle
import threading
import time
from unittest import SkipTest

import pytest

import userfault as uf
from userfault.testing import SourceContract

GOOD = bytes(number % 251 for number in range(20_000))


class Good(uf.Source):
    """Right in every way; the others differ in one."""

    length = len(GOOD)

    def read_into(self, offset, buffer):
        buffer[:] = GOOD[offset : offset + len(buffer)]


class Longer(Good):
    length = len(GOOD) + 1

    def read_into(self, offset, buffer):
        piece = GOOD[offset : offset + len(buffer)]
        buffer[:] = piece + bytes(len(buffer) - len(piece))


class WholePagesOnly(Good):
    def read_into(self, offset, buffer):
        super().read_into(offset // 4096 * 4096, buffer)


class LazyAtTheEnd(Good):
    def read_into(self, offset, buffer):
        super().read_into(offset, buffer[:-1])


class OnlyOnce(Good):
    def __init__(self):
        self.was_read = set()

    def read_into(self, offset, buffer):
        super().read_into(offset, buffer)
        if offset in self.was_read:
            buffer[0] ^= 1
        self.was_read.add(offset)


class NotForThreads(Good):
    def read_into(self, offset, buffer):
        self.offset = offset
        if threading.active_count() > 4:
            time.sleep(0.001)
        super().read_into(self.offset, buffer)


class NotTwice(Good):
    closed = False

    def read_into(self, offset, buffer):
        if self.closed:
            raise OSError("closed")
        super().read_into(offset, buffer)

    def close(self):
        self.closed = True


class LostOnTheWay(Good):
    def __reduce__(self):
        return Longer, ()


def failing(kind):
    """Names of the contract's tests that a source of this kind fails."""

    class Contract(SourceContract):
        deliveries = ()

        def make_source(self):
            return kind()

        def expected(self):
            return GOOD

    names = [name for name in dir(Contract) if name.startswith("test_")]
    assert len(names) >= 20
    found = []
    for name in names:
        try:
            getattr(Contract(), name)()
        except (AssertionError, uf.UserfaultError, pickle.PicklingError):
            found.append(name)
        except SkipTest:
            continue
    return found


def test_a_good_source_passes():
    """All of it."""
    assert failing(Good) == []


@pytest.mark.parametrize(
    ("kind", "found_by"),
    [
        (Longer, "test_its_length_is_that_of_its_bytes"),
        (WholePagesOnly, "test_any_range_reads_as_expected"),
        (LazyAtTheEnd, "test_all_of_it_reads_as_expected"),
        (OnlyOnce, "test_reading_again_gives_the_same"),
        (NotForThreads, "test_many_threads_read_at_once"),
        (NotTwice, "test_it_can_be_opened_again"),
        (LostOnTheWay, "test_it_travels"),
    ],
)
def test_a_bad_source_fails_the_test_that_is_for_it(kind, found_by):
    """Each flaw has a test that sees it."""
    assert found_by in failing(kind)
