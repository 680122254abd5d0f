"""The demo packs real files, answers from the middle of the image, and says how it went."""

import json
import sys
import tarfile

import pytest
from support.child import run_command

from userfault.cli import demo_archive as archive


def test_archive_is_a_tar_whose_contents_are_true(tmp_path):
    """Any tar program reads it, and CONTENTS gives each member's place."""
    path = tmp_path / "files.tar"
    length = archive.build(path, 4 << 20)
    assert length == path.stat().st_size >= 4 << 20
    with tarfile.open(path) as tar:
        found = [(one.name, one.offset_data, one.size) for one in tar.getmembers()]
    listed = archive.read_contents(memoryview(path.read_bytes()))
    assert found[1:] == [(one.name, one.offset, one.length) for one in map(archive.member_of, listed)]
    middle = archive.in_the_middle(listed, length)
    assert length // 4 < middle.offset < length * 3 // 4


def test_archive_file_that_shrinks_is_filled_up(tmp_path):
    """The headers stay true whatever happens to a file meanwhile."""
    (tmp_path / "short").write_bytes(b"abc")
    member = archive.Member("short", 10, str(tmp_path / "short"))
    assert archive.read_file(member) == b"abc" + bytes(7)
    assert archive.read_file(archive.Member("gone", 4, str(tmp_path / "gone"))) == bytes(4)


@pytest.mark.kernel
@pytest.mark.timeout(180)
def test_demo_prints_table_and_saves_picture(tmp_path):
    """Run twice: the first packs, the second finds the image there."""
    command = [sys.executable, "-m", "userfault", "demo", "--size", "8MiB", "--folder", str(tmp_path / "cache")]
    first = run_command([*command, "--json"], timeout=80, cwd=tmp_path)
    assert first.returncode == 0, first.talk()
    data = json.loads(first.stdout)
    assert data["image"]["seconds"] > 0
    assert set(data["ways"]) == {"lazy", "eager", "memmap"}
    lazy = data["ways"]["lazy"]
    assert 0 < lazy["answer_filled_bytes"] < lazy["length"]
    assert lazy["answer_faults"] > 0
    assert (tmp_path / "userfault-demo.png").exists() == (data["picture"] is not None)

    second = run_command(command, timeout=80, cwd=tmp_path)
    assert second.returncode == 0, second.talk()
    for words in ("userfault on the image", "np.memmap", "answer", "peak"):
        assert words in second.stdout


@pytest.mark.kernel
@pytest.mark.timeout(180)
def test_demo_picture_not_writable_still_answers(tmp_path):
    """The picture is the least of it: without it the table is there, and a line says why."""
    command = [sys.executable, "-m", "userfault", "demo", "--size", "4MiB", "--folder", str(tmp_path / "cache")]
    result = run_command([*command, "--picture", str(tmp_path / "nowhere" / "picture.png")], timeout=80)
    assert result.returncode == 0, result.talk()
    assert "userfault on the image" in result.stdout
    assert "no picture: " in result.stderr


def test_demo_folder_not_writable_is_one_line(tmp_path):
    """A user's mistake gives a line, not a traceback."""
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "userfault", "demo", "--folder", str(tmp_path / "file" / "below")]
    result = run_command(command, timeout=30)
    assert result.returncode in (1, 3)
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
