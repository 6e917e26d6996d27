"""`sapis active`: a model that asks for the labels it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def active(recipe: Annotated[Path, typer.Argument(help="A recipe (YAML), see docs/howto/uncertainty.md.")]) -> None:
    """Explore, choose what is uncertain, label it, go on training; round after round.

    Killed anywhere, the same command goes on where it stopped, and no label is computed twice.
    """
    from sapis.core.files import short_path
    from sapis.pipeline.active import active as run_active
    from sapis.pipeline.active_config import read_active_recipe

    outcome = run_active(read_active_recipe(recipe))
    verdict = "all physics checks passed" if outcome.all_passed else "some physics checks FAILED: see `sapis info MODEL`"
    typer.echo(f"stopped: {outcome.reason}\n{verdict}\nreport: {short_path(outcome.report)}\n"
               f"model:  {short_path(outcome.model)}\nhash:   {outcome.model_hash}")
