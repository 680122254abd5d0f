"""The KVM guest of examples/: every variant, what it counts, and every way in which KVM tells of absent memory."""

from __future__ import annotations

import json
import os
import sys

import pytest
from support.child import run_command
from support.house import ROOT

EXAMPLE = ROOT / "examples" / "kvm_guest.py"  # its machine is in kvm.py
PAGES = 256

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]


def counts_of(variant):
    """What the variant printed; skipped where it says that it cannot be had here."""
    result = run_command([sys.executable, str(EXAMPLE), variant, "--json"], timeout=30).check()
    counts = json.loads(result.stdout)[variant]
    if "skipped" in counts:
        assert set(counts) == {"skipped"}
        pytest.skip(counts["skipped"])
    return counts


def test_guest_over_a_region_gets_each_page_by_one_fault():
    """The sum is the source's, and 256 pages were 256 faults."""
    counts = counts_of("region")
    assert (counts["pages"], counts["faults"], counts["mapped_pages"]) == (PAGES, PAGES, 0)
    assert 0 < counts["sum"] < 255 * 16 * PAGES


def test_guest_over_a_failing_source_ends_as_page_error():
    """The failed page is named, once; pages that can be had later are right bytes, for reads and for writes."""
    counts = counts_of("failing")
    assert counts["offset"] == 77 * 4096
    assert "on purpose" in counts["error"]
    assert sum(counts["told_as"].values()) == 1
    for later in counts["later"].values():
        assert (sum(later["told_as"].values()), later["pages"]) == (1, PAGES)


def test_guest_under_write_tracking_is_logged_exactly():
    """The pages that the guest wrote, and ours with the program, in each of two rounds."""
    assert [one["pages"] for one in counts_of("dirty")["rounds"]] == [81, 128]


def test_guest_over_a_memory_file_maps_what_is_there():
    """A quarter of the pages was in the file: each is one fault like the others, and is not filled again."""
    counts = counts_of("minor")
    assert (counts["faults"], counts["mapped_pages"]) == (PAGES, PAGES // 4)


def test_guest_over_flagged_memory_gets_each_page_by_the_calls_of_2014():
    """The sum is right, and a thread in Python was asked for all 256 pages, and moved each in."""
    counts = counts_of("mman")
    assert (counts["pages"], counts["faults"]) == (PAGES, PAGES)
    assert counts["sum"] == counts_of("region")["sum"]


def test_all_variants_in_one_run_print_a_line_each():
    """`all` runs them in turn; without --json they are lines for people."""
    result = run_command([sys.executable, str(EXAMPLE), "all"], timeout=50).check()
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["region", "failing", "dirty", "minor", "mman"]


# A KVM that uses the processor's own support says EFAULT, with or without an address; one that runs the guest's instructions
# itself says «device». What this machine's KVM says is turned into the other two.
OTHER_KVM = """
import errno, fcntl, struct, sys, types
sys.path.insert(0, sys.argv[1])
import kvm
import kvm_guest as example
guests, told = [], sys.argv[2]

class Noted(example.Guest):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.owed = None
        guests.append(self)

def ioctl(descriptor, request, argument=0):
    if request != kvm.KVM_RUN:
        return fcntl.ioctl(descriptor, request, argument)
    guest = guests[-1]
    if guest.owed is not None:  # the instruction is tried again, and finds what memory holds now
        address, length, is_write, data = guest.owed
        if is_write:
            guest.ram[address : address + length] = data[:length]
        else:
            guest.state[40 : 40 + length] = guest.ram[address : address + length]
        guest.owed = None
    fcntl.ioctl(descriptor, request, argument)
    address, data, length, is_write = kvm.EXIT_MMIO_ACCESS.unpack_from(guest.state)
    if guest._reason() == kvm.EXIT_MMIO:
        guest.owed = address, length, is_write, data
        guest.state[8:12] = struct.pack("=I", kvm.EXIT_MEMORY_FAULT if told == "MEMORY_FAULT" else 0)
        guest.state[32:56] = struct.pack("=QQQ", 0, address & -4096, 4096) if told == "MEMORY_FAULT" else bytes(24)
        raise OSError(errno.EFAULT, "Bad address")
    return 0

kvm.fcntl = types.SimpleNamespace(ioctl=ioctl)
example.Guest = Noted
found = example.attempt(example.variant_failing)
assert found["offset"] == 77 * 4096 and found["told_as"] == {told: 1}, found
for later in found["later"].values():
    assert (later["told_as"], later["pages"]) == ({told: 1}, 256), found
"""


@pytest.mark.parametrize("told", ["MEMORY_FAULT", "EFAULT"])
def test_other_ways_of_telling_end_the_same(child, told):
    """The exit with an address and the bare errno become the same PageError, and the same right bytes later."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm cannot be opened")
    if list(counts_of("failing")["told_as"]) != ["MMIO"]:
        pytest.skip("this KVM tells it so by itself: the test above has seen it")
    result = child(OTHER_KVM, args=(str(EXAMPLE.parent), told))
    result.check()


def test_without_kvm_it_says_why_and_ends_well(child):
    """One line, status 0: examples are for every machine."""

    code = "import sys; from support.kvm import run_without_kvm; run_without_kvm(sys.argv[1], 'region')"
    result = child(code, args=(str(EXAMPLE),)).check()
    assert result.stdout.startswith("region: skipped ")
    assert result.stdout.count("\n") == 1
