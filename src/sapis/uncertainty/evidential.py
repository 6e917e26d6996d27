"""`Evidential`: networks that say how large errors will be, and how much evidence there is for that.

Each error, of a force component or of an energy, has a normal distribution whose variance and mean are themselves distributed
(normal-inverse-gamma, with parameters nu, alpha and beta; Amini and others, NeurIPS 2020). Here the mean is the model's, which
stays as it was trained, and the networks read what its last linear maps read.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import softplus

from sapis.core.seeds import derive_seed
from sapis.data.system import System
from sapis.model.last_layer import LastLayer
from sapis.model.potential import Part, TransformerPotential
from sapis.potential.calibration import Calibration
from sapis.potential.posterior import Posterior
from sapis.uncertainty.one_model import OneModel, atoms_of, with_labels

N_HIDDEN, N_STEPS, RATE = 32, 400, 0.01
REGULARIZER = 0.01  # of evidence for what turns out wrong, the paper's lambda


class Evidential(OneModel):
    """One network for forces and one for energies.

    Args:
        scales: what features are divided by, ``(features,)`` float64.
        units: typical errors of forces and of energies, eV/Å and eV, ``(2,)`` float64.
        networks: trained ones; default: fresh ones by ``seed``.
    """

    name = "evidential"

    def __init__(self, potential: TransformerPotential, scales: torch.Tensor, units: torch.Tensor, *,
                 networks: nn.ModuleDict | None = None, calibrations: Mapping[str, Calibration] | None = None,
                 seed: int = 0) -> None:
        super().__init__(potential, calibrations)
        self.register_buffer("scales", scales)
        self.register_buffer("units", units)
        self.networks = networks or _fresh(len(scales), seed)

    @classmethod
    def fitted(cls, potential: TransformerPotential, systems: Sequence[System], *, seed: int = 0) -> Evidential:
        """Trained on the errors of ``potential`` on ``systems``.

        Raises:
            DataError: none with energy and forces.
        """
        known = _Errors.of(potential, systems)
        found = cls(potential, known.features.square().mean(0).sqrt().clamp_min(1e-9),
                    torch.stack([each.square().mean().sqrt().clamp_min(1e-9) for each in (known.forces, known.energies)]),
                    seed=seed)
        optimizer = torch.optim.Adam(found.networks.parameters(), lr=RATE)
        forces, energies = known.forces / found.get_buffer("units")[0], known.energies / found.get_buffer("units")[1]
        for _ in range(N_STEPS):
            optimizer.zero_grad()
            force, energy = found._evidence(known.features, "forces"), found._evidence(known.features, "energy")
            value = evidential_loss(forces, force.unsqueeze(-1)) + evidential_loss(energies, _together(energy, known.systems))
            value.backward()
            optimizer.step()
        found.networks.requires_grad_(False)
        return found

    def _evidence(self, features: torch.Tensor, target: str) -> torch.Tensor:
        """nu, alpha and beta of each atom, in units of typical errors, ``(3, atoms)``."""
        nu, alpha, beta = softplus(self.networks[target](features / self.get_buffer("scales"))).T
        return torch.stack([nu + 1e-3, alpha + 1.01, beta + 1e-6])

    def _posteriors(self, part: Part, layer: LastLayer) -> list[Posterior]:
        features = layer.features.double()
        with torch.no_grad():
            forces = self.get_buffer("units")[0] ** 2 * variance(self._evidence(features, "forces"))
            energies = self._energy_variances(part, features)
        return [Posterior(prediction, float(energies[n]), forces[rows, None, None].cpu().numpy() * np.eye(3))
                for n, (prediction, rows) in enumerate(zip(self._mean(part, layer, layer.weights), atoms_of(part), strict=True))]

    def _energy_variances(self, part: Part, features: torch.Tensor) -> torch.Tensor:
        return self.get_buffer("units")[1] ** 2 * variance(_together(self._evidence(features, "energy"), part.batch.graph))

    def with_precision(self, precision: str) -> Evidential:
        """A copy that computes in ``precision``; its networks are float64 always."""
        return Evidential(self.potential.with_precision(precision), self.get_buffer("scales"), self.get_buffer("units"),
                          networks=copy.deepcopy(self.networks), calibrations=self.calibrations)


def _fresh(n_features: int, seed: int) -> nn.ModuleDict:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "evidence"))
        return nn.ModuleDict({target: nn.Sequential(
            nn.Linear(n_features, N_HIDDEN, dtype=torch.float64), nn.SiLU(), nn.Linear(N_HIDDEN, 3, dtype=torch.float64),
        ) for target in ("forces", "energy")})


def variance(evidence: torch.Tensor) -> torch.Tensor:
    """Of an error with ``evidence`` nu, alpha, beta ``(3, ...)``, that is ``beta (1 + nu) / (nu (alpha - 1))``."""
    nu, alpha, beta = evidence
    return beta * (1 + nu) / (nu * (alpha - 1))


def evidential_loss(errors: torch.Tensor, evidence: torch.Tensor) -> torch.Tensor:
    """Mean of equations 8 and 9 of Amini and others; ``errors`` ``(...)``, ``evidence`` ``(3, ...)``."""
    nu, alpha, beta = evidence
    omega = 2 * beta * (1 + nu)
    nll = (0.5 * torch.log(torch.pi / nu) - alpha * omega.log() + (alpha + 0.5) * torch.log(errors.square() * nu + omega)
           + torch.lgamma(alpha) - torch.lgamma(alpha + 0.5))
    return (nll + REGULARIZER * errors.abs() * (2 * nu + alpha)).mean()


def _together(evidence: torch.Tensor, systems: torch.Tensor) -> torch.Tensor:
    """Of the energies of systems, from that of their atoms: variances add up, evidence is that of the mean atom."""
    n = int(systems.max()) + 1
    sums = evidence.new_zeros(3, n).index_add(1, systems, evidence)
    counts = torch.bincount(systems, minlength=n)
    return torch.stack([sums[0] / counts, sums[1] / counts, sums[2]])


@dataclass(frozen=True, eq=False)
class _Errors:
    """Features ``(atoms, features)``; errors of forces ``(atoms, 3)`` and energies ``(systems,)``; the system of each atom."""

    features: torch.Tensor
    forces: torch.Tensor
    energies: torch.Tensor
    systems: torch.Tensor

    @classmethod
    def of(cls, potential: TransformerPotential, systems: Sequence[System]) -> _Errors:
        labelled = with_labels(systems)
        predicted = potential.predict(labelled)
        pairs: list[Any] = list(zip(labelled, predicted, strict=True))
        return cls(
            torch.cat([LastLayer(potential, part.batch).features.double() for part in potential.batches(labelled)]),
            torch.from_numpy(np.concatenate([system.forces - found.forces for system, found in pairs])),
            torch.tensor([system.energy - found.energy for system, found in pairs], dtype=torch.float64),
            torch.repeat_interleave(torch.tensor([len(system) for system in labelled])))
