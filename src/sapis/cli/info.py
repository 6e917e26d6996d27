"""`sapis info`: what a model bundle says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def info(
    model: Annotated[Path, typer.Argument(help="A model bundle.")],
    json_output: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Elements, units, level of theory, training, test figures and physics checks of a model."""
    import json

    from ase.data import chemical_symbols

    from sapis.potential.bundle import UNITS, read_bundle

    bundle = read_bundle(model)
    settings, card = bundle.settings, bundle.card
    if json_output:
        everything = {"architecture": bundle.architecture, "settings": settings, "units": UNITS, "card": card}
        typer.echo(json.dumps(everything, indent=1))
        return
    n_parameters = sum(tensor.numel() for tensor in bundle.weights.values())
    typer.echo(f"architecture     {bundle.architecture}, {n_parameters:,} parameters, {settings['precision']}")
    typer.echo(f"elements         {' '.join(chemical_symbols[z] for z in settings['elements'])}")
    typer.echo(f"cutoff           {settings['config']['cutoff']} Å")
    typer.echo(f"units            {', '.join(f'{name} {unit}' for name, unit in UNITS.items())}")
    typer.echo(f"level of theory  {card.get('level_of_theory', 'not given')}")
    for name, errors in card.get("test", {}).items():
        force, energy = errors.get("force_rmse_meV_A"), errors.get("energy_rmse_meV_atom")
        typer.echo(f"{name:16s} force RMSE {force if force is None else round(force, 2)} meV/Å, "
                   f"energy RMSE {energy if energy is None else round(energy, 3)} meV/atom, {errors.get('n')} frames")
    for check in card.get("checks", []):
        verdict = "pass" if check["passed"] else "FAIL"
        value = "not a number" if check["value"] is None else f"{check['value']:.2e}"
        typer.echo(f"check            {verdict} {check['name']}: {value} (limit {check['limit']:.0e}) {check['unit']}")
