"""The machine: regions beside a model of their bytes. Run in a child: it touches lazy memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test
from support.lazy import check_endings, known_bytes, raised

import userfault as uf
from stateful.drawn import drawn
from userfault import image

LENGTHS = (1, 4096, 4097, 65_536, 300_001, (1 << 21) + 5)
UNITS = ("4KiB", "64KiB", "256KiB", "2MiB")
FOLDER = Path(tempfile.mkdtemp())


def prepared() -> list[tuple[uf.Source, np.ndarray]]:
    """Sources of every kind and length, with their bytes."""
    found = []
    for seed, length in enumerate(LENGTHS):
        data = known_bytes(length, seed)
        data[length // 3 : length // 2] = 0
        plain, packed = FOLDER / f"{seed}", FOLDER / f"{seed}.zst"
        plain.write_bytes(data.tobytes())
        image.pack(data.tobytes(), packed, frame="16KiB")
        found += [(uf.Bytes(data.tobytes()), data), (uf.File(plain), data), (uf.Image(packed), data)]
        found.append((uf.Zero(length), np.zeros(length, np.uint8)))
    return found


SOURCES = prepared()


class Subject:
    """A region and what it must hold."""

    def __init__(self, source: int, options: dict) -> None:
        self.source, self.options = source, options
        self.open()

    def open(self) -> None:
        """A fresh region of the same source: changes are forgotten."""
        source, data = SOURCES[self.source]
        self.region = uf.map(source, **self.options)
        self.model = data.copy() if self.options["mode"] == "c" else data
        self.written = False

    def view(self) -> memoryview:
        return memoryview(self.region)


class Machine(RuleBasedStateMachine):
    """Steps in any order; the bytes are those of the model at every look."""

    subjects = Bundle("subjects")
    places = st.tuples(st.floats(0, 1), st.integers(1, 400_000))

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Subject] = []

    def where(self, subject: Subject, place: tuple[float, int]) -> slice:
        start = min(int(place[0] * len(subject.model)), len(subject.model) - 1)
        return slice(start, min(start + place[1], len(subject.model)))

    @rule(
        target=subjects,
        source=st.integers(0, len(SOURCES) - 1),
        delivery=st.sampled_from(["thread", "signal"]),
        unit=st.sampled_from([*UNITS, "huge"]),
        mode=st.sampled_from(["r", "c"]),
        shared=st.booleans(),
    )
    def map(self, source, delivery, unit, mode, shared):
        options = {"delivery": delivery, "mode": mode}
        options |= {"huge": True} if unit == "huge" and not shared else {"unit": "2MiB" if unit == "huge" else unit}
        options |= {"shared": True, "on_error": "abort"} if shared else {}
        made = Subject(source, options)
        self.all.append(made)
        return made

    @rule(subject=subjects, place=places)
    def touch(self, subject, place):
        where = self.where(subject, place)
        assert np.array_equal(subject.region.numpy()[where], subject.model[where])

    @rule(subject=subjects, place=places, step=st.integers(1, 9000))
    def stride(self, subject, place, step):
        where = self.where(subject, place)
        where = slice(where.start, where.stop, step)
        assert bytes(subject.view()[where]) == subject.model[where].tobytes()

    @rule(subject=subjects, place=places)
    def read(self, subject, place):
        where = self.where(subject, place)
        assert subject.region.read(where.start, where.stop - where.start) == subject.model[where].tobytes()

    @rule(subject=subjects, place=places)
    def prefetch(self, subject, place):
        subject.region.prefetch(self.where(subject, place))

    @rule(subject=subjects, place=places)
    def populate(self, subject, place):
        subject.region.populate(self.where(subject, place))
        self.touch(subject, place)

    @rule(subject=subjects, place=places)
    def evict(self, subject, place):
        where = self.where(subject, place)
        if subject.options["mode"] == "c":
            assert "never dropped" in str(raised(uf.OptionError, lambda: subject.region.evict(where)))
        else:
            assert subject.region.evict(where) <= (where.stop - where.start) // subject.region.unit + 1

    @rule(subject=subjects, place=places, value=st.integers(0, 255))
    def write(self, subject, place, value):
        where = self.where(subject, place)
        if subject.options["mode"] == "c":
            subject.region.numpy()[where] = value
            subject.model[where] = value
            return
        view = subject.view()

        def assign():
            view[where] = bytes([value]) * (where.stop - where.start)

        raised(TypeError, assign)

    @rule(subject=subjects)
    def close_and_open_again(self, subject):
        check_endings(subject.region)
        subject.region.close()
        raised(uf.RegionClosedError, subject.region.statistics)
        raised(BufferError, subject.view)
        subject.open()

    @rule(subject=consumes(subjects))
    def close(self, subject):
        view = subject.view()
        raised(BufferError, subject.region.close)
        with subject.region:
            pass
        assert subject.region.state == "closing"
        assert view[0] == subject.model[0]
        view.release()
        assert subject.region.state == "closed"
        self.all.remove(subject)

    @invariant()
    def counts_make_sense(self):
        for subject in self.all:
            found = subject.region.statistics()
            assert 0 <= found.present_units <= found.units
            assert found.poisoned == found.exposed_pages == found.source_errors == 0, found

    def teardown(self):
        for subject in self.all:
            assert np.array_equal(subject.region.numpy(), subject.model)
            check_endings(subject.region)
            subject.region.close()


def run(examples: int, steps: int, seed: int | None) -> None:
    """Look for a sequence of steps after which a byte is wrong."""
    run_state_machine_as_test(Machine, settings=drawn(examples, steps, seed))
