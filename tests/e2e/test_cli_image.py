"""`userfault pack`, `inspect` and `verify` as a user meets them, with Debian's zstd beside them."""

import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys

import pytest
from support.child import python_path, run_command
from support.images import read_table, sample

DATA = sample(21, 3_000_000)

needs_zstd = pytest.mark.skipif(shutil.which("zstd") is None, reason="there is no zstd command here")


def userfault(*arguments, timeout=40, **options):
    return run_command([sys.executable, "-m", "userfault", *map(str, arguments)], timeout=timeout, **options)


@pytest.fixture
def data(tmp_path):
    """A file to pack."""
    path = tmp_path / "data"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def image(data):
    """The same, packed."""
    assert userfault("pack", data).returncode == 0
    return data.with_suffix(".zst")


def test_pack_makes_a_file_beside_and_says_so_on_stderr(data):
    """FILE.zst; standard output stays empty, standard error tells the sizes, no bar without a terminal."""
    result = userfault("pack", data)
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr.startswith(f"{data}.zst: 2.86MiB in ")
    assert result.stderr.count("\n") == 1
    assert sum(entry.decoded for entry in read_table((data.parent / "data.zst").read_bytes())) == len(DATA)
    assert userfault("pack", data, "-q", "--force").stderr == ""


@needs_zstd
@pytest.mark.parametrize("options", [(), ("--frame", "4KiB"), ("--frame", "1MiB", "--level", "9"), ("--threads", "1")])
def test_zstd_restores_what_was_packed(data, tmp_path, options):
    """Any zstd does, whatever the frames; runs of zeros included."""
    with open(data, "r+b") as file:
        file.truncate(100_000_000)
    out = tmp_path / "out.zst"
    assert userfault("pack", data, "-o", out, *options).returncode == 0
    subprocess.run(["zstd", "-q", "-t", out], check=True, timeout=30)
    subprocess.run(["zstd", "-q", "-d", out, "-o", tmp_path / "restored"], check=True, timeout=30)
    assert (tmp_path / "restored").read_bytes() == data.read_bytes()


@needs_zstd
def test_plain_zst_file_gets_a_hint_that_works(data, tmp_path):
    """The command in the error makes an image of it."""
    plain = tmp_path / "plain.zst"
    subprocess.run(["zstd", "-q", data, "-o", plain], check=True, timeout=30)
    result = userfault("inspect", plain)
    assert result.returncode == 1
    assert "zstd -dc FILE | userfault pack - -o OUT" in result.stderr
    out = tmp_path / "out.img"
    script = f'zstd -dc "{plain}" | "{sys.executable}" -m userfault pack - -o "{out}"'
    assert run_command(["bash", "-c", script], timeout=30).returncode == 0
    assert userfault("verify", out).returncode == 0


def test_pipes_go_through(data, tmp_path):
    """From standard input to standard output, the same bytes as from file to file."""
    out = tmp_path / "out"
    script = f'cat "{data}" | "{sys.executable}" -m userfault pack - | cat > "{out}"'
    result = run_command(["bash", "-c", f"set -o pipefail; {script}"], timeout=30)
    assert result.returncode == 0, result.talk()
    userfault("pack", data)
    assert out.read_bytes() == (tmp_path / "data.zst").read_bytes()


def test_reader_that_leaves_is_no_bug(data):
    """`userfault pack | head` ends with status 1 and one line at most."""
    with open(data, "ab") as file:
        file.write(random.Random(0).randbytes(8 << 20))
    script = f'"{sys.executable}" -m userfault pack - < "{data}" | head -c 10 > /dev/null; exit ${{PIPESTATUS[0]}}'
    result = run_command(["bash", "-c", script], timeout=30)
    assert result.returncode == 1, result.talk()
    assert "Traceback" not in result.stderr


def test_json_says_the_same_with_a_schema(data):
    """One object each, schema first, sizes in bytes."""
    told = {}
    for verb, arguments in (("pack", [data]), ("inspect", [f"{data}.zst", "--frames"]), ("verify", [f"{data}.zst"])):
        result = userfault(verb, *arguments, "--json")
        assert (result.returncode, result.stderr) == (0, ""), result.talk()
        told[verb] = json.loads(result.stdout)
        assert next(iter(told[verb].items())) == ("schema", 1)
    assert told["pack"]["decoded_bytes"] == told["inspect"]["decoded_bytes"] == told["verify"]["decoded_bytes"]
    assert told["pack"]["file_bytes"] == told["inspect"]["file_bytes"] == os.path.getsize(f"{data}.zst")
    assert told["pack"]["frames"] == told["inspect"]["frames"] == told["verify"]["frames"]
    assert told["pack"]["zero_bytes"] == told["inspect"]["zero_bytes"]
    assert sum(frame["decoded_bytes"] for frame in told["inspect"]["frame_list"]) == len(DATA)
    assert (told["verify"]["ok"], told["verify"]["bad"]) == (True, [])


def test_inspect_is_readable(image):
    """Lines of names and values; with --frames one more for each frame."""
    plain = userfault("inspect", image)
    assert plain.returncode == 0
    assert "frame size: 65536 bytes (64KiB)" in plain.stdout
    listed = userfault("inspect", image, "--frames").stdout
    assert listed.startswith(plain.stdout)
    assert listed.count("\n") == plain.stdout.count("\n") + 2 + len(read_table(image.read_bytes()))
    assert "\tskipped" in listed.splitlines()[-1]


def test_verify_of_a_damaged_image_is_status_1_with_the_place(image):
    """Each bad frame is a line of data; the verdict is talk."""
    damaged = bytearray(image.read_bytes())
    damaged[5] ^= 1
    image.write_bytes(damaged)
    result = userfault("verify", image)
    assert result.returncode == 1
    assert result.stdout.startswith("frame 0 at offset 0 ")
    assert f"{image}: 1 of " in result.stderr
    told = userfault("verify", image, "--json")
    assert told.returncode == 1
    assert json.loads(told.stdout)["bad"][0]["frame"] == 0


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["pack", "missing"], 1, "missing: No such file or directory"),
        (["pack", "."], 1, "Is a directory"),
        (["pack", "data", "-o", "no/out"], 1, "No such file or directory"),
        (["pack", "data", "-o", "taken"], 1, "taken exists\n\nhint: --force replaces it"),
        (["pack", "data", "--frame", "5KB"], 2, "multiple of 4KiB"),
        (["pack", "data", "--frame", "some"], 2, "'some': must be a size"),
        (["pack", "data", "--level", "30"], 2, "--level"),
        (["pack", "data", "--threads", "0"], 2, "--threads"),
        (["pack", "-", "--json"], 2, "standard output"),
        (["pack"], 2, "FILE"),
        (["inspect", "data"], 1, "not a zstd image"),
        (["verify", "data"], 1, "not a zstd image"),
        (["verify", "missing"], 1, "missing: No such file or directory"),
    ],
)
def test_mistakes_are_one_line_and_a_status(data, arguments, status, words):
    """Never a traceback, and nothing is left behind."""
    taken = data.parent / "taken"
    taken.write_bytes(b"taken")
    before = sorted(os.listdir(data.parent))
    result = userfault(*arguments, cwd=data.parent)
    assert result.returncode == status, result.talk()
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(os.listdir(data.parent)) == before
    assert taken.read_bytes() == b"taken"


def test_terminal_gets_no_compressed_bytes(data):
    """But a usage error; and on a terminal there is a bar."""
    ours, theirs = pty.openpty()
    with open(data, "rb") as source:
        process = subprocess.Popen(
            [sys.executable, "-m", "userfault", "pack", "-"],
            stdin=source,
            stdout=theirs,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": python_path()},
        )
        _, talk = process.communicate(timeout=30)
    os.close(theirs)
    os.set_blocking(ours, False)
    with pytest.raises(OSError):
        os.read(ours, 100)
    os.close(ours)
    assert process.returncode == 2
    assert b"not for a terminal" in talk


def test_progress_is_for_a_terminal(data):
    """Drawn on standard error when that is one."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "userfault", "pack", data],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": python_path(), "TERM": "xterm", "COLUMNS": "100"},
    )
    output, _ = process.communicate(timeout=30)
    os.close(theirs)
    talk = os.read(ours, 100_000)
    os.close(ours)
    assert (process.returncode, output) == (0, b"")
    assert b"MiB" in talk
    assert b"\x1b[" in talk


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ('inspect "$IMAGE" >&-', "standard output is closed"),
        ('inspect "$IMAGE" --json >&-', "standard output is closed"),
        ("doctor >&-", "standard output is closed"),
        ("--help >&-", "standard output is closed"),
        ("completion bash >&-", "standard output is closed"),
        ('pack "$DATA" -o - >&-', "standard output is closed"),
        ("pack - <&-", "standard input is closed"),
        ('pack - -o "$DATA.out" <&-', "standard input is closed"),
        ("pack - <&- >&-", "standard input and standard output are closed"),
        ('inspect "$IMAGE" >/dev/full', "No space left on device"),
    ],
)
def test_streams_that_cannot_be_used_are_one_line_and_status_1(data, image, arguments, words):
    """A shell can start us without an input or an output: that is a mistake of the call, not a bug of ours."""
    script = f'exec "{sys.executable}" -m userfault {arguments}'
    result = run_command(["bash", "-c", script], timeout=30, env={"IMAGE": str(image), "DATA": str(data)})
    assert (result.returncode, result.stdout, result.stderr) == (1, "", f"error: {words}\n")
    assert not os.path.exists(f"{data}.out")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_not_needed_may_be_closed(data, tmp_path, closed):
    """And what is opened in their place is neither written to nor taken for them."""
    out = tmp_path / "out"
    script = f'exec "{sys.executable}" -m userfault pack "{data}" -o "{out}" {closed}'
    assert run_command(["bash", "-c", script], timeout=30).returncode == 0
    assert userfault("verify", out).returncode == 0
    assert sum(entry.decoded for entry in read_table(out.read_bytes())) == len(DATA)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_half_way_leaves_no_output(tmp_path, how):
    """The output has no name until it is whole, whatever ends the process."""
    out = tmp_path / "out.img"
    process = subprocess.Popen(
        [sys.executable, "-m", "userfault", "pack", "-", "-o", out],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": python_path()},
    )
    # More than may be under way: when all of this was taken, frames were written.
    process.stdin.write(random.Random(1).randbytes(24 << 20))
    process.stdin.flush()
    process.send_signal(how)
    _, talk = process.communicate(timeout=30)
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert os.listdir(tmp_path) == []
    assert b"Traceback" not in talk


def test_memory_of_packing_is_bounded(child, tmp_path):
    """A file of 40 GiB with 128 MiB of data in it takes the memory of a few pieces, both in and out."""
    big = tmp_path / "big"
    with open(big, "wb") as file:
        for number in range(8):
            file.seek(number * (5 << 30))
            file.write(random.Random(number).randbytes(16 << 20))
        file.truncate(40 << 30)
    code = """
        import resource, sys
        from userfault.image import inspect, pack, verify

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

        before = peak()
        result = pack(sys.argv[1], sys.argv[2], frame="256KiB", level=1)
        assert result.decoded_bytes == 40 << 30
        assert inspect(sys.argv[2]).decoded_bytes == 40 << 30
        assert verify(sys.argv[2]).ok
        print((peak() - before) >> 20)
    """
    grown_mib = int(child(code, args=[big, tmp_path / "out"], timeout=55).check().stdout)
    assert grown_mib < 64
