"""Which pages of a range are present, written, zero or huge: `PAGEMAP_SCAN`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from userfault import _core
from userfault.kernel.flags import PageCategory, ScanFlags

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_EVERYTHING = PageCategory(0xFF)


@dataclass(frozen=True, slots=True)
class PageRange:
    """Neighbouring pages of the same categories.

    Attributes:
        start: first address.
        stop: address after the last.
        categories: what is known of them, as far as it was asked for.
    """

    start: int
    stop: int
    categories: PageCategory

    @property
    def bytes(self) -> int:
        """Length in bytes."""
        return self.stop - self.start


def scan(
    where: tuple[int, int] | ReadableBuffer,
    *,
    all_of: PageCategory = PageCategory.NONE,
    any_of: PageCategory = PageCategory.NONE,
    inverted: PageCategory = PageCategory.NONE,
    report: PageCategory = _EVERYTHING,
    flags: ScanFlags = ScanFlags.NONE,
    max_pages: int = 0,
    pid: int | None = None,
) -> list[PageRange]:
    """Find the pages of a range that match, without touching any.

    Args:
        where: a buffer, or ``(address, length)`` in bytes; it starts on a page.
        all_of: a page must have all of these.
        any_of: a page must have one of these; none given: no such demand.
        inverted: categories whose sense is turned round in the two demands.
        report: what to tell of a page that matches. GUARD is left out by default: kernels before 6.15 refuse it.
        flags: what to do besides looking.
        max_pages: stop after so many pages that match; 0 for no limit.
        pid: another process, whose memory we may trace; ours by default.

    Returns:
        Ranges in order of address; neighbours of the same categories are one.

    Raises:
        OSError: EINVAL for an unaligned start, PermissionError for CHECK_WPASYNC or a process that may not be traced,
            ENOTTY where the kernel has no PAGEMAP_SCAN.

    Blocks: no.
    GIL: released.
    Kernel: PAGEMAP_SCAN (Linux 6.7).
    Cost: one system call per 512 ranges found; O(pages).
    """
    start, length = _core.range_of(where)
    found = _core.pagemap_scan(
        start,
        start + length,
        pid=pid,
        flags=flags,
        inverted=inverted,
        all_of=all_of,
        any_of=any_of,
        report=report,
        max_pages=max_pages,
    )
    return [PageRange(begin, end, PageCategory(categories)) for begin, end, categories in found]
