"""The rules of the October 2014 proposal as a model in plain Python: no memory, no kernel, only what has to happen.

`userfault.mman` is held against it, and so can any other implementation be. An address space is a table of pages; each call
returns what the system call of the proposal would: zero or more, or a negative errno.

>>> space = Space()
>>> space.mmap(0, 4 * PAGE)
0
>>> space.madvise(0, 4 * PAGE, "userfault")
0
>>> space.touch(PAGE)                                  # flagged, and nobody registered it
Outcome(kind='sigbus', value=4096)
>>> number = space.userfaultfd()
>>> space.register(number, 0, 4 * PAGE)
16
>>> space.touch(PAGE + 5, thread="a")                  # flagged and registered: the thread waits
Outcome(kind='descriptor', value=3)
>>> space.read_fault(number)
4101
>>> space.write(8 * PAGE, 77), space.mmap(8 * PAGE, PAGE), space.write(8 * PAGE, 77)
(Outcome(kind='segv', value=32768), 0, Outcome(kind='zero', value=0))
>>> space.remap_anon_pages(PAGE, 8 * PAGE, PAGE)       # from staging memory into the hole
4096
>>> space.wake(number, PAGE, 2 * PAGE)
16
>>> space.touch(PAGE + 5, thread="a")                  # the instruction starts again
Outcome(kind='data', value=77)

The three policies are the options that were discussed: "madvise" (a fault goes to the descriptor where a range is flagged *and*
registered), "mprotect" (the same, but `PROT_USERFAULT` is the flag) and "register-only" (no flag).

Not modelled: fork, swap, huge pages, mlock, and whether two mappings with equal attributes are one: here they always are. The
kernel's shared page of zeros moves like any other, as it does today; in 2014 it was EBUSY.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

__all__ = ["PAGE", "PROTOCOL", "TASK_SIZE", "Descriptor", "Fault", "Outcome", "Page", "Space"]

PAGE = 4096
TASK_SIZE = (1 << 47) - PAGE
PROTOCOL = 0xAA
UNKNOWN_PROTOCOL = (1 << 64) - 1
RAP_ALLOW_SRC_HOLES = 1

Policy = Literal["madvise", "mprotect", "register-only"]
Kind = Literal["private", "shared", "file"]
Advice = Literal["userfault", "nouserfault", "dontneed"]
Access = Literal["rw", "r", "none"]


class Outcome(NamedTuple):
    """What a touch meets.

    Attributes:
        kind: "data" (the page was there), "zero" (a page of zeros was made), "sigbus" (SIGBUS, or EFAULT from a system call),
            "descriptor" (the thread waits), or "segv" (no mapping, or none that permits it).
        value: The content seen; the address of the fault for "sigbus" and "segv"; the descriptor's number.
    """

    kind: Literal["data", "zero", "sigbus", "descriptor", "segv"]
    value: int


class Fault(NamedTuple):
    """A touch that waits at a descriptor.

    Attributes:
        address: In bytes, as touched.
        thread: Who waits; any name.
    """

    address: int
    thread: str


@dataclass
class Page:
    """One mapped page.

    Attributes:
        kind: "private" anonymous memory is the only kind that can fault to user space.
        access: What its mapping permits.
        content: A token for all of its bytes, 0 for zeros; None while it is absent.
        flagged: By `MADV_USERFAULT` or `PROT_USERFAULT`.
        owner: Number of the descriptor it is registered with.
        orphaned: Under "register-only": its descriptor was closed, so a touch is SIGBUS and not zeros.
    """

    kind: Kind = "private"
    access: Access = "rw"
    content: int | None = None
    flagged: bool = False
    owner: int | None = None
    orphaned: bool = False

    @property
    def mapping(self) -> tuple[object, ...]:
        """Pages beside each other with equal values here are one mapping."""
        return (self.kind, self.access, self.flagged, self.owner, self.orphaned)


@dataclass
class Descriptor:
    """One userfaultfd of the proposal.

    Attributes:
        state: "ask" until a protocol was written, "ack" or "unknown" until the answer was read, then "running".
        unread: Faults that wait and were not read, the newest last.
        unwoken: Faults that were read, and whose threads still wait.
    """

    state: Literal["ask", "ack", "unknown", "running"] = "ask"
    unread: list[Fault] = field(default_factory=list)
    unwoken: list[Fault] = field(default_factory=list)

    @property
    def readable(self) -> bool:
        """Whether poll says POLLIN."""
        return self.state in ("ack", "unknown") or (self.state == "running" and bool(self.unread))

    @property
    def writable(self) -> bool:
        """Whether poll says POLLOUT."""
        return self.state == "ask" or (self.state == "running" and bool(self.unwoken))


class Space:
    """An address space, and the calls of the proposal on it. Addresses and lengths are in bytes."""

    def __init__(self, policy: Policy = "madvise") -> None:
        """An empty one, under one of the three policies."""
        self.policy = policy
        self.pages: dict[int, Page] = {}
        self.descriptors: dict[int, Descriptor] = {}

    # Mappings

    def mmap(self, start: int, length: int, kind: Kind = "private", access: Access = "rw") -> int:
        """Map fresh memory there; what was mapped there before is gone, flags and registrations too (MAP_FIXED)."""
        for number in _numbers(start, length):
            self.pages[number] = Page(kind, access)
        return 0

    def munmap(self, start: int, length: int) -> int:
        """Leave a hole."""
        for number in _numbers(start, length):
            self.pages.pop(number, None)
        return 0

    def mremap(self, start: int, length: int, to: int) -> int:
        """Move one mapping: pages, flag and registration go with it; the old place is a hole (MREMAP_FIXED)."""
        if len(list(self._mappings(start, start + length))) != 1 or self._holes(start, start + length):
            return -errno.EFAULT
        moved = [self.pages.pop(number) for number in _numbers(start, length)]
        for number, page in zip(_numbers(to, length), moved, strict=True):
            self.pages[number] = page
        return 0

    # The flag

    def madvise(self, start: int, length: int, advice: Advice) -> int:
        """Flag, unflag, or drop pages.

        Returns:
            0; -EINVAL for an unaligned start, for a mapping that is not private anonymous (those before it keep the advice, those
            after it do not get it) and for the flag under another policy; -ENOMEM where there were holes (the rest is done).
        """
        if start % PAGE or (advice != "dontneed" and self.policy != "madvise"):
            return -errno.EINVAL
        end = start + _up(length)
        for page in self._pages(start, end):
            if advice == "dontneed":
                page.content = None if page.kind == "private" else page.content
            elif page.kind != "private":
                return -errno.EINVAL
            else:
                page.flagged = advice == "userfault"
        return -errno.ENOMEM if self._holes(start, end) else 0

    def mprotect(self, start: int, length: int, access: Access = "rw", userfault: bool = False) -> int:
        """Set what is permitted; under the policy "mprotect" also the flag: any call without it takes it away.

        Returns:
            0; -EINVAL for an unaligned start, for `userfault` under another policy or on a mapping that is not private anonymous;
            -ENOMEM at the first hole. The mappings before are done.
        """
        if start % PAGE or (userfault and self.policy != "mprotect"):
            return -errno.EINVAL
        for number in _numbers(start, _up(length)):
            page = self.pages.get(number)
            if page is None:
                return -errno.ENOMEM
            if userfault and page.kind != "private":
                return -errno.EINVAL
            page.access = access
            if self.policy == "mprotect":
                page.flagged = userfault
        return 0

    # Touches

    def touch(self, address: int, thread: str = "main") -> Outcome:
        """Read a byte. A thread that was woken calls again: its instruction starts again."""
        return self._touch(address, None, thread)

    def write(self, address: int, content: int, thread: str = "main") -> Outcome:
        """Write `content` over the whole page. A fault is decided first, as for a read."""
        return self._touch(address, content, thread)

    def _touch(self, address: int, content: int | None, thread: str) -> Outcome:
        page = self.pages.get(address // PAGE)
        if page is None or page.access == "none" or (content is not None and page.access != "rw"):
            return Outcome("segv", address)
        kind: Literal["data", "zero"] = "data"
        if page.content is None:
            told = self._told(page)
            if told is not None:
                self.descriptors[told].unread.append(Fault(address, thread))
                return Outcome("descriptor", told)
            if page.flagged or page.orphaned:
                return Outcome("sigbus", address)
            page.content, kind = 0, "zero"
        seen = page.content
        page.content = page.content if content is None else content
        return Outcome(kind, seen)

    def _told(self, page: Page) -> int | None:
        """The joining rule: the descriptor that hears of a fault on this absent page, if any does."""
        joined = page.kind == "private" and (page.flagged or self.policy == "register-only")
        return page.owner if joined else None

    # The descriptor

    def userfaultfd(self, handshake: bool = True) -> int:
        """A new descriptor's number; with `handshake` it is running."""
        number = max(self.descriptors, default=2) + 1
        self.descriptors[number] = Descriptor("running" if handshake else "ask")
        return number

    def read(self, number: int, size: int) -> bytes | int:
        """Read(2), not blocking: eight bytes, or a negative errno (-EAGAIN where it would block)."""
        it = self.descriptors[number]
        if size < 8 or it.state == "ask":
            return -errno.EINVAL
        if it.state == "running":
            address = self.read_fault(number)
            return address if address == -errno.EAGAIN else address.to_bytes(8, "little")
        known, it.state = it.state == "ack", "running" if it.state == "ack" else "ask"
        return (PROTOCOL if known else UNKNOWN_PROTOCOL).to_bytes(8, "little")

    def read_fault(self, number: int) -> int:
        """The address of the newest fault that nobody read, which then waits to be woken; -EAGAIN if there is none."""
        it = self.descriptors[number]
        if not it.unread:
            return -errno.EAGAIN
        it.unwoken.append(it.unread.pop())
        return it.unwoken[-1].address

    def write_command(self, number: int, data: bytes) -> int:
        """Write(2): the protocol; then sixteen bytes, the start of a range with the command in its two low bits, and its end."""
        it = self.descriptors[number]
        if it.state == "ask":
            if len(data) < 8:
                return -errno.EINVAL
            it.state = "ack" if int.from_bytes(data[:8], "little") == PROTOCOL else "unknown"
            return 8
        if it.state != "running" or len(data) < 16:
            return -errno.EINVAL
        first, end = (int.from_bytes(data[at : at + 8], "little") for at in (0, 8))
        command, start = first & 3, first & ~3
        if start % PAGE or end % PAGE:
            return -errno.EINVAL
        if start >= end:
            return -errno.ERANGE
        if end > TASK_SIZE:
            return -errno.ENOMEM
        if command == 0:
            return self._wake(it, start, end)
        return self._set_owner(number, start, end, command == 1) if command < 3 else -errno.EINVAL

    def wake(self, number: int, start: int, end: int) -> int:
        """Let the threads of read faults in the range go on; 16, or -ENOENT if there is no such fault."""
        return self.write_command(number, _command(start, end, 0))

    def register(self, number: int, start: int, end: int) -> int:
        """Own a range.

        Returns:
            16; -ENOMEM if nothing is mapped from `start` on, -EINVAL for a hole, -EBUSY at the first mapping of another
            descriptor (the mappings before it stay registered); under "register-only" also -EINVAL at one that cannot fault.
        """
        return self.write_command(number, _command(start, end, 1))

    def unregister(self, number: int, start: int, end: int) -> int:
        """Give a range up. The errors are those of `register`."""
        return self.write_command(number, _command(start, end, 2))

    def close(self, number: int) -> list[Fault]:
        """Close it: its ranges belong to nobody, and the threads whose faults are returned touch again (and get SIGBUS)."""
        it = self.descriptors.pop(number)
        for page in self.pages.values():
            if page.owner == number:
                page.owner, page.orphaned = None, self.policy == "register-only"
        return it.unread + it.unwoken

    def _wake(self, it: Descriptor, start: int, end: int) -> int:
        woken = [fault for fault in it.unwoken if start <= fault.address < end]
        it.unwoken = [fault for fault in it.unwoken if fault not in woken]
        return 16 if woken else -errno.ENOENT

    def _set_owner(self, number: int, start: int, end: int, own: bool) -> int:
        if not any(start <= page * PAGE for page in self.pages):
            return -errno.ENOMEM
        found = list(self._pages(start, end))
        if not found:
            return -errno.EINVAL
        for page in found:
            if page.owner not in (None, number):
                return -errno.EBUSY
            if self.policy == "register-only" and page.kind != "private":
                return -errno.EINVAL
            page.owner, page.orphaned = number if own else None, False
        return 16

    # The move

    def remap_anon_pages(self, dst: int, src: int, length: int, flags: int = 0) -> int:
        """Move pages from `src` into the holes at `dst`. Wakes nobody.

        Returns:
            The bytes moved, at least a page; or -EINVAL (see the rules), -EEXIST for a page that is there, -ENOENT for a hole of
            the source (with `RAP_ALLOW_SRC_HOLES` it is passed over). An error after progress is a short count.
        """
        wrong = dst % PAGE or src % PAGE or length % PAGE or length <= 0 or flags & ~RAP_ALLOW_SRC_HOLES
        if wrong or not self._may_move(dst, src, length):
            return -errno.EINVAL
        for moved in range(0, length, PAGE):
            code = self._move_page(self.pages[(dst + moved) // PAGE], self.pages[(src + moved) // PAGE], flags)
            if code:
                return moved or -code
        return length

    def _may_move(self, dst: int, src: int, length: int) -> bool:
        """Both lie in one private mapping each, with the same protection."""
        both = [list(self._mappings(start, start + length)) for start in (dst, src)]
        if any(len(one) != 1 for one in both) or self._holes(dst, dst + length) or self._holes(src, src + length):
            return False
        to, source = (self.pages[start // PAGE] for start in (dst, src))
        return to.kind == source.kind == "private" and to.access == source.access

    def _move_page(self, to: Page, source: Page, flags: int) -> int:
        if to.content is not None:
            return errno.EEXIST
        if source.content is None:
            return 0 if flags & RAP_ALLOW_SRC_HOLES else errno.ENOENT
        to.content, source.content = source.content, None
        return 0

    # The table

    def _pages(self, start: int, end: int) -> Iterator[Page]:
        return (self.pages[number] for number in _numbers(start, end - start) if number in self.pages)

    def _holes(self, start: int, end: int) -> bool:
        return any(number not in self.pages for number in _numbers(start, end - start))

    def _mappings(self, start: int, end: int) -> Iterator[tuple[object, ...]]:
        """The attributes of each mapping in a range."""
        last: tuple[object, ...] | None = None
        for number in _numbers(start, end - start):
            page = self.pages.get(number)
            mapping = page.mapping if page else None
            if mapping is not None and mapping != last:
                yield mapping
            last = mapping


def _numbers(start: int, length: int) -> range:
    """The numbers of the pages of a range."""
    return range(start // PAGE, (start + _up(length)) // PAGE)


def _up(length: int) -> int:
    return -(-length // PAGE) * PAGE


def _command(start: int, end: int, command: int) -> bytes:
    return (start | command).to_bytes(8, "little") + end.to_bytes(8, "little")
