"""Errors become one line, perhaps a hint, and the right exit status."""

import errno
import json

import click
import pytest

from userfault import errors
from userfault.cli import common

Exit = common.Exit


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), Exit.INTERRUPTED),
        (click.Abort(), Exit.INTERRUPTED),
        (click.UsageError("no such option"), Exit.USAGE),
        (common.Failure("broken"), Exit.FAILED),
        (common.Failure("no peer", status=Exit.PEER_LOST), Exit.PEER_LOST),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.img"), Exit.FAILED),
        (PermissionError(errno.EACCES, "Permission denied", "x.img"), Exit.FORBIDDEN),
        (OSError(errno.ENOSYS, "Function not implemented"), Exit.FORBIDDEN),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), Exit.PEER_LOST),
        (MemoryError(), Exit.FAILED),
        (errors.UserfaultError("refused"), Exit.FAILED),
        (ZeroDivisionError("division by zero"), Exit.BUG),
        (KeyError("x"), Exit.BUG),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value.name,
)
def test_report_error_gives_line_and_status(error, status, capsys):
    """Every error has a line on standard error and nothing on standard output."""
    assert common.report(error) is status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err


def test_report_hint_stands_apart(capsys):
    """The hint comes after an empty line."""
    common.report(common.Failure("it broke", hint="mend it"))
    assert capsys.readouterr().err == "error: it broke\n\nhint: mend it\n"


def test_report_debug_shows_traceback(capsys, monkeypatch):
    """USERFAULT_DEBUG is for those who mend us."""
    monkeypatch.setenv("USERFAULT_DEBUG", "1")
    common.report(ValueError("odd"))
    assert "ValueError: odd" in capsys.readouterr().err


def test_emit_json_puts_schema_first(capsys):
    """The first key tells how to read the others."""
    common.emit_json({"bytes": 3})
    out = capsys.readouterr().out
    assert json.loads(out) == {"schema": 1, "bytes": 3}
    assert list(json.loads(out)) == ["schema", "bytes"]


def test_size_and_time_options_parse_units():
    """Options take sizes and times with units, and refuse the rest as wrong usage."""
    assert common.SIZE.convert("64KiB", None, None) == 65536
    assert common.SECONDS.convert("250ms", None, None) == 0.25
    with pytest.raises(click.BadParameter):
        common.SIZE.convert("many", None, None)
    with pytest.raises(click.BadParameter):
        common.SECONDS.convert("soon", None, None)
