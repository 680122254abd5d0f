"""``userfault demo 2014``: the calls of the proposal of October 2014, each used once and counted."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from userfault.cli.common import console, emit_json, say, wants_json
from userfault.units import format_seconds

FLAGGED_PAGES = 2048
READER = "reader of descriptor"
REGISTERED_PAGES = 512
"""Half of them are touched, the other half is there for read(2)."""


@dataclass(frozen=True)
class Row:
    """One thing that was done.

    Attributes:
        what: how the memory was used.
        answered_by: who put the pages there: a function in the touching thread, or a thread that reads a descriptor.
        pages: how many were absent and came.
        calls: of the function that resolves faults.
        seconds_per_touch: on average.
    """

    what: str
    answered_by: str
    pages: int
    calls: int
    seconds_per_touch: float


class Pages:
    """Memory whose pages can be computed: each holds its own number, again and again."""

    def __init__(self, count: int) -> None:
        from userfault import mman

        self.mman, self.size = mman, mman.PAGE_SIZE
        self.count = count
        self.memory = mman.anonymous(count * self.size)
        self.start = mman.address_of(self.memory)
        self.staging = mman.anonymous(self.size)
        self.calls = 0

    def held(self, number: int) -> bytes:
        """What a page holds."""
        return number.to_bytes(8, "little") * (self.size // 8)

    def resolve(self, address: int) -> None:
        """Write the page somewhere else, and move it to where it is missed: nobody ever sees half of it."""
        number = (address - self.start) // self.size
        self.calls += 1
        self.staging[:] = self.held(number)
        self.mman.remap_anon_pages(self.start + number * self.size, self.staging, self.size)

    def touch(self, numbers: range) -> float:
        """Load from the middle of each of these pages, check what was there, and return the seconds of a touch."""
        view = memoryview(self.memory).cast("Q")
        words = self.size // 8
        began = time.perf_counter()
        found = [view[number * words + words // 2] for number in numbers]
        seconds = (time.perf_counter() - began) / len(numbers)
        agree(found == list(numbers), "a touched page held something else")
        return seconds


def run() -> None:
    """Do all of it, and print the table."""
    rows = [by_signal()]
    more, left_out, ending = by_descriptor()
    rows += more
    if wants_json():
        emit_json({"rows": [asdict(row) for row in rows], "left_out": left_out, "after_close": ending})
        return
    show(rows)
    console().print(f"After close() a touch of a page that is still absent: UserFault, {ending}.", soft_wrap=True)
    for one in left_out:
        say(f"left out: {one['what']}: {one['why']}")


def by_signal() -> Row:
    """Flag memory, and let a Python function answer each touch, in the thread that touches."""
    from userfault import mman

    pages = Pages(FLAGGED_PAGES)
    mman.madvise(pages.memory, mman.MADV_USERFAULT)
    mman.on_sigbus(pages.memory, pages.resolve)
    seconds = pages.touch(range(pages.count))
    return Row("touch of flagged memory", "resolver of SIGBUS", pages.count, pages.calls, seconds)


def by_descriptor() -> tuple[list[Row], list[dict[str, str]], str]:
    """Register flagged memory with a descriptor that a Python thread reads; close it at the end.

    Returns:
        What was done; what was left out and why; what a touch after close() raised.
    """
    from userfault import mman

    pages = Pages(REGISTERED_PAGES)
    mman.madvise(pages.memory, mman.MADV_USERFAULT)
    descriptor, refused = opened()
    with descriptor:
        descriptor.register(pages.memory)
        server = threading.Thread(target=serve, args=(descriptor, pages), name="serves the descriptor")
        server.start()
        half = range(pages.count // 2)
        seconds = pages.touch(half)
        rows = [Row("touch of registered memory", READER, len(half), pages.calls, seconds)]
        if not refused:
            rows.append(by_system_call(pages, range(len(half), pages.count - 1)))
    server.join()
    left_out = [{"what": "read(2) into absent pages", "why": refused}] if refused else []
    return rows, left_out, after_close(pages)


def opened() -> tuple[Any, str]:
    """A descriptor, and why it does not hear of faults in system calls, if it does not."""
    from userfault import mman
    from userfault.errors import RefusedError

    try:
        return mman.userfaultfd(), ""
    except RefusedError as error:
        return mman.userfaultfd(user_mode_only=True), (error.strerror or str(error)).partition("\n")[0]


def serve(descriptor: Any, pages: Pages) -> None:
    """Read, resolve, wake, until the descriptor is closed."""
    while True:
        try:
            address = descriptor.read_fault()
        except ValueError:
            return
        with suppress(FileExistsError):  # it came for another thread that waited for it
            pages.resolve(address)
        descriptor.wake(address // pages.size * pages.size)


def by_system_call(pages: Pages, numbers: range) -> Row:
    """Have the kernel write eight bytes into the middle of each absent page; the rest of the page is the resolver's."""
    out, into = os.pipe()
    before = pages.calls
    view = memoryview(pages.memory)
    seconds = 0.0
    for number in numbers:
        middle = number * pages.size + pages.size // 2
        os.write(into, b"received")
        began = time.perf_counter()
        os.readv(out, [view[middle : middle + 8]])
        seconds += time.perf_counter() - began
    os.close(out)
    os.close(into)
    for number in numbers:
        expected = bytearray(pages.held(number))
        expected[pages.size // 2 : pages.size // 2 + 8] = b"received"
        agree(view[number * pages.size : (number + 1) * pages.size] == expected, "read(2) left other bytes")
    return Row("read(2) into registered memory", READER, len(numbers), pages.calls - before, seconds / len(numbers))


def after_close(pages: Pages) -> str:
    """Touch the last page, which nobody has touched: there must be no zeros."""
    from userfault.errors import UserFault

    last = memoryview(pages.memory)[-pages.size :]
    try:
        found = bytes(last)
    except UserFault as error:
        return str(error.cause)
    raise AssertionError(f"a page that nobody brought was read: {found[:8]!r}")


def agree(holds: bool, otherwise: str) -> None:
    """Wrong bytes are a bug."""
    if not holds:
        raise AssertionError(otherwise)


def show(rows: list[Row]) -> None:
    """A table, one line for each way."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "answered by"):
        table.add_column(title)
    for title in ("pages", "calls", "per touch"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.what, row.answered_by, str(row.pages), str(row.calls), format_seconds(row.seconds_per_touch))
    console().print(table)
