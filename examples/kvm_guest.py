"""A virtual machine whose memory arrives page by page: KVM on top of a userfault region.

    python examples/kvm_guest.py [region | failing | dirty | minor | mman | all] [--json]

A guest's memory is ordinary memory of the process that runs it. Let that be a `uf.Region`, and each page of the guest
comes from the region's source when the guest first touches it: from a compressed image, another host, or, as here, from
bytes. KVM touches the memory for the guest, inside the ioctl KVM_RUN, which is a system call. So the region must serve
the faults of system calls (`region.kernel_faults`; thread delivery does, see docs/permissions.md).

The guest (`kvm.py`) is as small as can be: 1 MiB of memory, one processor in 16-bit real mode, a dozen instructions. It walks its
memory and adds up bytes, or writes some. What it found is compared with what the source holds, and what the kernel
counted with what the guest did:

    region   all pages come from a source, one fault each
    failing  one page cannot be had: the error reaches us as `uf.PageError`, never as wrong bytes for the guest
    dirty    which pages did the guest write? the kernel notes it, without a fault to us (WP_ASYNC, PAGEMAP_SCAN)
    minor    pages in a memory file, partly written there by somebody else: the guest's faults only map them
    mman     no region: memory that is flagged and registered as the proposal of 2014 had it, and a thread in Python moves
             each page in (MADV_USERFAULT, the descriptor, remap_anon_pages)

Where there is no KVM to be had it says why, on one line, and ends with status 0.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kvm import PAGE, RAM_BYTES, SUM, WRITE, Guest, GuestError, Unavailable, must

import userfault as uf
from userfault import kernel as uk
from userfault import mman

# --- The variants -----------------------------------------------------------------------------------------------------


def contents() -> bytes:
    """What the guest's memory is to hold; the same each time."""
    return random.Random(2014).randbytes(RAM_BYTES)


def walk(guest: Guest, region: uf.Region, held: bytes | bytearray) -> dict[str, Any]:
    """Let the guest add up every 256th byte, check the sum, and that each page came from the region.

    Returns:
        What to print: the sum, the faults, the pages that came, those of them that were only mapped, the time.
    """
    found, seconds = right_sum(guest, held)
    counted = settled(region)
    pages, mapped = counted.demand_units + counted.prefetched_units, counted.continued_bytes // PAGE
    must(pages == RAM_BYTES // PAGE, f"not every page came: {counted}")
    return {"sum": found, "faults": counted.faults, "pages": pages, "mapped_pages": mapped, "seconds": seconds}


def right_sum(guest: Guest, held: bytes | bytearray) -> tuple[int, float]:
    """Let the guest add up every 256th byte, check the sum, and return it and how many seconds it took."""
    step = 256
    began = time.perf_counter()
    found = guest.start(SUM, step=step, count=(RAM_BYTES - PAGE) // step)
    seconds = time.perf_counter() - began
    expected = sum(held[PAGE::step])
    must(found == expected, f"the guest's sum is {found}, of what it should hold {expected}")
    return found, seconds


def settled(region: uf.Region) -> uf.Statistics:
    """The region's counts, once no fault is on its way: a toucher goes on a moment before its fault is counted."""
    limit = time.monotonic() + 5
    while (counted := region.statistics()).in_flight and time.monotonic() < limit:
        time.sleep(0.001)
    return counted


@contextmanager
def guest_over(region: uf.Region) -> Iterator[Guest]:
    """A guest with a region for memory; leaving raises if a page of it failed, in whichever way."""
    if not region.kernel_faults:
        raise Unavailable("this process may not serve the faults of system calls, and KVM's are: see docs/permissions.md")
    # region.read raises PageError before it gives a byte, and leaves the page there
    with uf.checked(region), Guest(region, fetch=region.read) as guest:
        yield guest


def variant_region() -> dict[str, Any]:
    """Each page comes from the source at the guest's first touch of it."""
    held = contents()
    with uf.map(held, mode="c", unit=PAGE) as region, guest_over(region) as guest:
        result = walk(guest, region, held)
    # 255 of the guest, and one of ours, who wrote the program to page 0
    must(result["faults"] == RAM_BYTES // PAGE, f"a page was asked for twice, or never: {result}")
    return result


def variant_failing() -> dict[str, Any]:
    """A page that cannot be had is an exception here; one that can a little later is right bytes for the guest."""
    held = contents()
    bad = range(77 * PAGE, 78 * PAGE)
    with uf.map(uf.testing.Chaos(uf.Bytes(held), fail=[bad]), mode="c", unit=PAGE) as region:
        try:
            with guest_over(region) as guest:
                guest.start(SUM)
        except uf.PageError as error:
            failure = error
        else:
            raise GuestError("the guest went on with bytes that nobody had")
    must(failure.offset in bad, f"the wrong page is to blame: {failure}")
    later = {"read": had_later(held, bad, SUM), "written": had_later(held, bad, WRITE)}
    return {"error": str(failure), "offset": failure.offset, "told_as": guest.mended, "later": later}


def had_later(held: bytes, bad: range, program: bytes) -> dict[str, Any]:
    """The page can be had at the third try; the region makes two by itself, and the last is ours."""
    soon = uf.testing.Chaos(uf.Bytes(held), fail=[bad], failures=2)
    after = bytearray(held)
    if program is WRITE:
        after[PAGE::PAGE] = b"*" * (RAM_BYTES // PAGE - 1)
    with uf.map(soon, mode="c", unit=PAGE) as region, guest_over(region) as guest:
        guest.start(program)
        return walk(guest, region, after) | {"told_as": guest.mended}


def variant_dirty() -> dict[str, Any]:
    """Find the pages that the guest wrote, twice, as a migration or a snapshot would.

    The memory is not a region: its pages are all there, and only writes matter. The kernel notes them by itself.
    """
    if not (tracking := uk.capabilities().write_tracking):
        raise Unavailable(f"write tracking: {tracking.why}")
    ram = mmap.mmap(-1, RAM_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    ram[:] = contents()
    rounds = []
    with uk.Userfaultfd(uk.Features.WP_ASYNC, user_mode_only=True) as fd:
        fd.register(ram, uk.RegisterMode.WP)
        fd.write_protect(ram).check()
        with Guest(ram) as guest:
            for first, step, count in [(2, 3, 80), (1, 2, 127)]:
                began = time.perf_counter()
                guest.start(WRITE, first * PAGE, step * PAGE, count)
                seconds = time.perf_counter() - began
                found = written(ram)
                must(found == [0, *range(first, first + step * count, step)], f"other pages than the guest wrote: {found}")
                rounds.append({"pages": len(found), "seconds": seconds})
        must(fd.read_events(timeout=0) == [], "a write became a fault")
        fd.unregister(ram)
    return {"rounds": rounds}


def written(ram: mmap.mmap) -> list[int]:
    """Numbers of the pages written since the last look; page 0 is: we wrote the program there."""
    start, _ = uk.range_of(ram)
    asked = uk.PageCategory.WRITTEN
    found = uk.scan(ram, all_of=asked, report=asked, flags=uk.ScanFlags.WP_MATCHING | uk.ScanFlags.CHECK_WPASYNC)
    return [(address - start) // PAGE for run in found for address in range(run.start, run.stop, PAGE)]


def variant_minor() -> dict[str, Any]:
    """Memory in a memory file: a quarter of it is written there by somebody else, and only mapped for the guest."""
    held = bytearray(contents())
    theirs = slice(RAM_BYTES // 2, RAM_BYTES * 3 // 4)
    with uf.map(bytes(held), mode="c", unit=PAGE, shared=True, on_error="abort") as region:
        held[theirs] = held[theirs][::-1]
        os.pwrite(region.fileno(), held[theirs], theirs.start)
        with guest_over(region) as guest:
            result = walk(guest, region, held)
    must(result["mapped_pages"] == (theirs.stop - theirs.start) // PAGE, f"the pages in the file were not just mapped: {result}")
    return result


def variant_mman() -> dict[str, Any]:
    """The calls of 2014: flagged memory, a descriptor that a Python thread reads, pages that are moved in."""
    held, ram = contents(), mman.anonymous(RAM_BYTES)
    asked: list[int] = []
    mman.madvise(ram, mman.MADV_USERFAULT)
    with mman.userfaultfd() as descriptor:
        descriptor.register(ram)
        server = threading.Thread(target=serve, args=(descriptor, mman.address_of(ram), held, asked))
        server.start()
        with Guest(ram) as guest:
            found, seconds = right_sum(guest, held)
    server.join()
    pages = sorted({address // PAGE * PAGE - mman.address_of(ram) for address in asked})
    must(pages == list(range(0, RAM_BYTES, PAGE)), f"the descriptor heard of other pages than the guest's: {pages}")
    return {"sum": found, "faults": len(asked), "pages": len(pages), "seconds": seconds}


def serve(descriptor: mman.Userfaultfd2014, start: int, held: bytes, asked: list[int]) -> None:
    """Write each page that is asked for somewhere else, move it to its place, wake who waits; until the descriptor is closed."""
    staging = mman.anonymous(PAGE)
    while True:
        try:
            address = descriptor.read_fault()
        except ValueError:
            return
        asked.append(address)
        offset = (address - start) // PAGE * PAGE
        staging[:] = held[offset : offset + PAGE]
        with suppress(FileExistsError):  # somebody else waited for it too
            mman.remap_anon_pages(start + offset, staging, PAGE)
        descriptor.wake(start + offset)


VARIANTS = {
    "region": variant_region,
    "failing": variant_failing,
    "dirty": variant_dirty,
    "minor": variant_minor,
    "mman": variant_mman,
}


# --- The command ------------------------------------------------------------------------------------------------------


def main() -> int:
    """Run the variants that are asked for; the status is 0 also where they cannot be had here."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("variant", nargs="?", choices=[*VARIANTS, "all"], default="region")
    parser.add_argument("--json", action="store_true", help="print one JSON object with a key for each variant")
    arguments = parser.parse_args()
    names = list(VARIANTS) if arguments.variant == "all" else [arguments.variant]
    results = {name: attempt(VARIANTS[name]) for name in names}
    if arguments.json:
        print(json.dumps(results))
        return 0
    for name, result in results.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in result.items()))
    return 0


def attempt(variant: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a variant; the reason where it cannot be had here."""
    try:
        return variant()
    except (Unavailable, uf.RefusedError) as reason:
        return {"skipped": str(reason).partition("\n")[0]}


if __name__ == "__main__":
    sys.exit(main())
