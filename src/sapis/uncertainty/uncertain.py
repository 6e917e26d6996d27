"""`Uncertain`: what all potentials that know their doubt have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from sapis.data.conditions import Conditions
from sapis.data.system import System
from sapis.model.potential import TransformerPotential
from sapis.potential.calibration import Calibration
from sapis.potential.posterior import Posterior
from sapis.potential.prediction import Prediction


class Uncertain(nn.Module, ABC):
    """A potential made of one trained model or several of a kind.

    Args:
        calibrations: of ``energy`` and ``forces``, by which stated deviations are corrected; empty: as the method says.
    """

    def __init__(self, calibrations: Mapping[str, Calibration] | None = None) -> None:
        super().__init__()
        self.calibrations = dict(calibrations or {})

    @property
    @abstractmethod
    def first(self) -> TransformerPotential:
        """Its model, or the first of them: all agree on what is not a weight."""

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers, ascending."""
        return self.first.elements

    @property
    def cutoff(self) -> float:
        """Å."""
        return self.first.cutoff

    @property
    def precision(self) -> str:
        """``float32`` or ``float64``."""
        return self.first.precision

    @property
    def conditions(self) -> Conditions:
        """Charges, multiplicities and levels of theory that it knows."""
        return self.first.conditions

    def predict(self, systems: Sequence[System]) -> list[Prediction]:
        """Means.

        Raises:
            ModelError: an element, charge, multiplicity or level of theory that its models do not know.
            DataError: coinciding atoms.
        """
        return [found.mean for found in self.posterior(systems)]

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything but weights and tables, as JSON values."""

    @abstractmethod
    def with_precision(self, precision: str) -> Uncertain:
        """A copy that computes in ``precision``."""

    @abstractmethod
    def posterior(self, systems: Sequence[System]) -> list[Posterior]:
        """Means and calibrated deviations; raises what `predict` raises."""

    @abstractmethod
    def variance_gradients(self, systems: Sequence[System]) -> list[np.ndarray]:
        """Gradient of the calibrated energy variance of each system by its positions, eV^2/Å, ``(atoms, 3)``; raises what
        `predict` raises.
        """

    def _energy_factor(self) -> float:
        """By which calibration multiplies the deviation of energies."""
        known = self.calibrations.get("energy")
        return 1.0 if known is None else float(known.corrected(np.ones(1))[0])
