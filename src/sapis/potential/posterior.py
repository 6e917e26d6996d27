"""`Posterior`: what a potential that knows its own doubt says of a system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from sapis.core.errors import ModelError
from sapis.data.system import System
from sapis.potential.calibration import Calibration
from sapis.potential.prediction import Potential, Prediction


@dataclass(frozen=True, eq=False)
class Posterior:
    """The mean of a distribution over potentials, and how far it spreads; NumPy float64.

    The covariance of a force turns with the system: R S R^T. What is made of it must not depend on the axes, so there are no
    deviations of single components here.

    Attributes:
        mean: energy, forces, stress.
        energy_variance: of the total energy, eV^2.
        force_covariance: of the force on each atom, eV^2/Å^2, ``(atoms, 3, 3)``.
        energies: total energy of each member, eV, ``(members,)``; None if the method has no members.
        forces: of each member, eV/Å, ``(members, atoms, 3)``; None likewise.
    """

    mean: Prediction
    energy_variance: float
    force_covariance: np.ndarray
    energies: np.ndarray | None = None
    forces: np.ndarray | None = None

    @classmethod
    def of_members(cls, members: Sequence[Prediction]) -> Posterior:
        """Of the predictions of members for one system: mean and unbiased covariance.

        Raises:
            ModelError: fewer than two.
        """
        if len(members) < 2:
            raise ModelError(expected="at least two members", received=str(len(members)), where="posterior",
                             todo="train more members, or take a method without any")
        energies = np.array([member.energy for member in members])
        forces = np.stack([member.forces for member in members])
        # From the first member on: identical ones then have no variance at all, and large energies lose no digits.
        moved, shifts = forces - forces[0], energies - energies[0]
        moved -= moved.mean(axis=0)
        stresses = [member.stress for member in members if member.stress is not None]
        mean = Prediction(
            energy=float(energies.mean()), energies=np.mean([member.energies for member in members], axis=0),
            forces=forces.mean(axis=0), stress=np.mean(stresses, axis=0) if stresses else None)
        covariance = np.einsum("mia,mib->iab", moved, moved) / (len(members) - 1)
        return cls(mean, float(shifts.var(ddof=1)), covariance, energies, forces)

    def calibrated(self, calibrations: Mapping[str, Calibration], numbers: np.ndarray) -> Posterior:
        """The same with deviations that can be trusted, those of forces by the elements ``numbers`` ``(atoms,)``. Members stay as
        they are: each is a potential.
        """
        energy, forces = calibrations.get("energy"), calibrations.get("forces")
        variance, covariance = self.energy_variance, self.force_covariance
        if energy is not None:
            variance = float(energy.corrected(np.ones(1))[0]) ** 2 * variance
        if forces is not None:
            stds = self.force_std
            factors = np.divide(forces.corrected(stds, numbers), stds, out=np.zeros(len(stds)), where=stds > 0)
            covariance = factors[:, None, None] ** 2 * covariance
        return replace(self, energy_variance=variance, force_covariance=covariance)

    @property
    def energy_std(self) -> float:
        """Standard deviation of the total energy, eV."""
        return float(np.sqrt(self.energy_variance))

    @property
    def force_std(self) -> np.ndarray:
        """Standard deviation of the force on each atom, root mean square over directions, eV/Å, ``(atoms,)``."""
        return np.sqrt(np.trace(self.force_covariance, axis1=1, axis2=2) / 3)


@runtime_checkable
class UncertainPotential(Potential, Protocol):
    """A potential that knows how sure it is."""

    def posterior(self, systems: Sequence[System]) -> list[Posterior]:
        """Means and deviations of each system, in order."""
        ...

    def variance_gradients(self, systems: Sequence[System]) -> list[np.ndarray]:
        """Of the energy variance of each system by its positions, eV^2/Å, ``(atoms, 3)``: where doubt grows."""
        ...
