"""What every source has to hold, as a class of tests that one subclasses."""

from __future__ import annotations

import pickle
import random
import threading
from typing import Any
from unittest import SkipTest

from userfault import _core
from userfault.errors import OptionError, PageError
from userfault.region import Region
from userfault.sources import Retry, Source, native
from userfault.testing.chaos import ChaosSource
from userfault.testing.touching import TouchChild

__all__ = ["SourceContract"]

_PAGE = 4096
_SEED = 20141006


class SourceContract:
    """Tests for any source: subclass it under a name that pytest collects, and define the two methods.

    Memory is touched in child processes; the tests that do so are skipped where cloudpickle cannot send the source there. Give it
    at least two pages, and a length that is no multiple of one, or the edges are not tried.

    Attributes:
        deliveries: How children map it.
        timeout: Seconds for a child's answer.

    Example:
        >>> class TestSquares(SourceContract):
        ...     def make_source(self):
        ...         return Squares(100_000)
        ...
        ...     def expected(self):
        ...         return b"".join((number**2).to_bytes(8, "little") for number in range(12_500))
    """

    deliveries: tuple[str, ...] = ("thread", "signal", "process")
    timeout: float = 20.0

    def make_source(self) -> Source:
        """Make a source, each time a new one that gives the same bytes."""
        raise NotImplementedError(f"{type(self).__name__} must define make_source()")

    def expected(self) -> bytes:
        """Say which bytes those are."""
        raise NotImplementedError(f"{type(self).__name__} must define expected()")

    # Reading it, as the engine does.

    def test_its_length_is_that_of_its_bytes(self) -> None:
        """`length` is known before anything is read."""
        assert native(self.make_source()).length == len(self.expected())

    def test_all_of_it_reads_as_expected(self) -> None:
        """In one read."""
        assert _read(native(self.make_source())) == self.expected()

    def test_pages_read_one_by_one_as_expected(self) -> None:
        """Each page, the last one short; first to last and back."""
        source, expected = native(self.make_source()), self.expected()
        starts = _some(range(0, len(expected), _PAGE))
        for start in [*starts, *reversed(starts)]:
            stop = min(start + _PAGE, len(expected))
            assert _read(source, start, stop) == expected[start:stop], f"the page at {start}"

    def test_any_range_reads_as_expected(self) -> None:
        """Ranges that begin and end anywhere."""
        source, expected = native(self.make_source()), self.expected()
        numbers = random.Random(_SEED)
        for _ in range(50):
            start = numbers.randrange(len(expected))
            stop = min(len(expected), start + numbers.randint(1, 3 * _PAGE))
            assert _read(source, start, stop) == expected[start:stop], f"bytes {start} to {stop}"

    def test_its_first_and_last_byte_can_be_read_alone(self) -> None:
        """And the two before the end together."""
        source, expected = native(self.make_source()), self.expected()
        assert _read(source, 0, 1) == expected[:1]
        assert _read(source, len(expected) - 1, len(expected)) == expected[-1:]
        assert _read(source, len(expected) - 2, len(expected)) == expected[-2:]

    def test_reading_again_gives_the_same(self) -> None:
        """A page that was evicted comes back as it was."""
        source = native(self.make_source())
        assert _read(source) == _read(source)

    def test_overlapping_ranges_agree(self) -> None:
        """The same byte is the same, whatever it is read with."""
        source, expected = native(self.make_source()), self.expected()
        middle = len(expected) // 2
        low, high = _read(source, 0, middle + 1), _read(source, middle, len(expected))
        assert low[-1] == high[0] == expected[middle]

    def test_only_the_buffer_is_written(self) -> None:
        """Bytes around it stay as they are."""
        source, expected = native(self.make_source()), self.expected()
        room = bytearray(b"\xa5" * 300)
        count = min(100, len(expected))
        source.read_into(0, memoryview(room)[100 : 100 + count])
        assert bytes(room[:100]) == b"\xa5" * 100
        assert bytes(room[100 : 100 + count]) == expected[:count]
        assert bytes(room[100 + count :]) == b"\xa5" * (200 - count)

    def test_what_lies_outside_is_refused(self) -> None:
        """A range that does not lie in it is an OptionError, and nothing is made up for it."""
        source, length = native(self.make_source()), len(self.expected())
        for offset, count in [(length, 1), (length - 1, 2), (length + _PAGE, _PAGE), (0, length + 1)]:
            room = bytearray(b"\xa5" * count)
            _raises(OptionError, source.read_into, offset, room)
            assert bytes(room) == b"\xa5" * count
        _raises(OverflowError, source.read_into, -1, bytearray(1))

    def test_a_buffer_that_cannot_be_written_is_refused(self) -> None:
        """Bytes stay bytes."""
        _raises((OptionError, BufferError, TypeError), native(self.make_source()).read_into, 0, b"constant")

    def test_many_threads_read_at_once(self) -> None:
        """Each gets its own bytes."""
        source, expected = native(self.make_source()), self.expected()
        wrong: list[object] = []

        def read(seed: int) -> None:
            numbers = random.Random(seed)
            try:
                for _ in range(10):
                    start = numbers.randrange(len(expected))
                    stop = min(len(expected), start + 2 * _PAGE)
                    if _read(source, start, stop) != expected[start:stop]:
                        wrong.append((start, stop))
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(self.timeout)
        assert not any(thread.is_alive() for thread in threads)
        assert wrong == []

    # Its life.

    def test_it_can_be_opened_twice_at_once(self) -> None:
        """Closing one leaves the other."""
        source, expected = self.make_source(), self.expected()
        first, second = native(source), native(source)
        assert _read(first, 0, 1) == expected[:1]
        del first
        assert _read(second) == expected

    def test_it_can_be_opened_again(self) -> None:
        """After it was closed."""
        source = self.make_source()
        for _ in range(2):
            assert _read(native(source)) == self.expected()

    def test_two_of_them_do_not_mix(self) -> None:
        """What one has done does not change the other."""
        first, second = native(self.make_source()), native(self.make_source())
        assert _read(first) == _read(second) == self.expected()

    def test_its_length_stays(self) -> None:
        """Reading changes nothing about it."""
        source = native(self.make_source())
        before = source.length
        _read(source)
        assert source.length == before

    def test_its_repr_names_it(self) -> None:
        """An error message says which source failed, without its bytes."""
        source = self.make_source()
        assert 0 < len(repr(source)) < 1000
        assert native(source).name

    def test_its_wishes_can_be_granted(self) -> None:
        """`unit` is 0 or a power of two of at least a page."""
        unit = native(self.make_source()).preferred_unit
        assert unit == 0 or (unit >= _PAGE and unit & (unit - 1) == 0)

    def test_a_hint_changes_nothing(self) -> None:
        """`prefetch_hint` may be called at any time."""
        source = self.make_source()
        opened = native(source)
        source.prefetch_hint(0, len(self.expected()))
        assert _read(opened) == self.expected()

    def test_it_travels(self) -> None:
        """Unpickled it gives the same bytes: regions are pickled as their source."""
        assert _read(native(pickle.loads(self._pickled()))) == self.expected()

    # With what wraps sources.

    def test_retry_around_it_changes_nothing(self) -> None:
        """A layer passes the bytes on."""
        assert _read(native(Retry(self.make_source()))) == self.expected()

    def test_a_failed_read_is_a_page_error_and_the_next_one_succeeds(self) -> None:
        """A failure in front of it is told, and leaves no trace."""
        expected = self.expected()
        source = native(ChaosSource(self.make_source(), fail=[range(1)], failures=1))
        _raises(PageError, source.read_into, 0, bytearray(1))
        assert _read(source) == expected

    def test_it_can_be_loaded_eagerly(self) -> None:
        """Where userfaultfd is not permitted."""
        with Region(self.make_source(), eager=True) as region:
            assert bytes(memoryview(region)) == self.expected()

    # As memory, in a child.

    def test_touched_memory_holds_its_bytes(self) -> None:
        """With every delivery, from the end to the start; and every fault got an answer."""
        expected = self.expected()
        for child in self._children():
            for start in reversed(_some(range(0, len(expected), _PAGE))):
                count = min(_PAGE, len(expected) - start)
                assert child.touch(start, count) == expected[start : start + count], f"the page at {start}"
            counts = child.call("statistics")
            endings = counts.resolved + counts.coalesced + counts.poisoned + counts.torn_down + counts.requeued
            assert counts.faults == endings + counts.in_flight
            assert counts.poisoned == 0

    def test_memory_that_comes_ahead_and_leaves_holds_its_bytes(self) -> None:
        """Populated, read, evicted and prefetched, whoever is first."""
        expected = self.expected()
        for child in self._children():
            child.call("populate")
            assert child.touch(0, len(expected)) == expected
            child.call("evict")
            assert child.call("read") == expected
            child.call("evict")
            child.call("prefetch")
            assert child.touch(0, len(expected)) == expected

    def test_a_system_call_finds_its_bytes(self) -> None:
        """With delivery="thread", where faults of the kernel are permitted."""
        if "thread" not in self.deliveries or not _kernel_faults():
            raise SkipTest("system calls on absent pages get EFAULT here")
        expected = self.expected()
        with self._child("thread") as child:
            assert child.write_out(0, min(len(expected), 1 << 16)) == expected[: 1 << 16]

    def _child(self, delivery: str) -> TouchChild:
        import cloudpickle  # type: ignore[import-untyped]

        try:
            cloudpickle.dumps(self.make_source())
        except Exception as error:
            raise SkipTest(f"it cannot be sent to a child: {error}") from None
        return TouchChild(self.make_source(), timeout=self.timeout, delivery=delivery)

    def _children(self) -> Any:
        for delivery in self.deliveries:
            with self._child(delivery) as child:
                yield child

    def _pickled(self) -> bytes:
        try:
            return pickle.dumps(self.make_source())
        except Exception as error:
            raise SkipTest(f"it cannot be pickled: {error}") from None


def _read(source: _core.NativeSource, start: int = 0, stop: int | None = None) -> bytes:
    stop = source.length if stop is None else stop
    room = bytearray(b"\xa5" * (stop - start))  # neither zeros nor the pattern of failed pages
    source.read_into(start, room)
    return bytes(room)


def _some(numbers: range) -> list[int]:
    """All, or first, last and some in between."""
    if len(numbers) <= 40:
        return list(numbers)
    return sorted({numbers[0], numbers[-1], *random.Random(_SEED).sample(numbers, 38)})


def _raises(kind: type[BaseException] | tuple[type[BaseException], ...], call: Any, *arguments: Any) -> None:
    try:
        call(*arguments)
    except kind:
        return
    raise AssertionError(f"{call.__qualname__}{arguments[:1]} raised nothing")


def _kernel_faults() -> bool:
    with Region(_zeros()) as region:
        return region.kernel_faults


def _zeros() -> Source:
    from userfault.sources import Zero

    return Zero(_PAGE)
