"""Dynamics that looks for what a potential does not know, or keeps away from it."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_changes

from sapis.potential.calculator import SapisCalculator
from sapis.potential.posterior import UncertainPotential

TINY = 1e-6  # eV, added to deviations in squares: they have a gradient where they are zero


class BiasedCalculator(SapisCalculator):
    """`SapisCalculator` of ``E - tau s``, with the standard deviation ``s`` of the energy: hyperactive learning (van der Oord and
    others, npj Comput. Mater. 9, 168, 2023).

    tau is set at each evaluation, so that the forces of the bias have been ``strength`` times as large as those of the potential,
    in the mean over all biased evaluations so far. It changes along a trajectory; a thermostat takes up the work that this does.

    Args:
        potential: what computes, and knows its doubt.
        strength: ratio of mean forces; 0.1 to 0.5 is usual. Below 0 it draws back to what the potential knows.
        above: eV/Å; there is no bias while every force is known better than this.
        level: level of theory, for a model of several.
    """

    def __init__(self, potential: UncertainPotential, strength: float, *, above: float = 0.0, level: str = "", **kwargs: Any,
                 ) -> None:
        super().__init__(potential, level=level, **kwargs)
        self.doubtful, self.strength, self.above = potential, strength, above
        self._forces = self._gradients = 0.0

    def calculate(self, atoms: Atoms | None = None, properties: list[str] | None = None,
                  system_changes: list[str] = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.results.pop("stress", None)  # that of the bias is not computed
        self.results.pop("energies")
        if self.results["forces_uncertainty"].max() <= self.above:
            return
        forces, system = self.results["forces"], self._system()
        std = float(np.hypot(self.results["energy_uncertainty"], TINY))
        gradient = self.doubtful.variance_gradients([system])[0] / (2 * std)
        self._forces += float(np.linalg.norm(forces, axis=1).mean())
        self._gradients += float(np.linalg.norm(gradient, axis=1).mean())
        tau = self.strength * self._forces / self._gradients if self._gradients else 0.0
        self.results["forces"] = forces + tau * gradient
        for name in ("energy", "free_energy"):
            self.results[name] -= tau * std
