"""``userfault completion SHELL``: print the completion script of a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from userfault.cli.common import emit, emit_json, verb, wants_json


@verb("completion", example='eval "$(userfault completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of SHELL.

    Put the line of the example into ~/.bashrc (zsh: ~/.zshrc); for fish write the script to
    ~/.config/fish/completions/userfault.fish.
    """
    from userfault.cli import main

    maker = get_completion_class(shell)
    assert maker is not None, "click knows the three shells of the choice"
    script = maker(main, {}, "userfault", "_USERFAULT_COMPLETE").source()
    if wants_json():
        emit_json({"shell": shell, "script": script})
    else:
        emit(script)
