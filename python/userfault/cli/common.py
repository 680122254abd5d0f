"""What every verb shares: exit statuses, errors as lines, options, output.

>>> @verb("inspect", example="userfault inspect weights.img")
... @click.argument("image", type=click.Path())
... def command(image: str) -> None:
...     emit_json({"image": image}) if wants_json() else say("opened")
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1
"""Version of what `--json` prints; it grows when a key changes its meaning or goes."""

REPORT_BUGS = "run it again with USERFAULT_DEBUG=1 and report what it prints"


class Exit(IntEnum):
    """How the process ends."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    FORBIDDEN = 3
    """The kernel or a permission does not allow it here."""
    PEER_LOST = 4
    """The other side is gone, or needs recovery."""
    BUG = 70
    """An error that we did not foresee."""
    INTERRUPTED = 130
    """Ctrl-C, as shells count it."""


class Failure(click.ClickException):
    """An operation failed, in words for the user.

    Args:
        message: what went wrong, and where.
        hint: what to do about it.
        status: how the process ends.
    """

    def __init__(self, message: str, *, hint: str | None = None, status: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.hint = hint
        self.status = status


def verb(name: str, *, example: str, **settings: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a click command of a function: help with an example, and the options `--json`, `-v` and `-q`.

    Args:
        name: the verb.
        example: one command line, shown at the end of the help.
        settings: more arguments of `click.command`.
    """

    def wrap(function: Callable[..., Any]) -> click.Command:
        for option in (quiet_option, verbose_option, json_option):
            function = option(function)
        settings.setdefault("epilog", f"Example: {example}")
        settings.setdefault("context_settings", {"help_option_names": ["-h", "--help"], "show_default": True})
        make: Callable[[Callable[..., Any]], click.Command] = click.command(name, **settings)
        return make(function)

    return wrap


def _remember(key: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def callback(ctx: click.Context, _parameter: click.Parameter, value: Any) -> Any:
        ctx.meta[f"userfault.{key}"] = value
        return value

    return callback


json_option = click.option("--json", is_flag=True, expose_value=False, callback=_remember("json"), help="Print data as JSON.")
verbose_option = click.option(
    "-v",
    "--verbose",
    count=True,
    expose_value=False,
    callback=_remember("verbose"),
    help="Say more; twice for more yet.",
)
quiet_option = click.option(
    "-q", "--quiet", is_flag=True, expose_value=False, callback=_remember("quiet"), help="Say nothing but errors."
)


def _setting(key: str) -> Any:
    ctx = click.get_current_context(silent=True)
    return ctx.meta.get(f"userfault.{key}") if ctx else None


def wants_json() -> bool:
    """Whether `--json` was given."""
    return bool(_setting("json"))


def verbosity() -> int:
    """-1 with `-q`, otherwise how often `-v` was given."""
    return -1 if _setting("quiet") else int(_setting("verbose") or 0)


def say(text: str, *, level: int = 0) -> None:
    """Talk on standard error, if the user wants to hear talk of this level."""
    if verbosity() >= level:
        click.echo(text, err=True)


def wants_progress() -> bool:
    """Whether to draw progress: only for somebody who looks at a terminal and did not ask for silence."""
    return sys.stderr.isatty() and verbosity() >= 0


def emit(text: str) -> None:
    """Write data to standard output."""
    click.echo(text)


def emit_json(data: Mapping[str, Any]) -> None:
    """Write one JSON object to standard output, with the schema version as its first key."""
    click.echo(json.dumps({"schema": SCHEMA, **data}, indent=2, ensure_ascii=False, allow_nan=False))


def console(*, talk: bool = False) -> Console:
    """A rich console on standard output, or on standard error for talk; it obeys NO_COLOR."""
    from rich.console import Console

    return Console(stderr=talk, highlight=False, quiet=talk and verbosity() < 0)


class _Unit(click.ParamType):  # type: ignore[type-arg]
    """A number with a unit, parsed by a function of `userfault.units` that raises ValueError."""

    parser = ""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a text; numbers (defaults) are parsed too."""
        from userfault import units

        try:
            return getattr(units, self.parser)(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class SizeType(_Unit):
    """Bytes: ``64MiB``, ``4096``."""

    name = "size"
    parser = "parse_bytes"


class TimeType(_Unit):
    """Seconds: ``250ms``, ``1.5``."""

    name = "time"
    parser = "parse_seconds"


SIZE = SizeType()
SECONDS = TimeType()


def guarded(run: Callable[[], Any]) -> NoReturn:
    """Call `run` and end the process with the status that fits; errors become lines on standard error."""
    closed = _stand_in_for_closed()
    try:
        result = run()
        sys.stdout.flush()
        status = result if isinstance(result, int) else Exit.DONE
    except BrokenPipeError as error:
        status = _reader_left() if _is_our_pipe(error) else report(error)
    except (Exception, KeyboardInterrupt) as error:
        status = report(_failure_of_closed(closed) if closed and _is_closed(error) else error)
        _forget_output()
    sys.exit(int(status))


def report(error: BaseException) -> Exit:
    """Write an error as «error: …», an empty line, «hint: …», and return the exit status that fits.

    The traceback is shown for a bug or with USERFAULT_DEBUG set.
    """
    status = status_of(error)
    if os.environ.get("USERFAULT_DEBUG"):
        traceback.print_exception(error)
    click.echo(f"error: {message_of(error, status)}", err=True)
    hint = hint_of(error, status)
    if hint:
        click.echo(f"\nhint: {hint}", err=True)
    return status


def status_of(error: BaseException) -> Exit:
    """The exit status for an error."""
    from userfault import errors

    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return Exit.INTERRUPTED
    if isinstance(error, Failure):
        return error.status
    if isinstance(error, click.ClickException):
        return Exit(error.exit_code)
    if _is(error, errors, "InternalError"):
        return Exit.BUG
    if _is(error, errors, "OptionError"):
        return Exit.USAGE
    if _is(error, errors, "UnsupportedError", "RefusedError") or isinstance(error, PermissionError):
        return Exit.FORBIDDEN
    if _is(error, errors, "PeerLostError", "RecoveryNeeded") or isinstance(error, ConnectionError):
        return Exit.PEER_LOST
    if isinstance(error, OSError) and error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
        return Exit.FORBIDDEN
    if isinstance(error, (errors.UserfaultError, OSError, MemoryError)):
        return Exit.FAILED
    return Exit.BUG


def message_of(error: BaseException, status: Exit) -> str:
    """One line, or a few, for the user."""
    if status is Exit.INTERRUPTED:
        return "interrupted"
    if isinstance(error, click.ClickException):
        return error.format_message()
    if type(error).__module__ == "builtins" and isinstance(error, OSError) and error.strerror:
        return f"{os.fspath(error.filename)}: {error.strerror}" if error.filename else error.strerror
    if status is Exit.BUG:
        return f"this is a bug of userfault: {type(error).__name__}: {error}"
    if isinstance(error, MemoryError):
        return "not enough memory"
    return str(error) or type(error).__name__


def hint_of(error: BaseException, status: Exit) -> str | None:
    """What the user could do about it, if anything is known."""
    if status is Exit.BUG:
        return REPORT_BUGS
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"{error.ctx.command_path} --help"
    hint = getattr(error, "hint", None)
    return str(hint) if hint else None


def _is(error: BaseException, module: object, *names: str) -> bool:
    """Whether `error` is of a class that `module` may have."""
    return any(isinstance(error, getattr(module, name, ())) for name in names)


_STAND_INS = (
    ("stdin", "r", os.O_WRONLY, "standard input"),
    ("stdout", "w", os.O_RDONLY, "standard output"),
    ("stderr", "w", os.O_WRONLY, None),
)
"""Stream, its mode, how the null device stands in for it (the wrong way round, so that use fails), its name if that is so."""


def _stand_in_for_closed() -> list[str]:
    """Put something in the place of standard streams that were closed before we began (``userfault ... >&-``).

    Their numbers are taken, so that no file we open becomes the standard output by accident. Using input or output fails
    with EBADF as it would in C, where Python has None; talk goes nowhere.

    Returns:
        The names of those that cannot be used.
    """
    closed = []
    for stream, mode, access, name in _STAND_INS:
        if getattr(sys, stream) is None:
            setattr(sys, stream, os.fdopen(os.open(os.devnull, access), mode, closefd=False))
            closed += [name] if name else []
    return closed


def _is_closed(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EBADF and error.filename is None


def _failure_of_closed(closed: list[str]) -> Failure:
    return Failure(f"{' and '.join(closed)} {'is' if len(closed) == 1 else 'are'} closed")


def _is_our_pipe(error: BrokenPipeError) -> bool:
    """Whether the reader of our standard output left (``userfault ... | head``), not a peer."""
    return type(error) is BrokenPipeError and error.filename is None and not sys.stdout.isatty()


def _reader_left() -> Exit:
    """End without a word: nobody reads."""
    _forget_output()
    return Exit.FAILED


def _forget_output() -> None:
    """Make the interpreter's last flush harmless, where what is left cannot be written: it would choose the exit status."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
