"""`sapis active`: a model that asks for the labels it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def active(recipe: Annotated[Path, typer.Argument(help="A recipe (YAML), see docs/howto/uncertainty.md.")]) -> None:
    """Explore, choose what is uncertain, label it, go on training; round after round.

    Killed anywhere, the same command goes on where it stopped, and no label is computed twice.
    """
    from sapis.pipeline.active import active as run_active
    from sapis.pipeline.active_config import read_active_recipe

    outcome = run_active(read_active_recipe(recipe))
    for number, record in enumerate(outcome.rounds):
        result = record.result
        random = (result["before"] or result["after"]).get("random", {}).get("force_rmse_meV_A")
        typer.echo(f"round {number}: {result['n_train']} labels to train on; force RMSE on new random frames "
                   f"{random or float('nan'):.1f} meV/Å, on all held ones {result['held']['force_rmse_meV_A']:.1f}")
        old = [result[when]["old"]["force_rmse_meV_A"] for when in ("before", "after") if "old" in result[when]]
        if len(old) == 2:
            typer.echo(f"  on frames held out in earlier rounds {old[0]:.1f} before this training, {old[1]:.1f} after")
    typer.echo(f"stopped: {outcome.reason}\nmodel: {outcome.model}\nhash:  {outcome.model_hash}")
