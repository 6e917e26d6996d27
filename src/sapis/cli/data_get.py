"""`sapis data get`: public data sets by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sapis.data.sets import PublicSet

WIDTH = 132  # of the table; a narrower terminal wraps it


def get(
    name: Annotated[str | None, typer.Argument(help="A set, as rmd17/ethanol; without one, all are listed.")] = None,
    to: Annotated[Path | None, typer.Option(
        help="Keep the files below this folder; default: SAPIS_DATA_DIR, else ~/.cache/sapis.")] = None,
    only_list: Annotated[bool, typer.Option("--list", help="List the sets, or those of the family NAME.")] = False,
) -> None:
    """Download a public data set, check it, and say where it is. The same command goes on after an interruption."""
    from sapis.data.sets import find
    from sapis.data.sets import get as get_files

    if name is None or only_list:
        _print_table(name)
        return
    chosen = find(name)
    for path in get_files(chosen, to):
        typer.echo(path)
    typer.echo(_about(chosen))
    if not chosen.is_verified:
        typer.echo("no checksum is published: SHA-256 of this first copy is recorded beside it and compared from now on")


def _about(chosen: PublicSet) -> str:
    """Level of theory, units, licence and citation in one line."""
    family = chosen.family
    quantities = family.units.model_dump().items()
    units = ", ".join(f"{quantity} {unit}" for quantity, unit in quantities if unit)
    return f"{family.level_of_theory}; {units}; licence: {family.licence}; cite: {family.citation}"


def _print_table(family: str | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from sapis.data.sets import find, listing

    rows = [each for each in listing() if family in (None, each.name, each.family.family)]
    if not rows:
        find(str(family))  # its error has the nearest names
    table = Table(title="Public data sets", box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left",
                  caption="verified: a checksum is published, and compared; else that of the first copy is recorded")
    for heading in ("name", "frames", "level of theory", "licence", "size", "verified"):
        table.add_column(heading, justify="right" if heading in ("frames", "size") else "left")
    for each in rows:
        table.add_row(each.name, f"{each.part.n_frames:,}" if each.part.n_frames else "", each.family.level_of_theory,
                      each.family.licence, each.size, "yes" if each.is_verified else "no")
    Console(width=WIDTH, markup=False, highlight=False).print(table)
