"""A forked child that follows: `ForkedUserfaultfd`, its descriptor in the parent."""

from __future__ import annotations

import mmap
from types import TracebackType
from typing import TYPE_CHECKING

from userfault import _core

if TYPE_CHECKING:
    from typing_extensions import Buffer


class ForkedUserfaultfd:
    """What a forked child waits for, and pages for it. Made by `Userfaultfd2014.accept_fork`; a context manager.

    The child has a copy of the pages that were there at the fork, and this descriptor for the others. A fault that nobody
    answers within the timeout of the parent's descriptor ends the child by SIGBUS with a line; so does each one after
    `close`, or after the parent's descriptor was closed. If this process ends, the child does too.
    """

    def __init__(self, native: _core.NativeForkedUserfaultfd) -> None:
        self._native = native

    def __enter__(self) -> ForkedUserfaultfd:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        closed, gone, unread = self._native.standing()
        state = "closed" if closed else "child gone" if gone else f"{unread} unread"
        return f"<ForkedUserfaultfd {self.ident}: {state}>"

    @property
    def ident(self) -> int:
        """Return a number that no other descriptor of this process has."""
        return self._native.ident

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._native.standing()[0]

    @property
    def pending(self) -> int:
        """Return how many faults of the child nobody has read."""
        return self._native.standing()[2]

    def read_fault(self) -> int:
        """Return the exact address of the newest fault that nobody has read; the same page may be asked for twice.

        Raises:
            ProcessLookupError: The child is gone, which is noticed within a second.
            ValueError: It is closed.

        Blocks: until there is a fault; Ctrl-C works. GIL: released.
        """
        return self._native.read_fault()

    def fill(self, address: int, data: Buffer) -> int:
        """Copy pages into the child and wake who waits for them. Pages cannot be moved into another process.

        Args:
            address: Any address in the first page.
            data: Whole pages of bytes. Pages that the child has stay as they are.

        Returns:
            Bytes of the pages that were filled.

        Raises:
            ProcessLookupError: The child is gone.
            OSError: ENOENT: the child has nothing there that follows.
            ValueError: It is closed; no whole number of pages.

        Blocks: for a copy. GIL: released.
        """
        return self._native.fill(address, bytes(data))

    def wake(self, address: int, length: int = mmap.PAGESIZE) -> None:
        """Have those who wait in the range ask again. Raises as `fill` does."""
        self._native.wake(address, length)

    def close(self) -> None:
        """Answer no fault of the child any more: it gets SIGBUS, never zeros. Twice is fine."""
        self._native.close()
