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
    from sapis.pipeline.recipe import EXAMPLE

    if recipe.exists():
        raise FileError(expected="a path where nothing is", received="an existing file", where=str(recipe),
                        todo="choose another name, or delete the file first")
    # JSON strings are YAML strings: quotes and colons of a SMILES stay what they are.
    import json

    write_text(recipe, EXAMPLE.format(title=json.dumps(smiles), smiles=json.dumps(smiles), output=f"runs/{recipe.stem}"))
    typer.echo(f"wrote {recipe}; next: sapis run {recipe}")
