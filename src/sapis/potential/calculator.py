"""The ASE calculator of any `Potential`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from sapis.data.formats.labels import CHARGE_KEYS, SPIN_KEYS, electrons
from sapis.data.system import System
from sapis.potential.posterior import UncertainPotential
from sapis.potential.prediction import Potential


class SapisCalculator(Calculator):
    """ASE calculator: energy, free_energy, energies (eV), forces (eV/Å), stress (eV/Å^3, Voigt xx yy zz yz xz xy, tension
    positive). With a potential that knows its doubt also energy_uncertainty (eV) and forces_uncertainty (eV/Å, of each atom):
    standard deviations.

    Total charge and multiplicity are those of ``atoms.info["charge"]`` and ``atoms.info["spin"]`` (2S+1), 0 and 1 where it does
    not say.

    Args:
        potential: what computes.
        level: level of theory, for a model of several.

    Raises (on calculation):
        ModelError: an element, charge, multiplicity or level of theory that the potential does not know.
        DataError: coinciding atoms, NaN positions.
        PropertyNotImplementedError: stress without three periodic directions (ASE's own error).
    """

    implemented_properties = [  # noqa: RUF012 - as ASE declares it
        "energy", "free_energy", "energies", "forces", "stress", "energy_uncertainty", "forces_uncertainty"]

    def __init__(self, potential: Potential, *, level: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.potential, self.level = potential, level

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed since the last calculation: ASE's own, which does not look at charge and multiplicity."""
        changes: list[str] = super().check_state(atoms, tol=tol)
        keys = (*CHARGE_KEYS, *SPIN_KEYS)
        if self.atoms is not None and any(self.atoms.info.get(key) != atoms.info.get(key) for key in keys):
            changes.append("info")
        return changes

    def calculate(self, atoms: Atoms | None = None, properties: list[str] | None = None,
                  system_changes: list[str] = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        system = self._system()
        doubt: dict[str, Any] = {}
        if isinstance(self.potential, UncertainPotential):
            (posterior,) = self.potential.posterior([system])
            prediction = posterior.mean
            doubt = {"energy_uncertainty": posterior.energy_std, "forces_uncertainty": posterior.force_std}
        else:
            (prediction,) = self.potential.predict([system])
        self.results = {
            "energy": prediction.energy, "free_energy": prediction.energy,
            "energies": np.array(prediction.energies), "forces": np.array(prediction.forces), **doubt,
        }
        if prediction.stress is not None:
            self.results["stress"] = full_3x3_to_voigt_6_stress(prediction.stress)

    def _system(self) -> System:
        """That of the present calculation."""
        held = self.atoms
        assert held is not None  # ASE's own calculate keeps a copy of atoms
        bare = System.from_atoms(held)
        charge, spin = electrons(held.info, bare.error)
        return replace(bare, charge=charge, spin=spin, level=self.level)
