"""One userfaultfd descriptor: register memory, read who touched what, and bring the pages."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from userfault import _core
from userfault.kernel.events import Event, Fork, PageFault, Remap, Remove, Unknown, Unmap
from userfault.kernel.flags import (
    ContinueMode,
    CopyMode,
    FaultFlags,
    Features,
    Ioctls,
    MoveMode,
    ProtectMode,
    RegisterMode,
    RwProtectMode,
)
from userfault.kernel.outcome import Outcome

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    Range: TypeAlias = tuple[int, int] | ReadableBuffer
    Place: TypeAlias = int | Range


@dataclass(frozen=True, slots=True)
class FaultCounts:
    """Faults of a descriptor that nobody has resolved.

    Attributes:
        unread: nobody has read of them yet.
        waiting: all whose thread still waits, read or not.
    """

    unread: int
    waiting: int


def range_of(buffer: ReadableBuffer) -> tuple[int, int]:
    """Return the address and the length in bytes of the memory behind a buffer, without touching it.

    Args:
        buffer: any contiguous object with the buffer protocol.
    """
    return _core.range_of(buffer)


class Userfaultfd:
    """A userfaultfd(2) descriptor.

    Memory is named by a buffer or by ``(address, length)``; sizes are bytes, and whole pages.
    Operations that bring pages return an `Outcome`; the others raise OSError.
    Everything raises ValueError once it is closed.

    A Python thread that touches an absent page usually holds the GIL while it waits, and then no other Python thread
    runs to bring the page: serve faults of this process's Python code with `userfault.map`, or from another process.

    Args:
        features: what to ask for; see `Features`.
        user_mode_only: leave faults of system calls out (they get EFAULT). Any user may have such a descriptor.
        nonblocking: `read_events` without a timeout returns at once. The descriptor itself is always in O_NONBLOCK
            mode, which poll(2) and asyncio need, and close-on-exec.
        device: True: from /dev/userfaultfd only; False: by the system call only; None: the device, and the system call
            where the device is absent or refused.

    Raises:
        PermissionError: refused; `hint` says the one command that would change it.
        OSError: EINVAL for a feature that this kernel lacks, ENOSYS without userfaultfd.

    Threads: safe from any.
    GIL: released in every call into the kernel.
    """

    __slots__ = ("__weakref__", "_fd", "_held", "_nonblocking")

    def __init__(
        self,
        features: Features = Features.NONE,
        *,
        user_mode_only: bool = False,
        nonblocking: bool = False,
        device: bool | None = None,
    ) -> None:
        self._adopt(_core.Userfaultfd(features, user_mode_only, device), nonblocking)

    def _adopt(self, fd: _core.Userfaultfd, nonblocking: bool) -> None:
        self._fd = fd
        self._nonblocking = nonblocking
        self._held: list[tuple[int, int, memoryview]] = []

    @classmethod
    def _wrap(cls, fd: _core.Userfaultfd, nonblocking: bool) -> Userfaultfd:
        made = cls.__new__(cls)
        made._adopt(fd, nonblocking)
        return made

    @classmethod
    def from_fd(cls, fd: int, *, nonblocking: bool = False) -> Userfaultfd:
        """Take over a descriptor that came from elsewhere, such as another process; it is switched to O_NONBLOCK.

        Args:
            fd: its number; it belongs to the new object from now on.
            nonblocking: as for the class.

        Raises:
            OSError: EINVAL, ENOENT: it is no open userfaultfd; it still belongs to the caller.
        """
        return cls._wrap(_core.Userfaultfd.adopt(fd), nonblocking)

    # The descriptor

    def fileno(self) -> int:
        """Return the number of the descriptor."""
        return self._fd.fileno()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._fd.closed

    @property
    def features(self) -> Features:
        """The features in force, those that others imply included."""
        return Features(self._fd.fdinfo()[2])

    def close(self) -> None:
        """Close the descriptor; a reader that waits in another thread gets ValueError. Twice is fine.

        Where nobody else has a copy of the descriptor, its memory is ordinary from now on: **pages still missing
        become zeros, silently**, for the threads that wait for them too. Poison stays.

        Blocks: no; the kernel's descriptor goes when the last call in progress has left.
        GIL: released.
        """
        self._fd.close()
        self._held.clear()

    def counts(self) -> FaultCounts:
        """Return how many faults are unread or unresolved: a cheap watch for stuck ones."""
        unread, waiting, _ = self._fd.fdinfo()
        return FaultCounts(unread, waiting)

    def __enter__(self) -> Userfaultfd:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        fd: _core.Userfaultfd | None = getattr(self, "_fd", None)
        if fd is not None and not fd.closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<Userfaultfd closed>"
        names = "|".join(feature.name or "" for feature in self.features) or "no features"
        return f"<Userfaultfd fd={self.fileno()} {names}>"

    # Ranges

    def register(self, where: Range, modes: RegisterMode = RegisterMode.MISSING) -> Ioctls:
        """Ask for the faults of a range.

        A buffer stays exported until `unregister` or `close`, so that it can be neither closed nor resized meanwhile.
        Pages already there stay and never fault. All mappings of the range are taken or none.
        Modes that are no subset of the present ones replace them.

        Args:
            where: a buffer or ``(address, length)``, whole pages.
            modes: which faults.

        Returns:
            What the kernel says it can do with the range.

        Raises:
            OSError: EINVAL (unaligned, or memory that cannot fault so), EBUSY (another descriptor has it).
            PermissionError: shared memory that may never be written.

        Kernel: UFFDIO_REGISTER.
        """
        granted = Ioctls(self._fd.register(where, modes))
        if not isinstance(where, tuple):
            start, length = _core.range_of(where)
            self._held.append((start, start + length, memoryview(where)))
        return granted

    def unregister(self, where: Range) -> None:
        """Make a range ordinary memory again: **pages still missing become zeros**, for waiters too.

        Threads that wait for a write-protected or minor fault go on waiting: `wake` them.

        Args:
            where: a buffer or ``(address, length)``.

        Raises:
            OSError: EINVAL: nothing mapped there, another descriptor has it, or a part of a huge page.

        Kernel: UFFDIO_UNREGISTER.
        """
        self._fd.unregister(where)
        start, length = _core.range_of(where)
        stop = start + length
        self._held = [held for held in self._held if not (start <= held[0] and held[1] <= stop)]

    def wake(self, where: Range) -> None:
        """Let threads that wait for a page of a range look again; they fault again if nothing has changed.

        Args:
            where: a buffer or ``(address, length)``; a range without waiters is fine.

        Raises:
            OSError: EINVAL: not whole pages.

        Kernel: UFFDIO_WAKE.
        """
        self._fd.wake(where)

    # Bringing pages

    def copy(self, dst: Place, src: Place, length: int | None = None, *, mode: CopyMode = CopyMode.NONE) -> Outcome:
        """Fill absent pages with a copy of bytes; a page already there is never changed.

        Also lifts poison and write-protect marks.

        Args:
            dst: where: an address, ``(address, length)`` or a buffer; starts on a page.
            src: what: a buffer (aligned or not), an address or ``(address, length)`` in this process.
            length: bytes, whole pages; as long as `src` by default, else as long as `dst`.
            mode: how.

        Returns:
            The outcome. On any but done and partial nobody was woken.

        Raises:
            ValueError: more bytes than `dst` or `src` has; closed.

        Blocks: only if `src` is lazy memory itself.
        Kernel: UFFDIO_COPY.
        """
        return Outcome.from_core(self._fd.copy(dst, src, length, mode))

    def zeropage(self, where: Range, *, wake: bool = True) -> Outcome:
        """Fill absent pages with zeros; in private memory this costs no page. Not for hugetlbfs.

        Args:
            where: a buffer or ``(address, length)``.
            wake: wake the waiters.

        Kernel: UFFDIO_ZEROPAGE.
        """
        return Outcome.from_core(self._fd.zeropage(where, wake))

    def move(self, dst: Place, src: Place, length: int | None = None, *, mode: MoveMode = MoveMode.NONE) -> Outcome:
        """Move pages into absent ones without copying; the source reads as zeros afterwards.

        Both are private anonymous memory of this process (``mmap.mmap(-1, n, flags=MAP_PRIVATE | MAP_ANONYMOUS)``),
        writable, and `dst` is registered here.

        Args:
            dst: where: an address, ``(address, length)`` or a buffer.
            src: from where, likewise; whole pages.
            length: bytes; as long as `src` by default, else as long as `dst`.
            mode: how.

        Returns:
            The outcome; EBUSY for a page that is or was shared with a forked child and not written since.

        Kernel: UFFDIO_MOVE (Linux 6.8; `capabilities().move`).
        """
        return Outcome.from_core(self._fd.move(dst, src, length, mode))

    def continue_(self, where: Range, *, mode: ContinueMode = ContinueMode.NONE) -> Outcome:
        """Map pages that are already in the page cache: the answer to a minor fault.

        Args:
            where: a buffer or ``(address, length)`` of shared memory.
            mode: how.

        Kernel: UFFDIO_CONTINUE.
        """
        return Outcome.from_core(self._fd.continue_(where, mode))

    def poison(self, where: Range, *, wake: bool = True) -> Outcome:
        """Make absent pages answer any access with SIGBUS, system calls with EFAULT; it outlives this descriptor.

        Args:
            where: a buffer or ``(address, length)``.
            wake: wake the waiters, who get the signal.

        Kernel: UFFDIO_POISON (Linux 6.6; `capabilities().poison`).
        """
        return Outcome.from_core(self._fd.poison(where, wake))

    def write_protect(self, where: Range, *, mode: ProtectMode = ProtectMode.WP) -> Outcome:
        """Protect pages against writes, or lift that and wake the writers (``mode=ProtectMode.NONE``).

        Absent pages of private memory stay open unless the descriptor has WP_UNPOPULATED or WP_ASYNC.

        Args:
            where: a buffer or ``(address, length)``, registered with `RegisterMode.WP`.
            mode: protect or lift.

        Kernel: UFFDIO_WRITEPROTECT.
        """
        return Outcome.from_core(self._fd.write_protect(where, mode))

    def rw_protect(self, where: Range, *, mode: RwProtectMode = RwProtectMode.RWP) -> Outcome:
        """Trap any access to present pages, or lift that and wake.

        Args:
            where: a buffer or ``(address, length)``, registered with `RegisterMode.RWP`.
            mode: protect or lift.

        Kernel: UFFDIO_RWPROTECT (Linux 7.2).
        """
        return Outcome.from_core(self._fd.rw_protect(where, mode))

    def set_mode(self, *, enable: Features = Features.NONE, disable: Features = Features.NONE) -> None:
        """Switch features at run time (RWP_ASYNC).

        Args:
            enable: to switch on.
            disable: to switch off.

        Raises:
            OSError: the kernel does not have it.

        Kernel: UFFDIO_SET_MODE (Linux 7.2).
        """
        self._fd.set_mode(enable, disable)

    # Events

    def read_events(self, max: int = 64, timeout: float | None = None) -> list[Event]:
        """Read who touched what, and news about the address space.

        Faults come before other events, even before older ones.

        Args:
            max: at most so many events.
            timeout: seconds to wait for the first; None waits for ever, or not at all with `nonblocking`.

        Returns:
            The events; none when the time is up. A `Fork` event owns the child's descriptor: close it.

        Raises:
            ValueError: closed, before or meanwhile.

        Blocks: until there is an event, the time is up, `close`, or a signal whose handler raises (Ctrl-C).
        GIL: released.
        """
        if timeout is None and self._nonblocking:
            timeout = 0.0
        return [self._event(message) for message in self._fd.read_events(max, timeout)]

    def _event(self, message: tuple[Any, ...]) -> Event:
        match message:
            case (0x12, address, flags, thread):
                return PageFault(address, FaultFlags(flags), thread)
            case (0x13, child):
                return Fork(self._wrap(child, self._nonblocking))
            case (0x14, source, destination, length):
                return Remap(source, destination, length)
            case (0x15, start, stop):
                return Remove(start, stop)
            case (0x16, start, stop):
                return Unmap(start, stop)
            case (number, *_):
                return Unknown(number)
        raise AssertionError(message)
