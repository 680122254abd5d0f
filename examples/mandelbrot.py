"""The Mandelbrot set as memory: a tebibyte of it, of which a page is computed when it is looked at.

    python examples/mandelbrot.py [OUT.pgm]

A page is a tile of 64 x 64 points. Three looks of 512 x 512 points, found by ordinary indexing, are written as one picture.
"""

from __future__ import annotations

import sys

import numpy as np

import userfault as uf

SIDE, TILE, LOOK = 1 << 20, 64, 512
PLACES = [(-0.7436, 0.1318), (0.2755, 0.0068), (-1.25066, 0.02012)]


def escape(tile_row: np.ndarray, tile_column: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """How soon points run away, 0 to 255; asked for the points of the touched pages."""
    x = (tile_column * TILE + column) / SIDE * 3 - 2.25
    y = (tile_row * TILE + row) / SIDE * 3 - 1.5
    c = x + 1j * y
    z, steps, moving = np.zeros_like(c), np.zeros(c.shape, "u1"), np.arange(len(c))
    for _ in range(255):
        z[moving] = z[moving] ** 2 + c[moving]
        moving = moving[np.abs(z[moving]) < 2]
        steps[moving] += 1
    return steps


def look(points: np.ndarray, x: float, y: float) -> np.ndarray:
    """The points around (x, y)."""
    rows = np.arange(LOOK) + int((y + 1.5) / 3 * SIDE) - LOOK // 2
    columns = np.arange(LOOK) + int((x + 2.25) / 3 * SIDE) - LOOK // 2
    return points[rows[:, None] // TILE, columns // TILE, rows[:, None] % TILE, columns % TILE]


def main() -> None:
    """Look, and write what was seen."""
    out = sys.argv[1] if len(sys.argv) > 1 else "mandelbrot.pgm"
    source = uf.Computed(escape, (SIDE // TILE, SIDE // TILE, TILE, TILE), "u1", unit="4KiB")
    with uf.map(source) as region, uf.checked():
        points = region.numpy(source.dtype, source.shape)
        picture = np.hstack([look(points, x, y) for x, y in PLACES])
        with open(out, "wb") as file:
            file.write(b"P5 %d %d 255\n" % picture.shape[::-1] + picture.tobytes())
        print(f"{region.statistics().present_units} of {len(region) // 4096} pages were computed for {out}")
        del points


if __name__ == "__main__":
    main()
