"""What one source must not do to the others: keep them waiting, or be opened for ever."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]


def test_many_slow_touches_do_not_keep_another_region_waiting(child):
    """More slow reads than there is shared working memory: a fast region of the same shape is served at once."""

    def code():
        import ctypes
        import os
        import threading
        import time

        import userfault as uf

        slow = uf.map(uf.testing.Chaos(uf.Bytes(b"s" * (1 << 20)), delay="12s"), unit="64KiB")
        fast = uf.map(b"f" * (1 << 20), unit="64KiB", timeout="10s")
        compare = ctypes.CDLL(None).memcmp
        compare.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        places = [slow.address + (n << 16) for n in range(12)]
        threads = [threading.Thread(target=compare, args=(place, place, 1)) for place in places]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        began = time.monotonic()
        assert memoryview(fast)[5] == ord("f")
        assert time.monotonic() - began < 6
        os._exit(0)  # the slow ones go on for long

    child(code).check()


def test_what_has_no_length_or_place_is_refused(child):
    """Directories, pipes, devices and files of /proc are no sources; a pipe is not waited for."""

    def code():
        import os
        import tempfile

        import userfault as uf

        folder = tempfile.mkdtemp()
        os.mkfifo(folder + "/pipe")
        for path in (folder, folder + "/pipe", "/dev/zero", "/proc/cpuinfo"):
            try:
                uf.map(uf.File(path))
            except (uf.OptionError, OSError):
                continue
            raise AssertionError(path)

    child(code).check()
