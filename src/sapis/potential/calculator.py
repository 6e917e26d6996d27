"""The ASE calculator of any `Potential`."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from sapis.data.system import System
from sapis.potential.prediction import Potential


class SapisCalculator(Calculator):
    """ASE calculator: energy, free_energy, energies (eV), forces (eV/Å), stress (eV/Å^3, Voigt xx yy zz yz xz xy, tension
    positive).

    Args:
        potential: what computes.

    Raises (on calculation):
        ModelError: an element the potential does not know.
        DataError: coinciding atoms, NaN positions.
        PropertyNotImplementedError: stress without three periodic directions (ASE's own error).
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012 - as ASE declares it

    def __init__(self, potential: Potential, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.potential = potential

    def calculate(self, atoms: Atoms | None = None, properties: list[str] | None = None,
                  system_changes: list[str] = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        held = self.atoms
        assert held is not None  # ASE's own calculate keeps a copy of atoms
        (prediction,) = self.potential.predict([System.from_atoms(held)])
        self.results = {
            "energy": prediction.energy, "free_energy": prediction.energy,
            "energies": np.array(prediction.energies), "forces": np.array(prediction.forces),
        }
        if prediction.stress is not None:
            self.results["stress"] = full_3x3_to_voigt_6_stress(prediction.stress)
