"""`sapis data generate`: training sets from nothing but a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

generate_app = typer.Typer(no_args_is_help=True, help="Broad training sets from a seed.")


@generate_app.callback()
def _several() -> None:
    """Broad training sets from a seed."""


@generate_app.command()
def organic(
    output: Annotated[Path, typer.Argument(help="Folder of the set; made, or gone on with.")],
    molecules: Annotated[int | None, typer.Option(min=1, help="Molecules of the grammar; default 12,500.")] = None,
    clusters: Annotated[int | None, typer.Option(min=0, help="Clusters of water; default 600.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    config: Annotated[Path | None, typer.Option(help="YAML with all settings, in place of the options.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one a core.")] = None,
) -> None:
    """Organic molecules, ions, peptides and water (H C N O F P S Cl Br) with GFN2-xTB labels. The same command goes on."""
    from sapis.core.config import load_yaml, parse_config
    from sapis.executors.executor import LocalExecutor
    from sapis.generate.organic import LABELS, OrganicConfig, generate

    given = {"n_molecules": molecules, "n_clusters": clusters, "seed": seed}
    values = load_yaml(config) if config else {name: value for name, value in given.items() if value is not None}
    settings = parse_config(OrganicConfig, values, where=str(config or "sapis data generate organic"))
    card = generate(output, settings, LocalExecutor(workers))
    typer.echo(f"{card['n_frames']:,} frames of {card['n_molecules']:,} molecules in {output / LABELS}")
    typer.echo(f"card: {output / 'card.md'}")
