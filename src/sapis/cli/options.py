"""Options that several verbs share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sapis.data.formats import LabelKeys
    from sapis.data.system import System

EnergyKey = Annotated[str | None, typer.Option(help="Key of the energy labels; default: found by itself.")]
ForcesKey = Annotated[str | None, typer.Option(help="Key of the force labels; default: found by itself.")]
StressKey = Annotated[str | None, typer.Option(help="Key of the stress labels, eV/Å^3; default: found by itself.")]
VirialKey = Annotated[str | None, typer.Option(help="Key of virials, eV (minus stress times volume), in place of stresses.")]

Level = Annotated[str, typer.Option(help="Level of theory of frames that do not name it, for a model of several.")]


def at_level(systems: list[System], level: str) -> list[System]:
    """``systems``, those without a level of theory at ``level``."""
    return [system.at_level(level) for system in systems]


def label_keys(energy: str | None, forces: str | None, stress: str | None, virial: str | None) -> LabelKeys:
    """The keys that the user named."""
    from sapis.data.formats import LabelKeys

    return LabelKeys(energy=energy, forces=forces, stress=stress, virial=virial)
