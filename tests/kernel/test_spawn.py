"""Other processes that are meant to have a region, and those that are started while faults are in flight."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

deliveries = pytest.mark.parametrize("delivery", ["thread", "signal"])


@deliveries
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_a_pickled_region_works_in_another_process(child, delivery, method, tmp_path):
    """A Region pickles as its source and options, and opens again at the other end."""
    (tmp_path / "job.py").write_text(
        """
def check(region, view_options):
    from support.lazy import check_endings
    data = region.numpy().copy()
    check_endings(region)
    return region.state, region.options.delivery, region.unit, int(data[::7].sum())
"""
    )

    def code():
        import multiprocessing
        import pathlib
        import pickle
        import sys
        import warnings

        from support.lazy import known_bytes

        import userfault as uf

        warnings.simplefilter("ignore", DeprecationWarning)
        sys.path.insert(0, str(pathlib.Path.cwd()))
        import job

        delivery, method = sys.argv[1:]
        data = known_bytes(500_001)
        pathlib.Path("data").write_bytes(data.tobytes())
        context = multiprocessing.get_context(method)
        with context.Pool(2) as pool:
            for source in (pathlib.Path("data"), uf.Bytes(data.tobytes()), uf.Zero(10)):
                region = uf.map(source, delivery=delivery, unit="128KiB")
                total = int(region.numpy()[::7].sum())
                assert pool.apply(job.check, (region, None)) == ("open", delivery, 128 << 10, total)
                again = pickle.loads(pickle.dumps(region))
                assert again.options == region.options
                assert again.address != region.address
                assert (again.numpy() == region.numpy()).all()

    child(code, args=[delivery, method], timeout=40, cwd=tmp_path, env={"PYTHONPATH": path_with(tmp_path)}).check()


def path_with(folder):
    return os.pathsep.join([str(folder), str(Path(__file__).parent.parent)])


@deliveries
def test_processes_started_while_faults_are_in_flight_end_well(child, delivery):
    """fork, subprocess with and without preexec_fn, and posix_spawn, in a storm of touches."""

    def code():
        import os
        import random
        import subprocess
        import sys
        import time
        import warnings

        from support.lazy import check_endings, in_threads, known_bytes

        import userfault as uf

        warnings.simplefilter("ignore", DeprecationWarning)
        data = known_bytes(4 << 20)
        slow = sys.argv[1] == "thread"
        source = uf.Bytes(data.tobytes())
        regions = [uf.map(source, delivery=sys.argv[1], unit=unit) for unit in ("4KiB", "64KiB", "256KiB")]
        if slow:
            regions.append(uf.map(uf.testing.Chaos(source, delay="2ms"), unit="64KiB"))
        until = time.monotonic() + 3

        def touch(number):
            choose = random.Random(number)
            while time.monotonic() < until:
                region = choose.choice(regions)
                start = choose.randrange(len(data) - 100_000)
                assert (region.numpy()[start : start + 100_000] == data[start : start + 100_000]).all()
                if choose.random() < 0.2:
                    region.evict()

        def start(number):
            while time.monotonic() < until:
                if number == 0:
                    process = os.fork()
                    if process == 0:
                        os._exit(3)
                    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 3
                elif number == 1:
                    assert subprocess.run(["true"], close_fds=True).returncode == 0
                elif number == 2:
                    assert subprocess.run(["true"], preexec_fn=os.getpid).returncode == 0
                else:
                    process = os.posix_spawnp("true", ["true"], os.environ)
                    assert os.waitpid(process, 0)[1] == 0

        touchers = [lambda number=number: touch(number) for number in range(4)]
        in_threads(*touchers, *[lambda number=number: start(number) for number in range(4)])
        for region in regions:
            assert (region.numpy() == data).all()
            check_endings(region)

    child(code, args=[delivery], timeout=50).check()


def test_exec_in_place_of_a_process_with_open_regions_works(child):
    """Nothing of ours survives exec: no descriptor, no handler, no thread."""

    def code():
        import os
        import sys

        import userfault as uf

        region = uf.map(b"lazy" * 10_000)
        shared = uf.map(b"lazy" * 10_000, shared=True, on_error="abort")
        assert memoryview(region)[0] == memoryview(shared)[0] == ord("l")
        look = "import os; print(sorted(os.listdir('/proc/self/fd')))"
        os.execv(sys.executable, [sys.executable, "-c", look])

    assert child(code).check().stdout.strip() == "['0', '1', '2', '3']"
