"""Threads that wait for the same page of a source that fails."""

import pytest


@pytest.mark.kernel
@pytest.mark.parametrize("delivery", ["thread", "signal"])
def test_each_thread_that_reads_the_pattern_hears_of_it(child, delivery):
    """The first that gives up shows it, and the others, whose time is up as well, raise as it does."""
    code = """
        import os, sys, threading, time
        import userfault as uf

        def hang(offset, buffer):
            while True:
                time.sleep(0.01)

        for turn in range(5):
            region = uf.map(uf.Function(hang, 100_000), delivery=sys.argv[1], timeout="2s")
            view, said, together = memoryview(region), [], threading.Barrier(3)

            def touch():
                together.wait()  # who came after the pattern is there would read it without a fault
                try:
                    said.append(bytes(view[:1]))
                except uf.PageError:
                    said.append("PageError")

            threads = [threading.Thread(target=touch) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            print(said, flush=True)
        os._exit(0)
        """
    result = child(code, args=[delivery], timeout=40)
    assert result.check().stdout.splitlines() == ["['PageError', 'PageError', 'PageError']"] * 5
