"""The same program twice under the same memory limit: with a dict as its cache, and with a VolatileCache.

    sudo python examples/volatile_cache.py [LIMIT [WORK]]     # 128MiB and 512MiB by default

It makes tiles, keeps them in the cache, and checks whatever it finds there again; all tiles together are larger than the
limit. With the dict the kernel kills it. With the VolatileCache the kernel takes tiles instead, and the program makes them
anew. It needs root, to make the memory cgroup that holds the limit; it ends with 3 where it may not.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys

import userfault as uf
from userfault.testing import memory_group
from userfault.units import format_bytes, parse_bytes

TILE_BYTES = 256 << 10
REFUSED = 3


def tile(number: int) -> bytes:
    """What takes long in a real program."""
    return hashlib.shake_128(number.to_bytes(8, "little")).digest(TILE_BYTES)


def work(cache: uf.VolatileCache[int] | dict[int, bytes], tiles: int) -> dict[str, int]:
    """Look at every tile once and at some again; a tile that was lost is made again."""
    important = {number: tile(number)[:4096] for number in range(0, tiles, 16)}  # not volatile: must stay right
    choose = random.Random(1)
    made = found = 0
    for step in range(2 * tiles):
        number = step if step < tiles else choose.randrange(tiles)
        value = cache.get(number)
        if value is None:
            value = cache[number] = tile(number)
            made += 1
        else:
            found += 1
            if value != tile(number):
                raise SystemExit(f"tile {number} came back wrong")
    if any(tile(number)[:4096] != value for number, value in important.items()):
        raise SystemExit("memory that is not volatile was changed")
    return {"made": made, "found": found}


def run(kind: str, size: str) -> None:
    """The program itself, inside of the limit."""
    cache: uf.VolatileCache[int] | dict[int, bytes] = uf.VolatileCache() if kind == "VolatileCache" else {}
    counts = work(cache, parse_bytes(size) // TILE_BYTES)
    if isinstance(cache, uf.VolatileCache):
        statistics = cache.statistics()
        # Each tile that was missed had never been there, or was taken before.
        assert statistics.misses == counts["made"], (statistics, counts)
        counts |= {"purges": statistics.purges, "entries": statistics.entries, "resident_bytes": statistics.resident_bytes}
        assert counts["made"] == counts["entries"] + counts["purges"], counts
    print(json.dumps(counts))


def compare(limit: str, size: str) -> int:
    """Run it twice, and tell how it went; 0 if the one was killed and the other was not."""
    print(f"{size} of tiles, at most {limit} of memory")
    ended = {}
    for kind in ("dict", "VolatileCache"):
        with memory_group() as group:
            group.limit(limit)
            result = group.run([sys.executable, __file__, "--run", kind, size], stdout=subprocess.PIPE, text=True)
            ended[kind] = result.returncode
            if result.returncode == 0:
                found = json.loads(result.stdout)
                told = f"{found['made']} tiles made, {found['found']} found"
                if "purges" in found:
                    told += f", {found['purges']} taken by the kernel, {format_bytes(found['resident_bytes'])} still there"
            elif result.returncode == -signal.SIGKILL:
                told = f"killed for want of memory ({group.kills()} kill)"
            else:
                told = f"failed with {result.returncode}"
        print(f"{kind + ':':15} {told}")
    return 0 if ended == {"dict": -signal.SIGKILL, "VolatileCache": 0} else 1


def main(arguments: list[str]) -> int:
    """Take the command line apart."""
    if arguments[:1] == ["--run"]:
        run(*arguments[1:])
        return 0
    limit, size = [*arguments, *["128MiB", "512MiB"][len(arguments) :]]
    try:
        return compare(limit, size)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
