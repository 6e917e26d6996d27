"""The loss: squared errors of energy, forces and virial in units of the data's force scale."""

from __future__ import annotations

import torch

from sapis.data.batch import Batch
from sapis.training.config import TrainingConfig


def loss(batch: Batch, energies: torch.Tensor, forces: torch.Tensor, virials: torch.Tensor, config: TrainingConfig, scale: float) -> torch.Tensor:
    """``w_F <dF^2> + w_E <dE^2 / n> + w_S <dW^2 / n>``, each over the labels that exist, divided by ``scale^2``.

    Args:
        energies: per-atom energies, eV, ``(atoms,)``.
        forces: eV/Å, ``(atoms, 3)``.
        virials: dE/dstrain, eV, ``(graphs, 3, 3)``.
        scale: root mean square force component, eV/Å.
    """
    totals = graph_sums(energies, batch)
    n_atoms = batch.n_atoms.to(forces.dtype)
    energy_errors = (totals - batch.energies).to(forces.dtype).square() / n_atoms
    virial_errors = (virials - batch.stresses * batch.volumes[:, None, None]).square() / n_atoms[:, None, None]
    terms = (
        (config.force_weight, (forces - batch.forces).square()), (config.energy_weight, energy_errors),
        (config.stress_weight, virial_errors),
    )
    total = forces.new_zeros(())
    for weight, errors in terms:
        known = torch.isfinite(errors)
        if weight and bool(known.any()):
            total = total + weight * torch.where(known, errors, 0.0).sum() / known.sum()
    return total / scale**2


def graph_sums(per_atom: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Sums over the atoms of each system, in float64: ``(atoms,)`` -> ``(graphs,)``."""
    return torch.zeros(batch.n_graphs, dtype=torch.float64, device=per_atom.device).index_add(0, batch.graph, per_atom.double())
