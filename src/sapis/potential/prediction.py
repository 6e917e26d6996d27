"""The seam: what everything that trains, simulates, scores or labels sees of a potential."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from sapis.data.system import System


@dataclass(frozen=True)
class Prediction:
    """What a potential says of one `System`; NumPy float64.

    Attributes:
        energy: total energy, eV.
        energies: per-atom energies that sum to ``energy``, eV, ``(atoms,)``.
        forces: -dE/dr, eV/Å, ``(atoms, 3)``.
        stress: (1/V) dE/dstrain, eV/Å^3, ``(3, 3)``; None unless periodic in three directions.
    """

    energy: float
    energies: np.ndarray
    forces: np.ndarray
    stress: np.ndarray | None = None


@runtime_checkable
class Potential(Protocol):
    """An interatomic potential.

    Attributes:
        elements: atomic numbers it knows, ascending.
        cutoff: Å; beyond it two atoms do not see each other directly.
        precision: ``float32`` or ``float64``, the arithmetic of `predict`.
    """

    @property
    def elements(self) -> tuple[int, ...]: ...

    @property
    def cutoff(self) -> float: ...

    @property
    def precision(self) -> str: ...

    def predict(self, systems: Sequence[System]) -> list[Prediction]:
        """Energy, forces and (if periodic) stress of each system, in order."""
        ...
