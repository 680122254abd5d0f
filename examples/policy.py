"""A paging policy in ten lines: which pages to fetch ahead is decided by Python, from what is touched.

    python examples/policy.py

Somebody walks along the columns of a table that lies in rows. The kernel's read-ahead would guess the next pages; this
policy sees the stride of the last two reads, and asks for the next pages of that column.
"""

from __future__ import annotations

import numpy as np

import userfault as uf

ROWS, COLUMNS = 2000, 4096
TABLE = np.arange(ROWS * COLUMNS, dtype="f4").reshape(ROWS, COLUMNS)


class Strided(uf.Source):
    """Hands out the table, and asks for what will be wanted next."""

    length = TABLE.nbytes
    unit = "4KiB"
    region: uf.Region
    last, stride, ahead = 0, 0, 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Bring a page; the policy is the rest."""
        buffer[:] = TABLE.data.cast("B")[offset : offset + len(buffer)]
        if offset <= self.ahead:
            return  # it was this policy that asked for it
        if self.stride and offset - self.last == self.stride:
            for step in range(1, 33):
                place = self.ahead = offset + step * self.stride
                if place < self.length:
                    self.region.prefetch(slice(place, place + len(buffer)))
        self.last, self.stride = offset, offset - self.last


def main() -> None:
    """Walk down a column."""
    source = Strided()
    with uf.map(source) as region, uf.checked():
        source.region = region
        column = region.numpy("f4", (ROWS, COLUMNS))[:, 17]
        assert [float(number) for number in column] == TABLE[:, 17].tolist()
        counts = region.statistics()
        print(f"{counts.demand_units} pages were waited for, {counts.prefetched_units} were there before they were touched")
        del column


if __name__ == "__main__":
    main()
