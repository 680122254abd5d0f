"""The machine: the calls of 2014 on a small arena beside the model of their rules. Run in a child: it touches lazy memory."""

from __future__ import annotations

import ctypes
import errno
import mmap
import queue
import threading

from hypothesis import Phase
from hypothesis import seed as given_seed
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from mman.kit import at, eventually, filled, libc, mapped, mman, move_mapping
from support.lazy import maps

from stateful.drawn import drawn
from userfault.errors import UserFault
from userfault.testing.model2014 import PAGE, TASK_SIZE, Outcome, Space

PAGES = 12
#: Far below where the kernel puts what it places itself: nothing else falls into a hole of the arena.
ARENA = 1 << 44
HIGHEST = TASK_SIZE - PAGE
READ_WRITE = mman.PROT_READ | mman.PROT_WRITE
ADVICE = {"userfault": mman.MADV_USERFAULT, "nouserfault": mman.MADV_NOUSERFAULT, "dontneed": mman.MADV_DONTNEED}
PLACES = st.tuples(st.integers(0, PAGES - 1), st.integers(1, 5))
ONE = st.integers(0, PAGES - 1)
TOKENS = st.integers(1, 250)


def answer(call, *arguments) -> int:
    """What the system call would have returned: a number, or a negative errno."""
    try:
        return call(*arguments) or 0
    except OSError as error:
        return -(error.errno or 999)


def bounds(place: tuple[int, int]) -> tuple[int, int]:
    """Start and end of some pages of the arena."""
    return ARENA + place[0] * PAGE, ARENA + min(place[0] + place[1], PAGES) * PAGE


def page_name(address: int) -> str:
    """Where an address is, for people."""
    return f"page {(address - ARENA) // PAGE}" if ARENA <= address < ARENA + PAGES * PAGE else f"{address:#x}"


def name_of(outcome: Outcome) -> str | int:
    """What a thread reports for it."""
    return "UserFault" if outcome.kind == "sigbus" else outcome.value


class Toucher(threading.Thread):
    """Touches what it is told to, one at a time, and reports the byte of the page, or the name of the exception."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.tasks, self.results, self.open = queue.SimpleQueue(), queue.SimpleQueue(), 0
        self.start()

    def give(self, *task: object) -> None:
        """Have it touch: address, content to be written or None, whether it keeps the interpreter's lock."""
        self.open += 1
        self.tasks.put(task)

    def run(self) -> None:
        while True:
            task = self.tasks.get()
            try:
                result = self.touch(*task)
            except UserFault:
                result = "UserFault"
            except BaseException as error:
                result = repr(error)
            self.results.put(result)

    @staticmethod
    def touch(address: int, content: int | None, keeps_the_gil: bool) -> int:
        page = address // PAGE * PAGE
        if content is None:
            seen = ctypes.string_at(address, 1)
            if not keeps_the_gil:
                libc.memcpy(ctypes.create_string_buffer(PAGE), page, PAGE)
            whole = set(ctypes.string_at(page, PAGE))
            assert whole == set(seen), (seen, whole)
            return seen[0]
        # First one byte at the very address: the C library fills a page in an order of its own.
        if keeps_the_gil:
            whole = memoryview((ctypes.c_char * PAGE).from_address(page)).cast("B")
            whole[address - page] = content
            len("")  # an exception on its way surfaces at a call
            whole[:] = bytes([content]) * PAGE
        else:
            ctypes.memset(address, content, 1)
            ctypes.memset(page, content, PAGE)
        len("")
        return -1

    def ended(self) -> str | int:
        result = self.results.get(timeout=5)
        self.open -= 1
        return result


TOUCHERS = [Toucher(), Toucher()]


class Machine(RuleBasedStateMachine):
    """Calls in any order; each returns what the model returns, and each touch meets what the model says."""

    sound = True

    def same(self, what: str, got, wanted) -> None:
        """The one assertion: an errno by its name, and no further checks of this sequence once it failed."""
        if got != wanted:
            self.sound = False
            got, wanted = (errno.errorcode.get(-it, it) if isinstance(it, int) and it < -1 else it for it in (got, wanted))
            told = "\n  ".join(self.steps)  # by ourselves: what depends on time is not found again when it is tried again
            raise AssertionError(f"{what}: {got}, and the model says {wanted}; under {self.space.policy!r}, after\n  {told}")

    def note(self, what: str, start: int | None = None, end: int | None = None) -> None:
        where = "" if start is None else f" {page_name(start)}" + (f" up to {page_name(end)}" if end is not None else "")
        self.steps.append(what + where)

    @initialize(policy=st.sampled_from(["madvise", "mprotect", "register-only"]))
    def begin(self, policy):
        mman.set_policy(policy)
        self.space = Space(policy)
        self.space.mmap(HIGHEST, PAGE)  # something is always mapped higher up
        self.descriptors, self.steps = {}, []
        self.map((0, PAGES), "private")

    # Mappings

    @rule(place=PLACES, kind=st.sampled_from(["private", "private", "private", "shared"]))
    def map(self, place, kind):
        start, end = bounds(place)
        self.note(f"mmap {kind}", start, end)
        flag = mmap.MAP_PRIVATE if kind == "private" else mmap.MAP_SHARED
        mapped(end - start, flags=flag | mmap.MAP_ANONYMOUS, address=start)
        self.space.mmap(start, end - start, kind)

    @rule(place=PLACES)
    def unmap(self, place):
        start, end = bounds(place)
        self.note("munmap", start, end)
        assert libc.munmap(start, end - start) == 0
        self.space.munmap(start, end - start)

    @rule(page=ONE, to=ONE)
    def move_one(self, page, to):
        start, to = ARENA + page * PAGE, ARENA + to * PAGE
        if start == to or start // PAGE not in self.space.pages:
            return
        self.note(f"mremap to {page_name(to)}", start)
        move_mapping(start, PAGE, to)
        self.space.mremap(start, PAGE, to)

    # The flag

    @rule(place=PLACES, advice=st.sampled_from([*ADVICE, "userfault"]), crooked=st.integers(0, 9))
    def madvise(self, place, advice, crooked):
        start, end = bounds(place)
        start += 16 * (crooked == 9)
        self.note(f"madvise {advice}", start, end)
        wanted = self.space.madvise(start, end - start, advice)
        self.same(f"madvise {advice}", answer(mman.madvise, (start, end - start), ADVICE[advice]), wanted)

    @rule(place=PLACES, userfault=st.booleans())
    def mprotect(self, place, userfault):
        start, end = bounds(place)
        self.note(f"mprotect userfault={userfault}", start, end)
        wanted = self.space.mprotect(start, end - start, "rw", userfault)
        protection = READ_WRITE | mman.PROT_USERFAULT if userfault else READ_WRITE
        self.same("mprotect", answer(mman.mprotect, (start, end - start), protection), wanted)

    # Descriptors

    @precondition(lambda self: len(self.descriptors) < 3)
    @rule()
    def open(self):
        self.note("open")
        self.descriptors[self.space.userfaultfd()] = mman.userfaultfd()

    @precondition(lambda self: self.descriptors)
    @rule(which=st.integers(0, 2))
    def close(self, which):
        number = sorted(self.descriptors)[which % len(self.descriptors)]
        self.note(f"close {number}")
        self.descriptors.pop(number).close()
        self.space.close(number)

    @precondition(lambda self: self.descriptors)
    @rule(which=st.integers(0, 2), place=PLACES, command=st.sampled_from([0, 1, 1, 1, 2]), crooked=st.integers(0, 19))
    def command(self, which, place, command, crooked):
        number = sorted(self.descriptors)[which % len(self.descriptors)]
        start, end = bounds(place)
        if crooked >= 17:
            start, end = [(start, end - 64), (end, start), (start, TASK_SIZE + PAGE)][crooked - 17]
        data = (start | command).to_bytes(8, "little") + end.to_bytes(8, "little")
        self.note(f"descriptor {number}: {('wake', 'register', 'unregister')[command]}", start, end)
        self.same(f"command {command}", answer(self.descriptors[number].write, data), self.space.write_command(number, data))

    # The move

    @rule(to=PLACES, source=ONE, holes=st.booleans())
    def remap(self, to, source, holes):
        dst, end = bounds(to)
        start = ARENA + min(source, PAGES - to[1]) * PAGE
        self.move_pages(dst, start, end - dst, int(holes))

    @rule(page=ONE, content=TOKENS)
    def fill(self, page, content):
        self.move_pages(ARENA + page * PAGE, self.staged(content), PAGE, 0)

    def staged(self, content: int) -> int:
        self.staging = filled(content)
        self.space.mmap(at(self.staging), PAGE)
        self.space.write(at(self.staging), content)
        return at(self.staging)

    def move_pages(self, dst: int, source: int, length: int, flags: int) -> None:
        split = any(mappings_in(start, start + length) > 1 for start in (dst, source))  # equal neighbours need not be one mapping
        wanted = -errno.EINVAL if split else self.space.remap_anon_pages(dst, source, length, flags)
        what = f"moving {length // PAGE} pages from {page_name(source)} to {page_name(dst)}{', of two mappings' * split}"
        self.note(what)
        self.same(what, answer(mman.remap_anon_pages, dst, source, length, flags), wanted)

    # Touches

    @rule(
        page=ONE,
        content=st.none() | TOKENS,
        gil=st.booleans(),
        end=st.sampled_from(["resolve", "resolve", "close", "disown", "unflag"]),
    )
    def touch(self, page, content, gil, end):
        self.touch_pages([(page, content, gil)], end)

    @rule(pages=st.tuples(ONE, ONE), gil=st.tuples(st.booleans(), st.booleans()), end=st.sampled_from(["resolve", "close"]))
    def touch_two(self, pages, gil, end):
        if pages[0] != pages[1]:  # a page that cannot be had shows its pattern to the other thread
            self.touch_pages([(pages[0], None, gil[0]), (pages[1], None, gil[1])], end)

    def touch_pages(self, tasks: list[tuple[int, int | None, bool]], end: str) -> None:
        running = []
        for toucher, (page, content, gil) in zip(TOUCHERS, tasks, strict=False):
            address = ARENA + page * PAGE + 33
            if address // PAGE not in self.space.pages:
                continue
            outcome = self.model_touch(address, content)
            self.note(f"touch{'' if content is None else ' to write'} ({outcome.kind}, then {end})", address)
            toucher.give(address, content, gil)
            if outcome.kind == "descriptor":
                it = self.descriptors[outcome.value]
                eventually(
                    lambda it=it, n=outcome.value: it.pending == len(self.space.descriptors[n].unread),
                    what=f"the fault on page {page}",
                )
            running.append((toucher, address, content, outcome))
        for toucher, address, content, outcome in reversed(running):  # the newest fault is read first
            if outcome.kind == "descriptor":
                outcome = self.end_fault(outcome.value, address, content, end)
            got = toucher.ended()
            wanted = -1 if content is not None and outcome.kind != "sigbus" else name_of(outcome)
            self.same(f"a touch of {page_name(address)} ({outcome.kind})", got, wanted)

    def model_touch(self, address: int, content: int | None) -> Outcome:
        return self.space.touch(address) if content is None else self.space.write(address, content)

    def end_fault(self, number: int, address: int, content: int | None, end: str) -> Outcome:
        """Let a fault come to one of its ends; the touch after it."""
        if number not in self.descriptors:  # closed with the other one
            return self.model_touch(address, content)
        it, page = self.descriptors[number], address // PAGE * PAGE
        if end == "close":
            self.close(sorted(self.descriptors).index(number))
            return self.model_touch(address, content)
        assert self.space.read_fault(number) == address
        self.same("the fault that is read", it.read_fault(), address)
        self.same("read faults", it.unwoken, len(self.space.descriptors[number].unwoken))
        if end == "resolve":
            self.move_pages(page, self.staged(99), PAGE, 0)
        elif end == "disown" or self.space.policy == "register-only":
            assert answer(it.unregister, (page, PAGE)) in (0, 16)
            self.space.unregister(number, page, page + PAGE)
        else:
            self.unflag(page)
        # In 2014 the thread waits for this wake in all cases; today's kernel lets it go with the registration.
        code, wanted = answer(it.wake, page), self.space.wake(number, page, page + PAGE)
        assert wanted == 16
        self.same("wake", 16 if code == 0 or (code == -errno.ENOENT and end != "resolve") else code, wanted)
        return self.model_touch(address, content)

    def unflag(self, page: int) -> None:
        if self.space.policy == "madvise":
            mman.madvise((page, PAGE), mman.MADV_NOUSERFAULT)
            self.space.madvise(page, PAGE, "nouserfault")
        else:
            mman.mprotect((page, PAGE), READ_WRITE)
            self.space.mprotect(page, PAGE, "rw")

    # After every step

    @invariant()
    def nothing_waits(self):
        for number, it in getattr(self, "descriptors", {}).items():
            self.same(f"what waits at {number}", (it.pending, it.unwoken), (0, 0))

    @invariant()
    def ranges_tell_the_flags(self):
        if not hasattr(self, "space"):
            return
        told = {one.start // PAGE + n for one in mman.ranges() if one.flagged for n in range(one.length // PAGE)}
        wanted = {number for number, page in self.space.pages.items() if page.flagged}
        self.same("flagged pages", [page_name(n * PAGE) for n in sorted(told)], [page_name(n * PAGE) for n in sorted(wanted)])

    def teardown(self):
        if not hasattr(self, "space"):
            return
        try:
            for number in range(PAGES) if self.sound else ():
                self.touch_pages([(number, None, True)], "resolve")
        finally:
            self.clear()
        assert mman.ranges() == []

    def clear(self) -> None:
        """Leave nothing to the next sequence: who still waits after a failure must not touch its pages, nor what is gone."""
        for it in self.descriptors.values():
            it.close()
        for toucher in TOUCHERS:
            while toucher.open:
                toucher.ended()
        libc.munmap(ARENA, PAGES * PAGE)


def mappings_in(start: int, end: int) -> int:
    """How many mappings of the kernel lie in a range."""
    return sum(low < end and start < high for low, high, _ in maps())


def run(examples: int, steps: int, seed: int | None) -> None:
    """Look for a sequence of calls after which something is not as the model says; it is printed.

    The same `seed` draws the same sequences, so it is printed before a crash can end the process; None: sequences that depend
    on this file only.
    """
    print(f"sequences of seed {seed}", flush=True)
    phases = [Phase.generate]  # what depends on time is not found again by trying it again
    machine = Machine if seed is None else given_seed(seed)(type("Seeded", (Machine,), {}))
    run_state_machine_as_test(machine, settings=drawn(examples, steps, seed, phases=phases))
