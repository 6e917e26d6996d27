"""`sapis run`: from a recipe to a validated potential."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(recipe: Annotated[Path, typer.Argument(help="A recipe (YAML); `sapis init` writes one.")]) -> None:
    """Make candidates, label them, train, test, run MD, check the physics, write model and report.

    Killed anywhere, the same command goes on where it stopped; finished steps are skipped.
    """
    from sapis.core.files import short_path
    from sapis.pipeline.recipe import read_recipe
    from sapis.pipeline.run import run as run_recipe

    outcome = run_recipe(read_recipe(recipe))
    verdict = "all physics checks passed" if outcome.all_passed else "SOME PHYSICS CHECKS FAILED: see the report"
    typer.echo(f"\n{verdict}\nreport: {short_path(outcome.report)}\nmodel:  {short_path(outcome.model)}\n"
               f"hash:   {outcome.model_hash}\n\n{outcome.usage}")
