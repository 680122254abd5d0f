"""An array of a terabyte, of which a hundred megabytes exist.

    python examples/terabyte.py

Each touch brings one unit. Under a budget the ones that came first leave, so that any amount may be looked at in turn.
"""

from __future__ import annotations

import numpy as np

import userfault as uf

COUNT = 10**12 // 8
LOOKS = 30_000


def hashed(index: np.ndarray) -> np.ndarray:
    """A number for each index that nobody could guess, as a stand-in for whatever is dear to compute."""
    mixed = (index.astype("u8") + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> np.uint64(31))


def most_resident_mib() -> int:
    """Of this program alone: getrusage(2) counts what the process had before it was this program."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) >> 10 for line in status if line.startswith("VmHWM"))


def main() -> None:
    """Look at it here and there; then at more than is kept."""
    places = np.random.default_rng(7).integers(0, COUNT, LOOKS)
    with uf.map(uf.Computed(hashed, COUNT, "u8", unit="4KiB"), resident="100MB") as region, uf.checked():
        numbers = region.numpy("u8")
        assert (numbers[places] == hashed(places)).all()
        assert (numbers[-1_000_000:] == hashed(np.arange(COUNT - 1_000_000, COUNT))).all()
        counts = region.statistics()
        print(f"{numbers.nbytes / 1e12:.0f} TB of memory, {counts.present_units * 4096 / 1e6:.0f} MB of it there")
        print(f"{counts.demand_units + counts.prefetched_units} units came, {counts.evicted_units} left again")
        print(f"the process never had more than {most_resident_mib()} MiB")
        del numbers


if __name__ == "__main__":
    main()
