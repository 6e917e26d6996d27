"""`sapis info`: what a model bundle says of itself, and what a model costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def info(
    model: Annotated[str | None, typer.Argument(help="A model bundle; with --cost also a preset, or none for all.")] = None,
    cost: Annotated[bool, typer.Option("--cost", help="FLOPs, traffic and weights, part by part.")] = False,
    atoms: Annotated[int, typer.Option(min=1, help="Atoms of the structure whose cost is given.")] = 27,
    neighbors: Annotated[int, typer.Option(min=0, help="Neighbours of each of them.")] = 17,
    json_output: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Elements, units, level of theory, training, test figures and physics checks of a model; or its cost."""
    from sapis.core.errors import ConfigError

    if cost:
        from sapis.cli.cost import show_cost

        show_cost(model, n_atoms=atoms, n_neighbors=neighbors, is_json=json_output)
        return
    if model is None:
        raise ConfigError(expected="a model bundle", received="nothing", where="MODEL",
                          todo="give a .sapis file; or --cost, which shows all presets")
    _show(Path(model), json_output)


def _show(path: Path, is_json: bool) -> None:
    import json

    from ase.data import chemical_symbols

    from sapis.potential.bundle import UNITS, read_bundle

    bundle = read_bundle(path)
    settings, card = bundle.settings, bundle.card
    if is_json:
        everything = {"architecture": bundle.architecture, "settings": settings, "units": UNITS, "card": card}
        typer.echo(json.dumps(everything, indent=1))
        return
    tables = settings.get("shapes", {})  # of what knows its doubt: nothing of them was trained
    n_parameters = sum(tensor.numel() for name, tensor in bundle.weights.items() if name not in tables)
    # Of what knows its doubt, the settings of a model in it.
    settings = settings.get("members", [settings.get("potential", settings)])[0]
    typer.echo(f"architecture     {bundle.architecture}, {n_parameters:,} parameters, {settings['precision']}")
    typer.echo(f"elements         {' '.join(chemical_symbols[z] for z in settings['elements'])}")
    for name, values in settings.get("conditions", {}).items():
        if values:
            typer.echo(f"{name:16s} {', '.join(map(str, values))}")
    typer.echo(f"cutoff           {settings['config']['cutoff']} Å")
    typer.echo(f"units            {', '.join(f'{name} {unit}' for name, unit in UNITS.items())}")
    typer.echo(f"level of theory  {card.get('level_of_theory', 'not given')}")
    if known := card.get("uncertainty"):
        typer.echo(f"uncertainty      {known['method']}, calibrated on {known['calibrations']['forces']['n']:,} forces")
    validated = {"validation": card["validation"]} if "validation" in card else {}
    for name, errors in (validated | card.get("test", {})).items():
        force, energy = errors.get("force_rmse_meV_A"), errors.get("energy_rmse_meV_atom")
        typer.echo(f"{name:16s} force RMSE {force if force is None else round(force, 2)} meV/Å, "
                   f"energy RMSE {energy if energy is None else round(energy, 3)} meV/atom, {errors.get('n')} frames")
    for check in card.get("checks", []):
        verdict = "pass" if check["passed"] else "FAIL"
        value = "not a number" if check["value"] is None else f"{check['value']:.2e}"
        typer.echo(f"check            {verdict} {check['name']}: {value} (limit {check['limit']:.0e}) {check['unit']}")
