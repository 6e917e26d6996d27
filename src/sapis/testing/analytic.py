"""Potentials with known answers, in plain NumPy, that satisfy the `Potential` interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sapis.data.system import System
from sapis.potential.prediction import Prediction


@dataclass(frozen=True)
class LennardJones:
    """Lennard-Jones with a C2 envelope: u(r) = 4 epsilon [(sigma/r)^12 - (sigma/r)^6] s(x).

    s(x) = 1 - 10x^3 + 15x^4 - 6x^5 with x = (r - onset)/(cutoff - onset) clipped to [0, 1], so that energy,
    force and curvature are continuous everywhere. The defaults are argon's.

    Known answers: the pair energy is -epsilon at r = 2^(1/6) sigma; it is 0 at sigma and beyond the cutoff.

    Attributes:
        epsilon: well depth, eV.
        sigma: distance of zero energy, Å.
        onset: Å; the envelope is 1 up to here. At least 2^(1/6) sigma for the known answers.
        cutoff: Å.
        elements: atomic numbers; all interact alike.
    """

    epsilon: float = 0.0104
    sigma: float = 3.4
    onset: float = 5.5
    cutoff: float = 7.0
    elements: tuple[int, ...] = (18,)
    precision: str = "float64"

    def predict(self, systems: Sequence[System]) -> list[Prediction]:
        """Energy, forces and (if periodic) stress of each system, in order."""
        return [self._predict_one(system) for system in systems]

    def pair_energy(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """u(r) in eV and du/dr in eV/Å, each of r's shape; ``r`` in Å, positive."""
        sixth = (self.sigma / r) ** 6
        bare = 4 * self.epsilon * (sixth**2 - sixth)
        bare_slope = -24 * self.epsilon * (2 * sixth**2 - sixth) / r
        width = self.cutoff - self.onset
        x = np.clip((r - self.onset) / width, 0.0, 1.0)
        envelope = 1 - x**3 * (10 - 15 * x + 6 * x**2)
        envelope_slope = -30 * x**2 * (1 - x) ** 2 / width
        return bare * envelope, bare_slope * envelope + bare * envelope_slope

    def _predict_one(self, system: System) -> Prediction:
        from ase.neighborlist import neighbor_list

        receiver, vectors = neighbor_list("iD", system.to_atoms(), self.cutoff)
        return _sum_pairs(system, receiver, vectors, *self.pair_energy(np.linalg.norm(vectors, axis=1)))


@dataclass(frozen=True)
class HarmonicBonds:
    """Springs between named atoms: E = sum over bonds of stiffness/2 (r - length)^2.

    A molecule whose answers are known: a free diatomic vibrates at the angular frequency sqrt(stiffness/mu)
    with mu its reduced mass. The bonds name atoms by index, so it is not permutation-invariant or extensive.

    Attributes:
        bonds: pairs of atom indices.
        stiffness: eV/Å^2.
        length: rest length, Å.
        elements: atomic numbers; all alike.
        cutoff: infinite: springs do not break.
    """

    bonds: tuple[tuple[int, int], ...]
    stiffness: float = 30.0
    length: float = 1.0
    elements: tuple[int, ...] = (1, 6, 7, 8)
    cutoff: float = float("inf")
    precision: str = "float64"

    def predict(self, systems: Sequence[System]) -> list[Prediction]:
        """Energy and forces of each system (not periodic), in order."""
        return [self._predict_one(system) for system in systems]

    def _predict_one(self, system: System) -> Prediction:
        first, second = np.asarray(self.bonds, dtype=np.int64).T
        receiver, sender = np.concatenate([first, second]), np.concatenate([second, first])
        vectors = system.positions[sender] - system.positions[receiver]
        stretch = np.linalg.norm(vectors, axis=1) - self.length
        energy, slope = self.stiffness / 2 * stretch**2, self.stiffness * stretch
        return _sum_pairs(system, receiver, vectors, energy, slope)


def _sum_pairs(
    system: System, receiver: np.ndarray, vectors: np.ndarray, energy: np.ndarray, slope: np.ndarray
) -> Prediction:
    """Sum pair energies (every pair listed from both its ends) with forces and stress.

    Args:
        receiver: ``(edges,)``.
        vectors: receiver to sender, Å, ``(edges, 3)``.
        energy: u(r), eV, ``(edges,)``.
        slope: du/dr, eV/Å, ``(edges,)``.
    """
    energies, forces = np.zeros(len(system)), np.zeros((len(system), 3))
    pull = (slope / np.linalg.norm(vectors, axis=1))[:, None] * vectors
    np.add.at(energies, receiver, energy / 2)
    np.add.at(forces, receiver, pull)
    volume = system.volume
    stress = None if volume is None else pull.T @ vectors / (2 * volume)
    return Prediction(energy=float(energies.sum()), energies=energies, forces=forces, stress=stress)
