"""The proposal's argument for SIGBUS: memory of the program's own that the kernel may take (MADV_FREE), and who is told.

A purge is forced by MADV_PAGEOUT: without swap, pages that are lazily freed are all that it can take.
"""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel
UNDER = ("madvise", "mprotect")

PURGE = """
from userfault.testing import purge
# A page that another CPU still has in a list of its own is passed over by MADV_FREE, and can never be taken.
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
def purged(memory, pages):
    mman.madvise((at(memory), pages * PAGE), mman.MADV_FREE)
    eventually(lambda: purge(memory) is None and table_is_empty(memory, pages), what="the purge")
def table_is_empty(memory, pages):
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    there = ctypes.create_string_buffer(pages)
    libc.mincore(at(memory), pages * PAGE, there)
    return not any(byte & 1 for byte in there.raw)
"""


def test_purged_page_of_flagged_memory_is_sigbus_with_its_address(act):
    """And EFAULT inside a system call; what was written again before the purge stays."""
    act(
        PURGE
        + """
memory = filled(7, 8)
mman.madvise(memory, mman.MADV_USERFAULT)
mman.madvise(memory, mman.MADV_FREE)
memory[5 * PAGE] = 9
assert memory[PAGE] == 7
eventually(lambda: purge(memory) is None and table_is_empty(memory, 4), what="the purge")
error = raised(UserFault, lambda: touch(at(memory, 2)))
assert error.address == at(memory, 2), error
assert memory[5 * PAGE : 5 * PAGE + 2] == bytes([9, 7])
reader, writer = os.pipe()
raised(OSError, lambda: os.write(writer, memoryview(memory)[PAGE : PAGE + 1]))
"""
    )


def test_purged_page_is_a_message_where_a_descriptor_is_registered(act):
    """Its server makes it again, inside a system call too."""
    act(
        PURGE
        + """
memory = filled(7, 8)
with served(memory, lambda page: 8) as seen:
    purged(memory, 8)
    assert memory[3 * PAGE] == 8
    assert at(memory, 3) in seen
    reader, writer = os.pipe()
    os.write(writer, memoryview(memory)[PAGE : PAGE + 1])
    assert os.read(reader, 1) == bytes([8])
os._exit(0)
"""
    )


def test_intact_page_is_read_without_a_fault(act):
    """A read does not cancel, and finds the bytes as long as they are there."""
    act(
        """
memory = filled(7, 4)
mman.madvise(memory, mman.MADV_USERFAULT)
mman.madvise(memory, mman.MADV_FREE)
assert bytes(memory) == bytes([7]) * 4 * PAGE
"""
    )
