"""`sapis check`: lint data before anything is spent on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sapis.cli.options import EnergyKey, ForcesKey, StressKey, label_keys


def check(
    files: Annotated[list[Path], typer.Argument(help="Data files (anything ASE reads).")],
    waive: Annotated[list[str] | None, typer.Option(help="Lint rule whose errors are accepted.")] = None,
    energy_key: EnergyKey = None, forces_key: ForcesKey = None, stress_key: StressKey = None,
) -> None:
    """Lint data files: missing labels, wrong units, overlapping atoms, duplicates …"""
    from sapis.data.formats import read_systems
    from sapis.data.lint import lint, raise_on_errors

    everything = []
    for file in files:
        systems = read_systems(file, keys=label_keys(energy_key, forces_key, stress_key))
        findings = lint(systems)
        typer.echo(f"{file}: {len(systems)} frames, {len(findings)} findings")
        for finding in findings:
            typer.echo(f"  {finding.severity} [{finding.rule}] {finding.where}: {finding.message}")
        everything += findings
    raise_on_errors(everything, waived=waive or ())
