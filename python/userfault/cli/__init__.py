"""The command `userfault`: one module per verb, and only the chosen verb's module is imported.

A verb's module has an attribute `command`, made with `userfault.cli.common.verb`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from userfault.cli.common import guarded

VERBS: dict[str, tuple[str, str]] = {
    "doctor": ("doctor", "Try what the kernel permits here, and say what would change it."),
    "demo": ("demo", "Map an image of this machine's own files, and ask it something."),
    "pack": ("pack", "Compress a file into an image whose pages can be had one by one."),
    "inspect": ("inspect", "Show what an image holds."),
    "verify": ("verify", "Decompress all of an image and compare its checksums."),
    "unshuffle": ("unshuffle", "Restore what another zstd made of an image packed with --dtype."),
    "bench": ("bench", "Measure what a touch costs here."),
    "completion": ("completion", "Print the completion script of a shell."),
    "man": ("man", "Write the man pages into a directory."),
}
"""Verb -> (module below `userfault.cli`, one line of help), in the order of `userfault --help`."""

HELP = """Memory whose pages come from anywhere, for Python, on Linux userfaultfd(2).

Standard output is data, standard error is talk. Sizes are written 64MiB, times 250ms.
Every option of a verb can be given in the environment as USERFAULT_VERB_OPTION.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 the kernel or a permission forbids it,
4 the peer is lost, 70 a bug of userfault, 130 interrupted.
"""


class LazyGroup(click.Group):
    """A group that knows its verbs by name, imports the one that runs, and turns errors into lines and statuses."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order of the help."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one verb."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"userfault.cli.{VERBS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs with their lines of help, without importing any."""
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, line) for verb, (_, line) in VERBS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the verb, without importing any."""
        verbs = [CompletionItem(name, help=line) for name, (_, line) in VERBS.items() if name.startswith(incomplete)]
        return verbs or click.Command.shell_complete(self, ctx, incomplete)

    def main(self, args: Sequence[str] | None = None, *more: Any, **extra: Any) -> Any:
        """Run, and end the process with the status that fits; never with a traceback for a user's mistake."""
        if not extra.get("standalone_mode", True):
            return super().main(args, *more, **extra)
        extra["standalone_mode"] = False
        return guarded(lambda: super(LazyGroup, self).main(args, *more, **extra))


@click.group(
    cls=LazyGroup,
    help=HELP,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "USERFAULT",
        "max_content_width": 100,
    },
    subcommand_metavar="VERB [ARGS]...",
)
@click.version_option(package_name="userfault", message="%(prog)s %(version)s")
def main() -> None:
    """Group of all verbs; its help is `HELP`."""
