"""`sapis init`: a commented recipe to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    recipe: Annotated[Path, typer.Argument(help="Where to write the recipe.")] = Path("recipe.yaml"),
    smiles: Annotated[str, typer.Option(help="Molecule of the recipe.")] = "CCO",
) -> None:
    """Write a commented recipe."""
    from sapis.core.errors import FileError
    from sapis.core.files import write_text
    from sapis.pipeline.recipe import example_recipe

    if recipe.exists():
        raise FileError(expected="a path where no file or folder is", received="an existing one", where=str(recipe),
                        todo="choose another name, or delete the file first")
    write_text(recipe, example_recipe(recipe, smiles))
    typer.echo(f"wrote {recipe}; next: sapis run {recipe}")
