"""Layers around a Python source, in a pager: what was looked up to open it here travels with it."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]


def test_a_source_under_a_layer_is_pickled_while_it_is_open_and_closed_with_the_region(child):
    """The version of an object that was found here is the one that the pager reads, now and after a restart."""

    def code():
        import userfault as uf

        closed, pickled = [], []

        class Pinned(uf.Source):
            length = 65536
            version = None

            def open(self):
                self.version = self.version or 7
                return super().open()

            def close(self):
                self.version = None
                closed.append(1)

            def read_into(self, offset, buffer):
                buffer[:] = bytes([self.version]) * len(buffer)

            def __getstate__(self):
                pickled.append(self.version)
                return {"version": self.version}

        region = uf.map(uf.Retry(Pinned()), delivery="process")
        assert bytes(memoryview(region)[:3]) == b"\x07" * 3
        assert pickled == [7]
        assert closed == []
        region.close()
        del region
        assert closed == [1]

    child(code).check()


def test_a_finalizer_that_maps_while_the_shared_pager_is_made_does_not_wait_for_itself(child):
    """The lock around the shared pager is reentrant."""

    def code():
        import userfault as uf
        from userfault.pager import process

        with process._LOCK:
            assert memoryview(uf.map(b"lazy" * 5000, delivery="process"))[0] == ord("l")

    child(code).check()
