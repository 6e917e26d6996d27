"""`sapis evaluate`: errors of a model on labelled frames."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sapis.cli.options import EnergyKey, ForcesKey, Level, StressKey, VirialKey, at_level, label_keys


def evaluate(
    model: Annotated[Path, typer.Argument(help="A model bundle.")],
    data: Annotated[Path, typer.Argument(help="Labelled frames (anything ASE reads).")],
    precision: Annotated[str | None, typer.Option(help="float32 or float64; default: as trained.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write all figures as JSON here.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Write predictions (extended xyz: sapis_energy, …) here.")] = None,
    level: Level = "", energy_key: EnergyKey = None, forces_key: ForcesKey = None, stress_key: StressKey = None,
    virial_key: VirialKey = None,
) -> None:
    """Errors of energies and forces (MAE and RMSE), by element and by temperature, and of stresses (RMSE)."""
    from sapis.api import load
    from sapis.core.files import refuse_inputs, write_json
    from sapis.data.formats import read_systems
    from sapis.evaluate.errors import evaluate as compare

    refuse_inputs({"--output": output, "--predictions": predictions}, [model, data])
    potential = load(model, precision=precision).potential
    systems = at_level(read_systems(data, keys=label_keys(energy_key, forces_key, stress_key, virial_key)), level)
    errors = compare(potential, systems)
    for name, value in errors.items():
        if name != "parity" and isinstance(value, int | float):
            typer.echo(f"{name:24s} {value:.6g}")
    for symbol, row in errors["by_element"].items():
        typer.echo(f"force RMSE of {symbol:2s}         {row['rmse']:.6g}")
    for temperature, row in errors["by_temperature"].items():
        if row["force_rmse_meV_A"] is not None:
            typer.echo(f"{f'force RMSE at {temperature} K':24s} {row['force_rmse_meV_A']:.6g}")
    if output:
        write_json(output, errors)
    if predictions:
        _write_predictions(predictions, potential, systems)


def _write_predictions(path: Path, potential, systems) -> None:  # type: ignore[no-untyped-def]
    """Predictions under their own keys, beside the reference, never over it."""
    import ase.io

    from sapis.core.files import replacing

    frames = []
    for system, prediction in zip(systems, potential.predict(systems), strict=True):
        atoms = system.to_atoms()
        atoms.info["sapis_energy"], atoms.arrays["sapis_forces"] = prediction.energy, prediction.forces
        if system.energy is not None:
            atoms.info["REF_energy"] = system.energy
        if system.forces is not None:
            atoms.arrays["REF_forces"] = system.forces
        if prediction.stress is not None:
            atoms.info["sapis_stress"] = prediction.stress
        frames.append(atoms)
    with replacing(path) as part:
        ase.io.write(part, frames, format="extxyz")
