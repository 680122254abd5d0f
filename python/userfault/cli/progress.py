"""A progress bar on standard error, for somebody who looks at a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from userfault.cli.common import console, wants_progress


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int | None], None] | None]:
    """A function of (bytes done, bytes in all or None) that draws; None where nobody looks.

    Args:
        title: what is going on.
    """
    if not wants_progress():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(talk=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
