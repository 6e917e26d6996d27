"""Progress bars that show what long work costs while it runs."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)


def progress_bar(*, is_transient: bool = False, is_hidden: bool = False) -> Progress:
    """A bar with counts, time spent, time left and a free ``note`` field (loss, CPU seconds, FLOPs); ``is_hidden`` where another
    one shows the whole.
    """
    return Progress(
        TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        console=console, transient=is_transient, disable=is_hidden, refresh_per_second=4,
    )
