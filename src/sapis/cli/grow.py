"""`sapis grow`: a larger model that is the same function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Size = Annotated[int | None, typer.Option(min=1)]
Degree = Annotated[int | None, typer.Option(min=0)]


def grow(
    model: Annotated[Path, typer.Argument(help="A model bundle.")],
    output: Annotated[Path, typer.Argument(help="Where to write the larger one.")],
    n_channels: Size = None, n_channels_carried: Size = None, n_heads: Size = None, n_layers: Size = None,
    order: Size = None, n_radial: Size = None, n_hidden_readout: Size = None,
    l_max: Degree = None, l_max_product: Degree = None, l_max_carried: Degree = None,
    element: Annotated[list[str] | None, typer.Option(
        help="A new element and its reference energy in eV, as S=-10821.5, of a model of several levels of theory as "
             "S@LEVEL=-10821.5 (repeatable).")] = None,
    charge: Annotated[list[int] | None, typer.Option(help="A new total charge (repeatable).")] = None,
    spin: Annotated[list[int] | None, typer.Option(min=1, help="A new multiplicity 2S+1 (repeatable).")] = None,
    level: Annotated[list[str] | None, typer.Option(
        help="A new level of theory (repeatable), with --element SYMBOL@LEVEL=ENERGY for its elements.")] = None,
    structure: Annotated[Path | None, typer.Option(help="Compare the two models on this; default: a made-up crystal.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the new weights that are random.")] = 0,
) -> None:
    """A larger model with the energies, forces and stresses of a smaller one, to go on training."""
    from sapis.core.files import refuse_inputs
    from sapis.data.conditions import Conditions
    from sapis.data.formats import read_systems
    from sapis.pipeline.grow import grow_file

    refuse_inputs({"OUTPUT": output}, [model, *([structure] if structure else [])])
    sizes = {
        "n_channels": n_channels, "n_channels_carried": n_channels_carried, "n_heads": n_heads, "n_layers": n_layers,
        "order": order, "n_radial": n_radial, "n_hidden_readout": n_hidden_readout, "l_max": l_max,
        "l_max_product": l_max_product, "l_max_carried": l_max_carried,
    }
    conditions = Conditions.having(charge or [], spin or [], level or [])
    grown, check = grow_file(model, output, {name: size for name, size in sizes.items() if size is not None}, seed=seed,
                             reference_energies=_energies(element or []), conditions=conditions,
                             systems=read_systems(structure)[:1] if structure else ())
    typer.echo(f"largest difference of energies, forces and stress in float64: {check.value:.1e} (limit {check.limit:.0e})")
    typer.echo(f"model: {output}, {grown.n_parameters:,} parameters")


def _energies(texts: list[str]) -> dict[str, dict[int, float]]:
    """``["S@PBE=-10821.5"]`` -> {"PBE": {16: -10821.5}}; "" where no level is named."""
    found: dict[str, dict[int, float]] = {}
    for level, number, energy in map(_element, texts):
        found.setdefault(level, {})[number] = energy
    return found


def _element(text: str) -> tuple[str, int, float]:
    """``S@PBE=-10821.5`` -> ("PBE", 16, -10821.5)."""
    from ase.data import atomic_numbers

    from sapis.core.errors import ConfigError

    name, _, energy = text.rpartition("=")
    symbol, _, level = name.partition("@")
    try:
        return level, atomic_numbers[symbol], float(energy)
    except (KeyError, ValueError):
        raise ConfigError(expected="an element and its reference energy in eV, as S=-10821.5", received=text,
                          where="--element", todo="mend it") from None
