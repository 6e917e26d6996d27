"""Uncertainty from one model: distributions over its last linear maps, and distances among the features that these read.

Nothing below the last maps is touched, so all of these are made after a training, from its frames, and the mean is (nearly) the
model itself.

- `Laplace`: normal, with the curvature of the likelihood at the trained weights (Bigi and others, MLST 5, 045018, 2024); a force
  is as uncertain as the energy of its atom, times a factor that calibration finds.
- `Shallow`: some heads, trained together on the likelihood of energies and forces (Kellner and Ceriotti, MLST 5, 035006, 2024).
- `Distance`: how far an atom's features are from those of its element in the training set (Mahalanobis), times a factor.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from sapis.core.errors import DataError
from sapis.core.seeds import derive_seed
from sapis.data.conditions import Conditions
from sapis.data.system import System
from sapis.model.last_layer import LastLayer, last_weights
from sapis.model.potential import Part, TransformerPotential
from sapis.potential.calibration import Calibration
from sapis.potential.posterior import Posterior
from sapis.potential.prediction import Prediction

N_FOR_CURVATURE = 200  # frames whose forces are differentiated by each weight
RIDGE = 1e-6  # of the mean curvature, added to all of it: weights that no frame determines
SHRINKAGE = 0.05  # of a covariance of features towards its mean variance
N_STEPS, HEAD_RATE = 400, 0.02  # of the training of heads; its rate in units of the posterior's deviations


class OneModel(nn.Module, ABC):
    """A potential that makes its uncertainty from one model.

    Args:
        potential: the trained model.
        calibrations: of ``energy`` and ``forces``.
    """

    name: ClassVar[str]

    def __init__(self, potential: TransformerPotential, calibrations: Mapping[str, Calibration] | None = None) -> None:
        super().__init__()
        self.potential, self.calibrations = potential, dict(calibrations or {})

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers, ascending."""
        return self.potential.elements

    @property
    def cutoff(self) -> float:
        """Å."""
        return self.potential.cutoff

    @property
    def precision(self) -> str:
        """``float32`` or ``float64``."""
        return self.potential.precision

    @property
    def conditions(self) -> Conditions:
        """Charges, multiplicities and levels of theory that it knows."""
        return self.potential.conditions

    @property
    def n_parameters(self) -> int:
        """Number of weights of the model."""
        return self.potential.n_parameters

    def predict(self, systems: Sequence[System]) -> list[Prediction]:
        """Means; raises what `TransformerPotential.predict` raises."""
        return [found.mean for found in self.posterior(systems)]

    def posterior(self, systems: Sequence[System]) -> list[Posterior]:
        """Means and calibrated deviations; raises what `TransformerPotential.predict` raises."""
        result = []
        for part in self.potential.batches(systems):
            found = self._posteriors(part, LastLayer(self.potential, part.batch))
            result += [each.calibrated(self.calibrations, system.numbers)
                       for system, each in zip(part.systems, found, strict=True)]
        return result

    @abstractmethod
    def _posteriors(self, part: Part, layer: LastLayer) -> list[Posterior]:
        """Of a batch, not calibrated."""

    def _mean(self, part: Part, layer: LastLayer, weights: torch.Tensor) -> list[Prediction]:
        """What the model says with ``weights`` as its last ones."""
        return self.potential.predictions(part, layer.energies(weights), *layer.forces(weights))

    def settings(self) -> dict[str, Any]:
        """Everything but weights and tables, as JSON values."""
        return {"potential": self.potential.settings(), "calibrations": {
            name: found.to_json() for name, found in self.calibrations.items()}, "shapes": {
            name: list(table.shape) for name, table in self.named_buffers() if "." not in name}}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> OneModel:
        """The inverse of `settings`; weights and tables are to be loaded."""
        tables = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in settings["shapes"].items()}
        return cls(TransformerPotential.from_settings(settings["potential"]), calibrations={
            name: Calibration.from_json(found) for name, found in settings["calibrations"].items()}, **tables)

    def with_precision(self, precision: str) -> OneModel:
        """A copy that computes in ``precision``; its tables are float64 always."""
        tables = {name: table for name, table in self.named_buffers() if "." not in name}
        return type(self)(self.potential.with_precision(precision), calibrations=self.calibrations, **tables)


class Laplace(OneModel):
    """Last weights are normal about the trained ones.

    Args:
        covariance: of them, ``(features, features)`` float64.
    """

    name = "laplace"

    def __init__(self, potential: TransformerPotential, covariance: torch.Tensor, *,
                 calibrations: Mapping[str, Calibration] | None = None) -> None:
        super().__init__(potential, calibrations)
        self.register_buffer("covariance", covariance)

    @classmethod
    def fitted(cls, potential: TransformerPotential, systems: Sequence[System]) -> Laplace:
        """With the curvature of the likelihood of energies and forces of ``systems``, from the training set.

        Raises:
            DataError: no labels.
        """
        return cls(potential, torch.linalg.inv(Rows.of(potential, systems).curvature()))

    def _posteriors(self, part: Part, layer: LastLayer) -> list[Posterior]:
        features = self.potential.scale * layer.features.double()
        covariance = self.get_buffer("covariance")
        own = torch.einsum("ap,pq,aq->a", features, covariance, features).numpy()
        found = []
        for prediction, rows in zip(self._mean(part, layer, layer.weights), _rows(part), strict=True):
            total = features[rows].sum(0)
            found.append(Posterior(prediction, float(total @ covariance @ total), own[rows, None, None] * np.eye(3)))
        return found


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
        torch_rng = torch.Generator().manual_seed(derive_seed(seed, "heads") % 2**63)
        drawn = torch.randn(members, len(root), generator=torch_rng, dtype=torch.float64)
        drawn = drawn.requires_grad_()
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
        """Of the atoms of ``systems``, from the training set."""
        features, species = [], []
        for part in potential.batches(systems):
            features.append(LastLayer(potential, part.batch).features.double())
            species.append(part.batch.species)
        everything, kinds = torch.cat(features), torch.cat(species)
        means, precisions = [], []
        for kind in range(len(potential.elements)):
            own = everything[kinds == kind] if (kinds == kind).any() else everything
            moved = own - own.mean(0)
            covariance = moved.T @ moved / max(len(own) - 1, 1)
            mean_variance = covariance.diagonal().mean().clamp_min(1e-30)
            unit = torch.eye(len(covariance), dtype=torch.float64)
            covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * mean_variance * unit
            means.append(own.mean(0))
            precisions.append(torch.linalg.inv(covariance))
        return cls(potential, torch.stack(means), torch.stack(precisions))

    def _posteriors(self, part: Part, layer: LastLayer) -> list[Posterior]:
        features, species = layer.features.double(), part.batch.species
        squares = np.empty(len(species))
        for kind in species.unique().tolist():
            own = species == kind
            moved = features[own] - self.get_buffer("means")[kind]
            squares[own.numpy()] = ((moved @ self.get_buffer("precisions")[kind]) * moved).mean(1).numpy()
        return [Posterior(prediction, float(squares[rows].sum()), squares[rows, None, None] * np.eye(3))
                for prediction, rows in zip(self._mean(part, layer, layer.weights), _rows(part), strict=True)]


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
        labelled = [system for system in systems if system.energy is not None and system.forces is not None]
        if not labelled:
            raise DataError(expected="training frames with energies and forces", received=f"{len(systems)} without",
                            where="uncertainty", todo="give labelled frames")
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
            for system, found, rows in zip(part.systems, predicted, _rows(part), strict=True):
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


def _rows(part: Part) -> list[slice]:
    """The atoms of each system of a batch."""
    ends = np.cumsum([len(system) for system in part.systems])
    return [slice(int(end) - len(system), int(end)) for system, end in zip(part.systems, ends, strict=True)]
