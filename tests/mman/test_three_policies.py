"""One program that serves a descriptor, under the three policies: what each of them asks of it."""

from __future__ import annotations

import difflib

import pytest

pytestmark = pytest.mark.kernel

PROGRAM = """
memory, staging = mman.anonymous(8 * PAGE), mman.anonymous(PAGE)
mman.madvise(memory, mman.MADV_USERFAULT)
descriptor = mman.userfaultfd()
descriptor.register(memory)
def serve():
    for _ in range(8):
        address = descriptor.read_fault()
        staging[:] = bytes([7]) * PAGE
        mman.remap_anon_pages(address // PAGE * PAGE, staging)
        descriptor.wake(address // PAGE * PAGE)
server = threading.Thread(target=serve)
server.start()
assert bytes(memory) == bytes([7]) * 8 * PAGE
server.join()
descriptor.close()
"""
FLAG = "mman.madvise(memory, mman.MADV_USERFAULT)\n"
BY_MPROTECT = "mman.mprotect(memory, mman.PROT_READ | mman.PROT_WRITE | mman.PROT_USERFAULT)\n"
PROGRAMS = {
    "madvise": PROGRAM,
    "mprotect": PROGRAM.replace(FLAG, BY_MPROTECT),
    "register-only": PROGRAM.replace(FLAG, ""),
}


def changed(policy):
    """Lines that differ from the program of option 3."""
    lines = difflib.ndiff(PROGRAM.splitlines(), PROGRAMS[policy].splitlines())
    return [line for line in lines if line[0] in "+-"]


@pytest.mark.parametrize("policy", PROGRAMS)
def test_the_program_runs_under_each_policy(act, policy):
    """Every page arrives through the descriptor."""
    act(f"mman.set_policy({policy!r})\n" + PROGRAMS[policy])


def test_the_programs_differ_in_the_line_of_the_flag():
    """Option 2 is the same less that line."""
    assert changed("register-only") == ["- " + FLAG.strip()]
    assert changed("mprotect") == ["- " + FLAG.strip(), "+ " + BY_MPROTECT.strip()]


def test_volatile_memory_needs_a_descriptor_under_register_only(act):
    """The proposal's argument for a flag of its own: without one, a purged page is zeros unless a descriptor is opened for it."""
    act(
        """
from userfault.testing import purge
mman.set_policy("register-only")
alone, watched = filled(7, 4), filled(7, 4)
raised(OSError, lambda: mman.madvise(alone, mman.MADV_USERFAULT))
raised(OSError, lambda: mman.on_sigbus(alone, None))
descriptor = mman.userfaultfd(user_mode_only=True, timeout="300ms")
descriptor.register(watched)
for memory in (alone, watched):
    mman.madvise(memory, mman.MADV_FREE)
eventually(lambda: purge(alone) is None and touch(at(alone)) == 0, what="the purge")  # silent
purge(watched)
raised(UserFault, lambda: touch(at(watched)))  # told, and not answered in time
"""
    )
