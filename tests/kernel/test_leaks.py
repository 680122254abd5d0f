"""Nothing grows: memory, descriptors and threads stay flat over many regions; idle regions burn no CPU."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]


@pytest.mark.parametrize("delivery", ["thread", "signal"])
def test_ten_thousand_rounds_of_map_touch_close_leave_nothing(child, delivery):
    """Resident memory, mappings, descriptors and threads are what they were."""

    def code():
        import gc
        import pathlib
        import sys
        import tempfile

        from support.lazy import known_bytes, maps, open_descriptors, resident_bytes, threads_alive

        import userfault as uf
        from userfault import image

        data = known_bytes(300_000)
        folder = pathlib.Path(tempfile.mkdtemp())
        (folder / "plain").write_bytes(data.tobytes())
        image.pack(data.tobytes(), folder / "packed.zst", frame="64KiB")
        sources = [uf.Bytes(data.tobytes()), uf.File(folder / "plain"), uf.Image(folder / "packed.zst")]
        units = ["4KiB", "64KiB", "256KiB"]

        def rounds(count):
            for number in range(count):
                source, unit = sources[number % 3], units[number // 3 % 3]
                shared = {"shared": True, "on_error": "abort"} if number % 11 == 0 else {}
                with uf.map(source, delivery=sys.argv[1], unit=unit, **shared) as region:
                    at = number * 997 % len(data)
                    assert memoryview(region)[at] == data[at]
                    if number % 50 == 0:
                        region.populate()
                    if number % 70 == 0:
                        region.prefetch()
                    if number % 90 == 0:
                        region.evict()
            gc.collect()

        def state():
            return open_descriptors(), len(maps()), threads_alive()

        rounds(1500)
        before, size = state(), resident_bytes()
        rounds(10_000)
        after, grown = state(), resident_bytes() - size
        assert after[0] == before[0], (before, after)
        # On a busy machine more workers are started: a prefetch that follows a populate at once finds none idle.
        workers = after[2] - before[2]
        assert workers <= 8, (before, after)
        assert after[1] - before[1] < 20 + 4 * max(workers, 0), (before, after)
        assert grown < 3 << 20, grown

    child(code, args=[delivery], timeout=100).check()


def test_failures_leave_nothing(child):
    """Thousands of failed pages, failed maps and refused options leave neither memory nor descriptors."""

    def code():
        import gc

        from support.lazy import open_descriptors, raised, resident_bytes, threads_alive

        import userfault as uf

        def rounds(count):
            for number in range(count):
                with uf.map(uf.testing.Chaos(uf.Zero(1 << 20), fail=[range(1 << 20)])) as region:
                    raised(uf.PageError, lambda region=region, number=number: region.read(number, 1))
                    view = memoryview(region)
                    try:
                        view[number % 1000 * 1000]
                        for _ in range(10):
                            pass
                    except uf.PageError:
                        pass
                    view.release()
                raised(OSError, lambda: uf.map("/nonexistent/file"))
                raised(uf.OptionError, lambda: uf.map(b"x", unit=5))
            gc.collect()

        rounds(200)
        before, size = (open_descriptors(), threads_alive()), resident_bytes()
        rounds(2000)
        after = open_descriptors(), threads_alive()
        assert after[0] == before[0], (before, after)
        assert after[1] <= before[1] + 8, (before, after)  # a busy machine starts more workers
        assert resident_bytes() - size < 3 << 20, resident_bytes() - size

    child(code, timeout=60).check()


def test_touch_and_evict_of_one_region_stays_flat(child):
    """A region's pages go when they are evicted: staging is bounded and recycled."""

    def code():
        from support.lazy import known_bytes, resident_bytes

        import userfault as uf

        data = known_bytes(8 << 20)
        for options in ({"unit": "4KiB"}, {"unit": "256KiB"}, {"unit": "1MiB"}, {"huge": True}):
            region = uf.map(data.tobytes(), **options)
            view = region.numpy()
            sizes = []
            for _ in range(25):
                assert (view == data).all()
                region.evict()
                sizes.append(resident_bytes())
            # Staging holds 32 MiB at most; 25 rounds that kept their pages would be 200 MiB.
            assert sizes[-1] - sizes[0] < 36 << 20, (options, sizes)

    child(code).check()


@pytest.mark.parametrize("past", ["touched", "failed", "interrupted", "prefetched"])
def test_an_idle_process_with_open_regions_burns_no_cpu(child, past):
    """Whatever happened before: once quiet, nothing polls."""

    def code():
        import sys
        import threading
        import time

        from support.lazy import cpu_seconds, known_bytes

        import userfault as uf

        data = known_bytes(4 << 20)
        plain = [
            uf.map(data.tobytes(), delivery=delivery, unit=unit)
            for delivery in ("thread", "signal")
            for unit in ("4KiB", "256KiB")
        ]
        slow = uf.map(uf.testing.Chaos(uf.Zero(1 << 20), delay=0.3), timeout=0.1)
        broken = [
            uf.map(uf.testing.Chaos(uf.Zero(1 << 20), fail=[range(1 << 20)]), delivery=delivery)
            for delivery in ("thread", "signal")
        ]

        def touch(view, at):
            try:
                view[at]
                for _ in range(100):
                    pass
            except uf.PageError:
                pass

        past = sys.argv[1]
        if past == "touched":
            assert all((region.numpy() == data).all() for region in plain)
        elif past == "failed":
            for region in (*broken, slow):
                view = region.numpy()
                threads = [threading.Thread(target=touch, args=(view, at * 70_000)) for at in range(10)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        elif past == "interrupted":
            for region in plain:
                region.prefetch()
                region.evict()
                region.close()
        else:
            for region in (*plain, slow, *broken):
                region.prefetch()
        time.sleep(1.5)
        used = []
        for _ in range(5):  # a busy machine takes longer until all is quiet; who polls is never quiet
            before = cpu_seconds()
            time.sleep(2)
            used.append(cpu_seconds() - before)
            if used[-1] <= 0.02:
                break
        assert used[-1] <= 0.02, (past, used)

    child(code, args=[past], timeout=40).check()
