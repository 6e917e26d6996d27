"""`sapis check-model`: does a model obey the laws of physics?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sapis.cli.options import Level, at_level


def check_model(
    model: Annotated[Path, typer.Argument(help="A model bundle.")],
    structure: Annotated[Path, typer.Argument(help="A structure of the model's elements (anything ASE reads).")],
    precision: Annotated[str, typer.Option(help="float32 or float64")] = "float64",
    n_structures: Annotated[int, typer.Option(min=1, help="How many frames to check on.")] = 2,
    level: Level = "",
) -> None:
    """Equivariance, forces, stress, smoothness, extensivity, NVE drift and order. Exit code 1 if a check fails."""
    from sapis.api import load
    from sapis.core.progress import console
    from sapis.data.formats import read_systems
    from sapis.pipeline.checks import dynamics_checks
    from sapis.testing.laws import check_potential

    loaded = load(model, precision=precision)
    systems = [system.without_labels() for system in at_level(read_systems(structure)[:n_structures], level)]
    calculator = loaded.calculator(level=systems[0].level)
    checks = [*check_potential(loaded.potential, systems), *dynamics_checks(calculator, systems[0])]
    for check in checks:
        mark = "[green]pass[/]" if check.passed else "[bold red]FAIL[/]"
        console.print(f"{mark}  {check.name:28s} {check.value:.3g} {check.unit} (limit {check.limit:.3g})", highlight=False)
    raise typer.Exit(0 if all(check.passed for check in checks) else 1)
