"""`sapis report`: write a run's page again from its records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(folder: Annotated[Path, typer.Argument(help="Folder of a `sapis run`.")]) -> None:
    """Write report.html from the records of a run."""
    from sapis.pipeline.run import report as write

    typer.echo(write(folder))
