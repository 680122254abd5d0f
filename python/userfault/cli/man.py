"""``userfault man DIR``: write the man pages."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import click

from userfault.cli.common import Failure, emit, emit_json, verb, wants_json


@verb("man", example="userfault man ~/.local/share/man/man1")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def command(directory: Path) -> None:
    """Write a man page for userfault and one for each verb into DIRECTORY.

    Needs the package click-man: pip install 'userfault[man]'.
    """
    try:
        from click_man.core import write_man_pages  # type: ignore[import-untyped]
    except ImportError as error:
        raise Failure("the package click-man is missing", hint="pip install 'userfault[man]'") from error
    directory.mkdir(parents=True, exist_ok=True)
    write_man_pages("userfault", eager(), version=version("userfault"), target_dir=str(directory))
    pages = sorted(str(page) for page in directory.glob("userfault*.1"))
    if wants_json():
        emit_json({"pages": pages})
    else:
        emit("\n".join(pages))


def eager() -> click.Group:
    """The group with every verb imported, and the examples moved to where click-man looks."""
    from userfault.cli import HELP, main

    with click.Context(main) as ctx:
        commands = {name: main.get_command(ctx, name) for name in main.list_commands(ctx)}
    found = {name: command for name, command in commands.items() if command is not None}
    for one in found.values():
        one.help = f"{one.help}\n\n{one.epilog}"
    return click.Group("userfault", commands=found, help=HELP, params=main.params)
