"""The last linear maps of a potential: the features that they read, and forces with any other weights in their place.

``E_i = sigma_F w . f_i`` with the features f of all read-outs one after another. A distribution over w is a distribution over
potentials that share everything else, and costs no second evaluation of it.
"""

from __future__ import annotations

import numpy as np
import torch

from sapis.data.batch import Batch
from sapis.model.backend import backend_of
from sapis.model.edges import EdgeList, Slots
from sapis.model.potential import TransformerPotential, forces_and_virials
from sapis.model.program import Program


def last_weights(potential: TransformerPotential) -> torch.Tensor:
    """w, ``(features,)``."""
    return torch.cat([read.get_parameter(f"{len(read) - 1}.weight")[0].detach() for read in potential.transformer.readouts])  # type: ignore[arg-type]


class LastLayer:
    """One evaluation of a batch, without a graph for weights.

    Args:
        potential: on the device of ``batch``.
        batch: systems.

    Attributes:
        features: f_i, ``(atoms, features)``.
        weights: w, ``(features,)``.
    """

    def __init__(self, potential: TransformerPotential, batch: Batch) -> None:
        self.potential, self.batch = potential, batch
        self.weights, self.chosen = last_weights(potential), backend_of(batch)
        self.links = EdgeList.of(batch) if self.chosen == "edges" else Slots.of(batch)
        self.vectors = self.links.take(batch.vectors).detach()
        if self.chosen == "compiled":
            self.program = Program(potential.transformer, batch.species.numpy(), batch.conditions.numpy(), batch.senders.numpy(),
                                   batch.counts.numpy(), self.vectors.numpy())
            parts = [torch.from_numpy(self.program.tape.values[node]) for node, _ in self.program.read]
        else:
            self.moved = self.vectors.clone().requires_grad_()
            with torch.enable_grad():
                parts = self.parts = potential.transformer.last_features(batch.species, batch.conditions, self.links, self.moved)
        # What does not depend on the weights: the repulsion of nuclei.
        self.fixed = None if potential.repulsion is None else potential.repulsion.energies_and_gradient(
            batch.species, self.links, self.vectors)
        self.sizes = [part.shape[1] for part in parts]
        self.features = torch.cat([part.detach() for part in parts], dim=1)

    def energies(self, weights: torch.Tensor) -> torch.Tensor:
        """Per-atom energies with ``weights`` ``(features,)``, less reference energies, eV, ``(atoms,)``."""
        energies = self.potential.scale * self.features @ weights
        return energies if self.fixed is None else energies + self.fixed[0]

    def forces(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Forces with ``weights`` ``(features,)``, eV/Å, ``(atoms, 3)``, and virials, eV, ``(graphs, 3, 3)``."""
        gradient = self.potential.scale * self._gradient(weights)
        gradient = gradient if self.fixed is None else gradient + self.fixed[1]
        return forces_and_virials(self.batch, self.links, gradient, self.vectors)

    def force_changes(self, weights: torch.Tensor) -> torch.Tensor:
        """What ``weights`` ``(features,)`` would add to the forces if they were added to w, eV/Å, ``(atoms, 3)``."""
        return self.links.forces(self.potential.scale * self._gradient(weights))

    def gradient_of_features(self, cotangents: torch.Tensor) -> torch.Tensor:
        """Of the sum of ``cotangents`` times the features, ``(atoms, features)`` each, by the positions, ``(atoms, 3)``."""
        parts = cotangents.to(self.vectors.dtype).split(self.sizes, dim=1)
        if self.chosen != "compiled":
            with torch.enable_grad():
                total = sum((part * own).sum() for part, own in zip(self.parts, parts, strict=True))
                assert isinstance(total, torch.Tensor)
                (gradient,) = torch.autograd.grad(total, self.moved, retain_graph=True)
        else:
            tape = self.program.tape
            gradient = torch.from_numpy(np.sum([tape.backward(node, np.ascontiguousarray(own.numpy()), self.program.vectors)
                                                for (node, _), own in zip(self.program.read, parts, strict=True)], axis=0))
        return -self.links.forces(gradient)

    def _gradient(self, weights: torch.Tensor) -> torch.Tensor:
        parts = weights.split(self.sizes)
        if self.chosen != "compiled":
            with torch.enable_grad():
                total = sum((part @ own).sum() for part, own in zip(self.parts, parts, strict=True))
                assert isinstance(total, torch.Tensor)
                return torch.autograd.grad(total, self.moved, retain_graph=True)[0]
        values, kept = self.program.tape.values, {}
        for (_, number), own in zip(self.program.read, parts, strict=True):
            kept[number] = values[number]
            values[number] = own.numpy().astype(values[number].dtype).reshape(values[number].shape)
        try:
            return torch.from_numpy(self.program.gradient().copy())
        finally:
            for number, value in kept.items():
                values[number] = value
