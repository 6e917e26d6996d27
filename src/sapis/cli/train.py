"""`sapis train`: a potential from labelled files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sapis.cli.options import EnergyKey, ForcesKey, StressKey, VirialKey, label_keys


def train(
    data: Annotated[Path, typer.Argument(help="Labelled training frames (anything ASE reads).")],
    output: Annotated[Path, typer.Option(help="Folder of the training.")],
    validation: Annotated[Path | None, typer.Option(help="Validation frames; default: some of the training frames.")] = None,
    n_validation: Annotated[int, typer.Option(min=1, help="How many training frames to validate on, if no file is given.")] = 50,
    group_by: Annotated[str, typer.Option(help="Tag, as smiles: frames that share its value validate together.")] = "",
    test: Annotated[list[Path] | None, typer.Option(help="Test frames (repeatable).")] = None,
    isolated: Annotated[Path | None, typer.Option(help="Isolated atoms, for reference energies; default: least squares.")] = None,
    start: Annotated[Path | None, typer.Option(help="A model to go on from: its weights, sizes and reference energies.")] = None,
    to_level: Annotated[str, typer.Option(help="With --start: the level of theory of the data, another than the model's.")] = "",
    config: Annotated[Path | None, typer.Option(
        help="YAML with settings: `model:`, `training:`, `uncertainty:`, `level_of_theory:`.")] = None,
    cpu_seconds: Annotated[float | None, typer.Option(min=1, help="Budget in CPU seconds.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Budget in epochs.")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    waive: Annotated[list[str] | None, typer.Option(help="Lint rule whose errors are accepted.")] = None,
    energy_key: EnergyKey = None, forces_key: ForcesKey = None, stress_key: StressKey = None,
    virial_key: VirialKey = None,
) -> None:
    """Train on labelled files, test, check the physics, write one bundle. The same command goes on after a stop."""
    from sapis.core.config import load_yaml, parse_config
    from sapis.pipeline.train import TrainRequest, train_files
    from sapis.training.config import TrainingConfig

    request = parse_config(TrainRequest, load_yaml(config) if config else {}, where=str(config))
    options = {"cpu_seconds": cpu_seconds, "epochs": epochs, "seed": seed}
    chosen = {key: value for key, value in options.items() if value is not None}
    training = parse_config(TrainingConfig, {**request.training.model_dump(), **chosen}, where="options")
    request = request.model_copy(update={"training": training})
    outcome = train_files(
        data, output, request, validation=validation, n_validation=n_validation, group_by=group_by,
        tests=test or [], isolated=isolated, start=start, to_level=to_level,
        keys=label_keys(energy_key, forces_key, stress_key, virial_key), waived=waive or [],
    )
    for name, errors in outcome.errors.items():
        typer.echo(f"{name}: force RMSE {errors['force_rmse_meV_A'] or float('nan'):.1f} meV/Å, "
                   f"energy RMSE {errors['energy_rmse_meV_atom'] or float('nan'):.2f} meV/atom ({errors['n']} frames)")
    verdict = "all passed" if outcome.all_passed else "SOME FAILED"
    typer.echo(f"physics checks: {verdict}\nmodel: {outcome.model}\nhash:  {outcome.model_hash}")
