"""`pack --dtype`, and back: by the package, and by `zstd -d | userfault unshuffle`."""

import json
import random
import shutil
import sys

import numpy as np
import pytest
from support.child import run_command

needs_zstd = pytest.mark.skipif(shutil.which("zstd") is None, reason="there is no zstd command here")


def userfault(*arguments, timeout=40, **options):
    return run_command([sys.executable, "-m", "userfault", *map(str, arguments)], timeout=timeout, **options)


def shell(script, folder):
    script = script.replace("userfault ", f'"{sys.executable}" -m userfault ')
    return run_command(["bash", "-c", f'cd "{folder}" && set -o pipefail; {script}'], timeout=40)


@pytest.fixture
def folder(tmp_path):
    """A folder with an array, and its image."""
    numbers = np.random.default_rng(2)
    array = np.round(np.sin(np.arange(600_000) / 700) + numbers.normal(0, 1e-3, 600_000), 4).astype("f4")
    np.save(tmp_path / "it's data.npy", array)
    result = userfault("pack", "--dtype", "f4", tmp_path / "it's data.npy", "-o", tmp_path / "it's data.npy.zst")
    assert result.returncode == 0, result.talk()
    assert "items of 4 bytes shuffled" in result.stderr
    return tmp_path


@needs_zstd
@pytest.mark.parametrize(
    "options",
    ["--like data.npy.zst", "--dtype f4 --offset 128", "--dtype 4 --block 64KiB --offset 128 -o - -"],
)
def test_what_zstd_gives_comes_back(folder, options):
    """The round trip with the real program; without the last step it is another file."""
    shutil.move(folder / "it's data.npy", folder / "data.npy")
    shutil.move(folder / "it's data.npy.zst", folder / "data.npy.zst")
    assert shell("zstd -q -t data.npy.zst", folder).returncode == 0
    result = shell(f"zstd -dc data.npy.zst | userfault unshuffle {options} | cmp - data.npy", folder)
    assert (result.returncode, result.stdout) == (0, ""), result.talk()
    assert shell("zstd -dc data.npy.zst | cmp - data.npy", folder).returncode == 1


@needs_zstd
def test_inspect_prints_the_command_that_restores_it(folder):
    """Exactly, with quotes where the name needs them; and an ordinary image has no such line."""
    told = userfault("inspect", folder / "it's data.npy.zst").stdout
    command = next(line for line in told.splitlines() if line.startswith("restore:")).partition(":")[2]
    assert "--dtype 4 --block 65536 --offset 128" in command
    assert shell(f'{command} | cmp - "it\'s data.npy"', folder).returncode == 0
    assert userfault("pack", folder / "it's data.npy", "-o", folder / "plain").returncode == 0
    assert "shuffle" not in userfault("inspect", folder / "plain").stdout
    shuffled = json.loads(userfault("inspect", folder / "it's data.npy.zst", "--json").stdout)["shuffle"]
    assert shuffled == {"item_bytes": 4, "block_bytes": 65536, "offset": 128}


@needs_zstd
def test_file_to_file_says_what_it_did(folder):
    """Whole or not at all, never over a file that is there; --json as data."""
    assert shell('zstd -q -d "it\'s data.npy.zst" -o shuffled', folder).returncode == 0
    arguments = ["unshuffle", folder / "shuffled", "-o", folder / "out", "--like", folder / "it's data.npy.zst"]
    told = json.loads(userfault(*arguments, "--json").stdout)
    assert (told["bytes"], told["item_bytes"], told["offset"]) == (2_400_128, 4, 128)
    assert (folder / "out").read_bytes() == (folder / "it's data.npy").read_bytes()
    again = userfault(*arguments)
    assert again.returncode == 1
    assert "--force replaces it" in again.stderr
    assert userfault(*arguments, "--force").stderr.endswith("out: 2400128 bytes\n")


@needs_zstd
def test_stream_that_was_cut_is_status_1(folder):
    """--like knows how many bytes there are to be."""
    result = shell(
        'zstd -dc "it\'s data.npy.zst" | head -c 100000 | userfault unshuffle --like "it\'s data.npy.zst" | cat', folder
    )
    assert result.returncode == 1
    assert "100000 bytes came, and 2400128 were expected" in result.stderr


def test_reader_that_leaves_is_no_bug(folder):
    """`| head` ends it without a traceback."""
    (folder / "big").write_bytes(random.Random(0).randbytes(8 << 20))
    result = shell("userfault unshuffle big --dtype f8 | head -c 10 > /dev/null; exit ${PIPESTATUS[0]}", folder)
    assert result.returncode == 1, result.talk()
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["unshuffle", "data"], 2, "--like IMAGE"),
        (["unshuffle", "data", "--dtype", "f4", "--like", "data"], 2, "--like says all"),
        (["unshuffle", "data", "--dtype", "O"], 2, "Python objects"),
        (["unshuffle", "data", "--dtype", "f4", "--block", "3"], 2, "must hold an item"),
        (["unshuffle", "data", "--dtype", "f4", "--json"], 2, "standard output"),
        (["unshuffle", "data", "--like", "data"], 1, "not a zstd image"),
        (["unshuffle", "data", "--like", "plain"], 1, "its bytes are not shuffled"),
        (["unshuffle", "missing", "--dtype", "f4"], 1, "missing: No such file"),
        (["pack", "data", "--dtype", "u1"], 2, "items of 1 bytes"),
        (["pack", "data", "--dtype", "float5"], 2, "must be a NumPy dtype"),
        (["pack", "data", "--block", "4KiB"], 2, "need a dtype"),
        (["pack", "data", "--dtype", "f4", "--block", "5KiB"], 2, "must be a multiple"),
        (["pack", "data", "--dtype", "f4", "--offset", "1MiB"], 2, "items begin at byte 1048576"),
    ],
)
def test_users_mistakes_are_lines_with_a_status(tmp_path, arguments, status, words):
    """Never a traceback, and nothing is left behind."""
    (tmp_path / "data").write_bytes(b"some data" * 1000)
    assert userfault("pack", "data", "-o", "plain", cwd=tmp_path).returncode == 0
    result = userfault(*arguments, cwd=tmp_path)
    assert result.returncode == status, result.talk()
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "plain"]
