"""Repulsion of nuclei at close range, where no training data are: the universal potential of Ziegler, Biersack and Littmark."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ase.data import covalent_radii
from ase.units import Bohr, Hartree

from sapis.model.edges import EdgeList, Slots
from sapis.model.layers import envelope

# J. F. Ziegler, J. P. Biersack, U. Littmark, The Stopping and Range of Ions in Solids (1985).
COEFFICIENTS = (0.18175, 0.50986, 0.28022, 0.02817)
DECAYS = (3.19980, 0.94229, 0.40290, 0.20162)
LENGTH, EXPONENT = 0.8854 * Bohr, 0.23  # of the screening


class Repulsion:
    """``V = s(r) e^2 Z Z' / r * phi(r / a)``, half of it to each atom of a pair.

    The switch s is the model's envelope, from one at contact to zero at the sum of the covalent radii (Batatia et al., arXiv
    2401.00096), twice continuously differentiable. No weights.

    Args:
        elements: atomic numbers, in the order of species.
        cutoff: Å; no pair beyond it is seen.
    """

    def __init__(self, elements: Sequence[int], cutoff: float) -> None:
        numbers = torch.tensor(elements, dtype=torch.float64)
        radii = torch.tensor(covalent_radii[list(elements)], dtype=torch.float64)
        self.table, self.cutoff = torch.stack((numbers, radii), dim=1), cutoff

    def energies(self, species: torch.Tensor, links: Slots | EdgeList, vectors: torch.Tensor) -> torch.Tensor:
        """Per-atom energies, eV, ``(atoms,)``, differentiable by ``vectors`` of the links, Å."""
        atoms = self.table.to(vectors)[species]
        (z, radius), (other_z, other_radius) = links.received(atoms).unbind(-1), links.sent(atoms).unbind(-1)
        distances = vectors.square().sum(-1).sqrt()
        switch = envelope(distances / (radius + other_radius).clamp(max=self.cutoff))
        scaled = distances * (z**EXPONENT + other_z**EXPONENT) / LENGTH
        screening = sum(c * torch.exp(-d * scaled) for c, d in zip(COEFFICIENTS, DECAYS, strict=True))
        pairs = 0.5 * Hartree * Bohr * z * other_z / distances * screening * switch
        return links.collect(pairs.unsqueeze(-1), torch.ones_like(pairs).unsqueeze(-1))[:, 0, 0]

    def energies_and_gradient(self, species: torch.Tensor, links: Slots | EdgeList, vectors: torch.Tensor,
                              ) -> tuple[torch.Tensor, torch.Tensor]:
        """Per-atom energies, eV, and the gradient of their sum by ``vectors``, eV/Å; neither depends on weights."""
        moved = vectors.detach().requires_grad_()
        with torch.enable_grad():
            energies = self.energies(species, links, moved)
            (gradient,) = torch.autograd.grad(energies.sum(), moved)
        return energies.detach(), gradient
