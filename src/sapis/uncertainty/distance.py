"""`Distance`: an atom whose features are unlike those of the training set is uncertain (Mahalanobis distance).

That is about its energy. The force on an atom is what the energies of its neighbours and its own change by, and so is as
uncertain as these are in the mean, with weights that fall with the distance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from sapis.data.system import System
from sapis.model.last_layer import LastLayer
from sapis.model.potential import Part, TransformerPotential
from sapis.potential.calibration import Calibration
from sapis.potential.posterior import Posterior
from sapis.uncertainty.one_model import OneModel, atoms_of, evenly, sums_over_atoms

SHRINKAGE = 0.01  # of a covariance of features towards its mean variance
N_BORROWED = 20  # atoms of any element that count beside those of an element: a rare one has no covariance of its own
REACH = 1.75  # Å: width of the weights of neighbours, a Gaussian


class Distance(OneModel):
    """How far the features of an atom are from those of its element in the training set.

    Args:
        means: of each element, ``(elements, features)`` float64.
        precisions: inverse covariances, ``(elements, features, features)`` float64.
    """

    name = "distance"

    def __init__(self, potential: TransformerPotential, means: torch.Tensor, precisions: torch.Tensor, *,
                 calibrations: Mapping[str, Calibration] | None = None) -> None:
        super().__init__(potential, calibrations)
        self.register_buffer("means", means)
        self.register_buffer("precisions", precisions)

    @classmethod
    def fitted(cls, potential: TransformerPotential, systems: Sequence[System]) -> Distance:
        """Of the atoms of ``systems``, from the training set; of many frames, of some thousands."""
        features, species = [], []
        for part in potential.batches(evenly(systems)):
            features.append(LastLayer(potential, part.batch).features.double())
            species.append(part.batch.species)
        everything, kinds = torch.cat(features), torch.cat(species)
        means, precisions = [], []
        parts = [everything[kinds == kind] for kind in range(len(potential.elements))]
        within = [own - own.mean(0) for own in parts if len(own)]
        common = sum((moved.T @ moved for moved in within), torch.zeros(1)) / max(len(everything) - len(within), 1)
        for known in parts:
            own = known if len(known) else everything
            moved = own - own.mean(0)
            covariance = (moved.T @ moved + N_BORROWED * common) / (len(own) - 1 + N_BORROWED)
            mean_variance = covariance.diagonal().mean().clamp_min(1e-30)
            unit = torch.eye(len(covariance), dtype=torch.float64)
            covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * mean_variance * unit
            means.append(own.mean(0))
            precisions.append(torch.linalg.inv(covariance))
        return cls(potential, torch.stack(means), torch.stack(precisions))

    def _posteriors(self, part: Part, layer: LastLayer) -> list[Posterior]:
        squares = self._squares(part, layer.features.double())
        own, near = squares.cpu().numpy(), self._of_neighborhoods(part, squares).cpu().numpy()
        return [Posterior(prediction, float(own[rows].sum()), near[rows, None, None] * np.eye(3))
                for prediction, rows in zip(self._mean(part, layer, layer.weights), atoms_of(part), strict=True)]

    def _of_neighborhoods(self, part: Part, squares: torch.Tensor) -> torch.Tensor:
        """Weighted means over atoms and their neighbours, ``(atoms,)``; smooth where a neighbour comes or goes."""
        lengths = part.batch.vectors.double().norm(dim=2)
        weights = (-(lengths / REACH).square()).exp() * (1 - (lengths / self.cutoff).square()).clamp_min(0).square()
        return (squares + (weights * squares[part.batch.senders]).sum(1)) / (1 + weights.sum(1))

    def _energy_variances(self, part: Part, features: torch.Tensor) -> torch.Tensor:
        return sums_over_atoms(part, self._squares(part, features))

    def _squares(self, part: Part, features: torch.Tensor) -> torch.Tensor:
        """Of the distance of each atom, ``(atoms,)``."""
        species = part.batch.species
        squares = features.new_zeros(len(species))
        for kind in species.unique().tolist():
            own = torch.nonzero(species == kind)[:, 0]
            moved = features[own] - self.get_buffer("means")[kind]
            squares = squares.index_copy(0, own, ((moved @ self.get_buffer("precisions")[kind]) * moved).mean(1))
        return squares
