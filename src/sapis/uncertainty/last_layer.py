"""Distributions over the last linear maps of a model.

- `Laplace`: normal, with the curvature of the likelihood at the trained weights (LLPR: Bigi and others, MLST 5, 045018, 2024).
  The energy's variance is in closed form, that of forces is propagated by weights drawn from it.
- `Shallow`: some heads, trained together on the likelihood of energies and forces (Kellner and Ceriotti, MLST 5, 035006, 2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from sapis.core.seeds import derive_seed
from sapis.data.system import System
from sapis.model.last_layer import LastLayer, last_weights
from sapis.model.potential import Part, TransformerPotential
from sapis.potential.calibration import Calibration
from sapis.potential.posterior import Posterior
from sapis.uncertainty.one_model import OneModel, atoms_of, sums_over_atoms, with_labels

N_FOR_CURVATURE = 200  # frames whose forces are differentiated by each weight
RIDGE = 1e-6  # of the mean curvature, added to all of it: weights that no frame determines
N_DRAWS = 16  # of the last weights, for the variance of forces
N_STEPS, HEAD_RATE = 400, 0.02  # of the training of heads; its rate in units of the posterior's deviations


class Laplace(OneModel):
    """Last weights are normal about the trained ones.

    Args:
        covariance: of them, ``(features, features)`` float64.
        draws: weights drawn from it, less the trained ones, ``(draws, features)`` float64.
    """

    name = "laplace"

    def __init__(self, potential: TransformerPotential, covariance: torch.Tensor, draws: torch.Tensor, *,
                 calibrations: Mapping[str, Calibration] | None = None) -> None:
        super().__init__(potential, calibrations)
        self.register_buffer("covariance", covariance)
        self.register_buffer("draws", draws)

    @classmethod
    def fitted(cls, potential: TransformerPotential, systems: Sequence[System], *, seed: int = 0) -> Laplace:
        """With the curvature of the likelihood of energies and forces of ``systems``, from the training set.

        Raises:
            DataError: no labels.
        """
        covariance = torch.linalg.inv(Rows.of(potential, systems).curvature())
        return cls(potential, covariance, _standard_normal(N_DRAWS, len(covariance), seed) @ torch.linalg.cholesky(covariance).T)

    def _posteriors(self, part: Part, layer: LastLayer) -> list[Posterior]:
        draws = self.get_buffer("draws").to(layer.weights.dtype)
        moved = torch.stack([layer.force_changes(draw) for draw in draws]).double()
        covariances = (torch.einsum("mai,maj->aij", moved, moved) / len(draws)).cpu().numpy()
        totals = self._energy_variances(part, layer.features.double())
        return [Posterior(prediction, float(total), covariances[rows]) for prediction, rows, total in zip(
            self._mean(part, layer, layer.weights), atoms_of(part), totals, strict=True)]

    def _energy_variances(self, part: Part, features: torch.Tensor) -> torch.Tensor:
        totals = sums_over_atoms(part, self.potential.scale * features)
        return torch.einsum("sp,pq,sq->s", totals, self.get_buffer("covariance"), totals)


class Shallow(OneModel):
    """Several heads on one trunk.

    Args:
        heads: last weights of each, ``(members, features)`` float64.
    """

    name = "shallow"

    def __init__(self, potential: TransformerPotential, heads: torch.Tensor, *,
                 calibrations: Mapping[str, Calibration] | None = None) -> None:
        super().__init__(potential, calibrations)
        self.register_buffer("heads", heads)

    @classmethod
    def fitted(cls, potential: TransformerPotential, systems: Sequence[System], *, members: int = 16, seed: int = 0) -> Shallow:
        """Drawn from the posterior of `Laplace`, then trained to the greatest likelihood of energies and forces of ``systems``.

        Raises:
            DataError: no labels.
        """
        rows = Rows.of(potential, systems)
        root = torch.linalg.cholesky(torch.linalg.inv(rows.curvature()))
        drawn = _standard_normal(members, len(root), seed).requires_grad_()
        own = last_weights(potential).double()
        optimizer = torch.optim.Adam([drawn], lr=HEAD_RATE)
        for _ in range(N_STEPS):
            optimizer.zero_grad()
            rows.nll(own + drawn @ root.T).backward()
            optimizer.step()
        return cls(potential, (own + drawn @ root.T).detach())

    def _posteriors(self, part: Part, layer: LastLayer) -> list[Posterior]:
        members = [self._mean(part, layer, head.to(layer.weights.dtype)) for head in self.get_buffer("heads")]
        return [Posterior.of_members(found) for found in zip(*members, strict=True)]

    def _energy_variances(self, part: Part, features: torch.Tensor) -> torch.Tensor:
        return (sums_over_atoms(part, self.potential.scale * features) @ self.get_buffer("heads").T).var(1)


def _standard_normal(n: int, n_features: int, seed: int) -> torch.Tensor:
    torch_rng = torch.Generator().manual_seed(derive_seed(seed, "heads") % 2**63)
    return torch.randn(n, n_features, generator=torch_rng, dtype=torch.float64)


class Rows:
    """Labels as a linear problem in the last weights: energies and force components are ``rows @ w``.

    Attributes:
        energy, force: rows, ``(frames, features)`` and ``(components, features)`` float64, eV and eV/Å.
        energies, forces: labels less all that does not depend on w, ``(frames,)`` and ``(components,)``.
        own: the trained w.
    """

    def __init__(self, energy: torch.Tensor, force: torch.Tensor, energies: torch.Tensor, forces: torch.Tensor, own: torch.Tensor,
                 ) -> None:
        self.energy, self.force, self.energies, self.forces, self.own = energy, force, energies, forces, own

    @classmethod
    def of(cls, potential: TransformerPotential, systems: Sequence[System]) -> Rows:
        """Of labelled systems; at most `N_FOR_CURVATURE` of them, evenly chosen.

        Raises:
            DataError: none with energy and forces.
        """
        labelled = with_labels(systems)
        chosen = labelled[:: math.ceil(len(labelled) / N_FOR_CURVATURE)]
        energy, force, energies, forces = [], [], [], []
        own = last_weights(potential).double()
        units = torch.eye(len(own), dtype=potential.dtype)
        for part in potential.batches(chosen):
            layer = LastLayer(potential, part.batch)
            features = potential.scale * layer.features.double()
            fixed = layer.forces(torch.zeros_like(units[0]))[0]
            by_weight = torch.stack([(layer.forces(unit)[0] - fixed).double() for unit in units], dim=-1)  # (atoms, 3, features)
            predicted = potential.predictions(part, *(value.detach() for value in potential(part.batch)))
            for system, found, rows in zip(part.systems, predicted, atoms_of(part), strict=True):
                assert system.energy is not None and system.forces is not None
                energy.append(features[rows].sum(0))
                force.append(by_weight[rows].flatten(0, 1))
                # What is left of a label, plus what the trained weights make of it.
                energies.append(torch.tensor(system.energy - found.energy) + energy[-1] @ own)
                forces.append(torch.from_numpy(system.forces - found.forces).flatten() + force[-1] @ own)
        return cls(torch.stack(energy), torch.cat(force), torch.stack(energies), torch.cat(forces), own)

    def noises(self) -> tuple[float, float]:
        """Root mean square errors of the trained weights: energies and force components."""
        errors = self.energies - self.energy @ self.own, self.forces - self.force @ self.own
        return tuple(float(each.square().mean().sqrt().clamp_min(1e-9)) for each in errors)  # type: ignore[return-value]

    def curvature(self) -> torch.Tensor:
        """Of the negative logarithm of the likelihood, ``(features, features)``."""
        energy, force = self.noises()
        found = self.energy.T @ self.energy / energy**2 + self.force.T @ self.force / force**2
        return found + RIDGE * found.diagonal().mean() * torch.eye(len(found), dtype=torch.float64)

    def nll(self, heads: torch.Tensor) -> torch.Tensor:
        """Mean negative logarithm of the likelihood of both kinds of label by the spread of ``heads`` ``(members, features)``."""
        total = torch.zeros((), dtype=torch.float64)
        for rows, labels, noise in ((self.energy, self.energies, self.noises()[0]), (self.force, self.forces, self.noises()[1])):
            predicted = rows @ heads.T
            variance = predicted.var(1) + (0.1 * noise) ** 2
            total = total + (0.5 * variance.log() + (labels - predicted.mean(1)).square() / (2 * variance)).mean()
        return total
