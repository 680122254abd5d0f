"""The machine: volatile buffers beside a model of their pages. Run in a child: it touches purged memory."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from support.lazy import PAGE, check_endings, known_bytes, raised

import userfault as uf
from stateful.drawn import drawn
from userfault.testing import purge

PAGES = 24
SIZE = PAGES * PAGE - 100
REFILL = known_bytes(SIZE, seed=3)
UNTOUCHED, PINNED, VOLATILE, PURGED, REFILLED = range(5)
RANGES = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(sorted)


class Machine(RuleBasedStateMachine):
    """Each page of the model has a state, its bytes, and, while it is volatile, whether a write cancelled that."""

    @initialize(delivery=st.sampled_from(["signal", "thread"]), refill=st.booleans())
    def start(self, delivery, refill):
        self.refill = refill
        self.buffer = uf.VolatileBuffer(SIZE, delivery=delivery, refill=REFILL.tobytes() if refill else None)
        self.array = self.buffer.numpy()
        self.bytes = np.zeros(SIZE, np.uint8)
        self.states = [UNTOUCHED] * PAGES
        self.cancelled = [False] * PAGES

    def part(self, page: int) -> slice:
        return slice(page * PAGE, min((page + 1) * PAGE, SIZE))

    def take(self, page: int) -> None:
        """What a touch of a purged page does where there is a refill."""
        self.bytes[self.part(page)] = REFILL[self.part(page)]
        self.states[page] = REFILLED

    @rule(where=RANGES)
    def unpin(self, where):
        start, stop = where
        self.buffer.unpin(start, stop)
        last = PAGES if stop == SIZE else stop // PAGE
        for page in range(-(-start // PAGE), last):
            if self.states[page] in (PINNED, VOLATILE, REFILLED):
                self.states[page], self.cancelled[page] = VOLATILE, False

    def touched(self, where: list[int]) -> range:
        start, stop = where
        return range(start // PAGE, -(-stop // PAGE)) if start < stop else range(0)

    def check_pinned(self, where: list[int], lost: list[slice]) -> None:
        """A pin was made: tell the model, and compare what it said was lost."""
        touched = self.touched(where)
        expected = [page for page in touched if self.states[page] in (PURGED, REFILLED)]
        assert [page for part in lost for page in range(part.start // PAGE, -(-part.stop // PAGE))] == expected
        assert all(first.stop < second.start for first, second in pairwise(lost))
        for page in touched:
            if self.states[page] == PURGED and self.refill:
                self.take(page)
            elif self.states[page] == PURGED:
                self.bytes[self.part(page)], self.states[page] = 0, UNTOUCHED
            if self.states[page] in (VOLATILE, REFILLED):
                self.states[page] = PINNED

    @rule(where=RANGES)
    def pin(self, where):
        self.check_pinned(where, self.buffer.pin(*where))

    @rule(where=RANGES, purge_within=st.booleans())
    def pinned_block(self, where, purge_within):
        were_volatile = [page for page in self.touched(where) if self.states[page] in (VOLATILE, PURGED, REFILLED)]
        with self.buffer.pinned(*where) as lost:
            self.check_pinned(where, lost)
            self.states_agree()
            if purge_within:
                self.take_all()
                self.states_agree()
        for page in were_volatile:
            if self.states[page] == PINNED:
                self.states[page], self.cancelled[page] = VOLATILE, False

    @rule(page=st.integers(0, PAGES - 1), value=st.integers(0, 255), count=st.integers(1, PAGE - 100))
    def write(self, page, value, count):
        if self.states[page] == PURGED and not self.refill:
            return self.read(page)
        part = slice(page * PAGE, page * PAGE + count)
        self.array[part] = value
        if self.states[page] == PURGED:
            self.take(page)
        self.bytes[part] = value
        self.cancelled[page] = True
        if self.states[page] == UNTOUCHED:
            self.states[page] = PINNED
        return None

    @rule(page=st.integers(0, PAGES - 1))
    def read(self, page):
        part = self.part(page)
        if self.states[page] == PURGED and not self.refill:

            def touch():
                with uf.checked(self.buffer):
                    self.array[part].sum()

            assert raised(uf.PagePurged, touch).offset == part.start
            raised(uf.PagePurged, lambda: self.buffer.read(part.start, 1))
            return
        if self.states[page] == PURGED:
            self.take(page)
        assert np.array_equal(self.array[part], self.bytes[part])
        assert self.buffer.read(part.start, part.stop - part.start) == self.bytes[part].tobytes()

    @rule()
    def take_all(self):
        purge(self.buffer)
        found = self.buffer.page_states()
        for page in range(PAGES):
            if self.states[page] == VOLATILE and not self.cancelled[page]:
                assert found[page] in (VOLATILE, PURGED)  # it may take them, as a rule it does
                self.states[page] = found[page]

    @invariant()
    def states_agree(self):
        if hasattr(self, "buffer"):
            assert list(self.buffer.page_states()) == self.states
            counts = [self.states.count(state) * PAGE for state in range(5)]
            counts[self.states[-1]] -= 100
            state = self.buffer.state()
            assert [state.untouched, state.pinned, state.volatile, state.purged, state.refilled] == counts

    def teardown(self):
        if hasattr(self, "buffer"):
            self.check_pinned([0, SIZE], self.buffer.pin())
            assert np.array_equal(self.array, self.bytes)
            check_endings(self.buffer)
            del self.array
            self.buffer.close()


def run(examples: int, steps: int, seed: int | None) -> None:
    """Look for a sequence of steps after which a byte is wrong."""
    run_state_machine_as_test(Machine, settings=drawn(examples, steps, seed))
