"""`sapis md`: molecular dynamics with a model, with its checks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sapis.cli.options import Level, at_level


def md(
    model: Annotated[Path, typer.Argument(help="A model bundle.")],
    structure: Annotated[Path, typer.Argument(help="Starting structure (anything ASE reads).")],
    temperature_K: Annotated[float, typer.Option("--temperature-K", min=0.001)] = 300.0,
    time_ps: Annotated[float, typer.Option(min=0.001)] = 1.0,
    timestep_fs: Annotated[float, typer.Option(min=0.001)] = 0.5,
    ensemble: Annotated[str, typer.Option(help="nve or nvt")] = "nve",
    precision: Annotated[str, typer.Option(help="float32 or float64")] = "float64",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    order: Annotated[bool, typer.Option(help="Also test that the energy error falls as the square of the timestep.")] = False,
    stop_above: Annotated[float | None, typer.Option(
        min=0, help="Stop where the force on an atom is more uncertain than this, eV/Å (exit code 3).")] = None,
    warn_above: Annotated[float | None, typer.Option(
        min=0, help="Count such steps instead, keep the first such structure, and go on.")] = None,
    stopped: Annotated[Path, typer.Option(help="Where that structure goes.")] = Path("stopped.extxyz"),
    bias: Annotated[float, typer.Option(
        help="Draw it to what the model does not know, or below 0 back from there: forces of the bias over those of the model "
        "(with nvt).")] = 0.0,
    bias_above: Annotated[float, typer.Option(
        min=0, help="Only at steps at which a force is more uncertain than this, eV/Å; these are counted, and the first such "
        "structure is kept, unless --stop-above or --warn-above says of which.")] = 0.0,
    level: Level = "",
    output: Annotated[Path | None, typer.Option(help="Write the record as JSON here.")] = None,
) -> None:
    """NVE (drift, fluctuation) or NVT (temperature, stability) dynamics."""
    from dataclasses import replace

    from sapis.api import load
    from sapis.core.errors import ConfigError
    from sapis.core.files import refuse_inputs, write_json
    from sapis.data.formats import read_systems, write_systems
    from sapis.potential.biased import BiasedCalculator
    from sapis.potential.posterior import UncertainPotential
    from sapis.simulate.md import UNCERTAIN, order_test, run_nve, run_nvt

    limit = next((given for given in (stop_above, warn_above, bias_above or None) if given is not None), None)
    refuse_inputs({"--output": output, "--stopped": stopped if limit is not None else None}, [model, structure])
    if stop_above is not None and warn_above is not None:
        raise ConfigError(expected="either --stop-above or --warn-above", received="both", where="sapis md", todo="give one")
    if bias and ensemble != "nvt":
        raise ConfigError(expected="--ensemble nvt with --bias: a thermostat takes up its work", received=ensemble,
                          where="--bias", todo="add --ensemble nvt, or leave the bias out")
    if bias_above and not bias:
        raise ConfigError(expected="--bias with --bias-above", received="no bias", where="--bias-above", todo="say how strong")
    if ensemble not in ("nve", "nvt"):
        raise ConfigError(expected="nve or nvt", received=ensemble, where="--ensemble", todo="give one of them")
    (system,) = at_level(read_systems(structure)[:1], level)
    calculator = load(model).calculator(precision, level=system.level)
    atoms = system.to_atoms()
    atoms.calc = calculator
    if bias:
        if not isinstance(calculator.potential, UncertainPotential):
            raise ConfigError(expected="a model that knows its doubt", received="one that does not", where=f"--bias, {model}",
                              todo="train it with an uncertainty")
        atoms.calc = BiasedCalculator(calculator.potential, bias, above=bias_above, level=system.level)
    kind = run_nve if ensemble == "nve" else run_nvt
    trace = kind(atoms, temperature_K=temperature_K, timestep_fs=timestep_fs, time_ps=time_ps, seed=seed,
                 max_uncertainty_eV_A=limit, goes_on=stop_above is None)
    record = trace.to_record()
    if order and not trace.reason.startswith(UNCERTAIN):
        start = system.to_atoms()
        start.calc = calculator
        record["order"] = order_test(start, temperature_K=temperature_K, seed=seed).to_record()
    for name, value in record.items():
        if name != "trace":
            typer.echo(f"{name}: {value}")
    if output:
        write_json(output, record)
    if trace.uncertain_at is not None:
        where = replace(system.without_labels(), positions=trace.uncertain_at.positions)
        # What goes on may end later, for another reason.
        reason = trace.reason if stop_above is not None else f"{UNCERTAIN} by more than {limit:g} eV/Å"
        write_systems(stopped, [where.with_tags(reason=reason)])
        if stop_above is None:
            typer.echo(f"warning: at {trace.n_uncertain} steps a force was more uncertain than {limit:g} eV/Å; the first such "
                       f"structure is in {stopped}")
        else:
            typer.echo(f"stopped, {trace.reason}; the structure is in {stopped}")
            raise typer.Exit(3)
