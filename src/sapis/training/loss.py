"""The loss: squared errors of energy, forces and virial in units of the data's force scale."""

from __future__ import annotations

import torch

from sapis.data.batch import Batch
from sapis.training.config import TrainingConfig


def loss(
    batch: Batch, energies: torch.Tensor, forces: torch.Tensor, virials: torch.Tensor, config: TrainingConfig, scale: float,
) -> torch.Tensor:
    """``w_F <dF^2> + w_E <dE^2 / n> + w_S <dW^2 / n>``, each over the labels that exist, divided by ``scale^2``.

    Args:
        energies: per-atom energies, eV, ``(atoms,)``.
        forces: eV/Å, ``(atoms, 3)``.
        virials: dE/dstrain, eV, ``(graphs, 3, 3)``.
        scale: root mean square force component, eV/Å.
    """
    n_atoms = batch.n_atoms.to(forces.dtype)
    virials_known = batch.stresses * batch.volumes[:, None, None]
    energy_errors = _errors(graph_sums(energies, batch), batch.energies).to(forces.dtype)
    terms = (
        (config.force_weight, batch.forces, _errors(forces, batch.forces).square()),
        (config.energy_weight, batch.energies, energy_errors.square() / n_atoms),
        (config.stress_weight, virials_known, _errors(virials, virials_known).square() / n_atoms[:, None, None]),
    )
    total = 0.0 * energies.sum()  # a gradient of zero where no weighted label exists
    for weight, labels, squares in terms:
        if weight:
            total = total + weight * squares.sum() / (~torch.isnan(labels)).sum().clamp(min=1)
    return total / scale**2


def _errors(predicted: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Zero where there is no label. Masked before any power is taken: the gradient of a masked square is 0 times NaN."""
    return torch.where(torch.isnan(labels), 0.0, predicted - labels)


def graph_sums(per_atom: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Sums over the atoms of each system, in float64: ``(atoms,)`` -> ``(graphs,)``."""
    return torch.zeros(batch.n_graphs, dtype=torch.float64, device=per_atom.device).index_add(0, batch.graph, per_atom.double())
