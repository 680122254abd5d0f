"""For children of the kernel tests: memory, and touches that leave the GIL to the thread that answers them."""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from pathlib import Path

PAGE = mmap.PAGESIZE
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

libc = ctypes.CDLL(None, use_errno=True)
libc.memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def private(pages: int) -> mmap.mmap:
    """Fresh private memory."""
    return mmap.mmap(-1, pages * PAGE, flags=PRIVATE)


def load(address: int) -> int:
    """Read one byte with the GIL released."""
    byte = ctypes.c_ubyte()
    libc.memcpy(ctypes.addressof(byte), address, 1)
    return byte.value


def store(address: int, value: int) -> None:
    """Write one byte with the GIL released."""
    byte = ctypes.c_ubyte(value)
    libc.memcpy(address, ctypes.addressof(byte), 1)


def asleep_in_fault(thread: threading.Thread, seconds: float = 5) -> None:
    """Wait until a thread sleeps in the kernel for its page: its fault is read earlier, and it looks once more before it sleeps.

    Returns after `seconds` in any case: not every kernel says where a thread is.
    """
    place, limit = Path(f"/proc/self/task/{thread.native_id}/wchan"), time.monotonic() + seconds
    while place.read_text() != "handle_userfault" and time.monotonic() < limit:
        time.sleep(0.001)


class Toucher(threading.Thread):
    """Calls a function in a thread of its own; `ended` waits for it and returns its result."""

    def __init__(self, function, *arguments):
        super().__init__(daemon=True)
        self.function, self.arguments, self.result = function, arguments, None
        self.start()

    def run(self):
        self.result = self.function(*self.arguments)

    def ended(self):
        self.join(5)
        assert not self.is_alive(), "the touch did not end"
        return self.result
