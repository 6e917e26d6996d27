"""`TransformerPotential`: the Transformer with units, reference energies, forces and stress."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from sapis.core.errors import ModelError
from sapis.data.batch import Batch, Sample, collate, prepare
from sapis.data.conditions import Conditions
from sapis.data.system import System, chemical_symbols
from sapis.model.backend import backend_of
from sapis.model.config import ModelConfig
from sapis.model.edges import EdgeList, Slots
from sapis.model.program import energies_and_gradient
from sapis.model.repulsion import Repulsion
from sapis.model.transformer import Transformer
from sapis.potential.prediction import Prediction

FORMER_EPSILON = 1e-6  # of the norms of models that do not say theirs: the first ones had this
DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Part(NamedTuple):
    """Some of many systems, as a batch."""

    systems: Sequence[System]
    samples: Sequence[Sample]
    batch: Batch


def forces_and_virials(batch: Batch, links: Slots | EdgeList, gradient: torch.Tensor, vectors: torch.Tensor,
                       ) -> tuple[torch.Tensor, torch.Tensor]:
    """``(atoms, 3)`` and ``(graphs, 3, 3)``, from the energy's ``gradient`` by the edge ``vectors`` of ``links``."""
    per_atom = links.collect(gradient, vectors)
    virials = per_atom.new_zeros(batch.n_graphs, 3, 3).index_add(0, batch.graph, per_atom)
    return links.forces(gradient), (virials + virials.transpose(1, 2)) / 2


class TransformerPotential(nn.Module):
    """Energies, forces and stress of systems: ``E = sum_i E0(Z_i) + sigma_F * e_i``, and the repulsion of nuclei if asked for.

    Args:
        config: architecture.
        elements: atomic numbers, ascending.
        reference_energies: E0 in eV, one for each element; for several levels of theory a row of each, NaN or None where a
            level has none for an element.
        scale: sigma_F, root mean square force component of the training data, used as eV.
        average_neighbors: mean number of neighbours in the training data.
        precision: ``float32`` or ``float64``; the sum over atoms is always float64.
        conditions: the total charges, multiplicities and levels of theory that it knows.
        seed: of the initial weights.

    Raises:
        ModelError: elements that are not in ascending order; reference energies of another number.
    """

    def __init__(self, config: ModelConfig, *, elements: Sequence[int], scale: float, average_neighbors: float,
                 reference_energies: Sequence[float] | Sequence[Sequence[float | None]], precision: str = "float32",
                 conditions: Conditions | None = None, seed: int = 0) -> None:
        super().__init__()
        if list(elements) != sorted(set(elements)):
            raise ModelError(expected="elements in ascending order, each once", received=str(list(elements)), where="elements",
                             todo="sort them, with reference_energies in the same order")
        self.config, self.elements, self.precision = config, tuple(elements), precision
        self.conditions = conditions or Conditions()
        self.reference_energies = np.array(reference_energies, dtype=np.float64, ndmin=2)
        shape = max(1, len(self.conditions.levels)), len(self.elements)
        if self.reference_energies.shape != shape:
            raise ModelError(expected=f"reference energies of shape {shape}, levels of theory by elements",
                             received=f"shape {self.reference_energies.shape}", where="reference_energies",
                             todo="give one for each element, of each level of theory")
        self.scale, self.average_neighbors = float(scale), float(average_neighbors)
        self.repulsion = Repulsion(elements, config.cutoff) if config.zbl else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.transformer = Transformer(
                config, n_species=len(elements), average_neighbors=max(1.0, average_neighbors), dtype=DTYPES[precision],
                n_conditions=self.conditions.sizes)

    @property
    def cutoff(self) -> float:
        """Å."""
        return self.config.cutoff

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and arithmetic."""
        return DTYPES[self.precision]

    @property
    def n_parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    def settings(self) -> dict[str, Any]:
        """Everything but the weights, as JSON values; the arguments that build this again."""
        return {
            "config": self.config.model_dump(), "elements": list(self.elements), "conditions": self.conditions.to_json(),
            "reference_energies": [[None if math.isnan(energy) else energy for energy in row]
                                   for row in self.reference_energies.tolist()],
            "scale": self.scale,
            "average_neighbors": self.average_neighbors, "precision": self.precision,
        }

    @classmethod
    def from_settings(cls, settings: dict[str, Any], *, seed: int = 0) -> TransformerPotential:
        """The inverse of `settings`; the weights are random until loaded."""
        config = ModelConfig(**{"norm_epsilon": FORMER_EPSILON, **settings["config"]})
        known = {"config": config, "conditions": Conditions.from_json(settings.get("conditions", {}))}
        return cls(**{**settings, **known}, seed=seed)

    def with_precision(self, precision: str) -> TransformerPotential:
        """A copy that computes in ``precision``, its constant tables rounded afresh."""
        other = self.from_settings({**self.settings(), "precision": precision})
        other.load_state_dict(self.state_dict())
        weight = next(self.parameters())
        return other.to(weight.device).train(self.training).requires_grad_(weight.requires_grad)

    def atom_energies(self, batch: Batch, vectors: torch.Tensor) -> torch.Tensor:
        """Per-atom energies less reference, eV, ``(atoms,)``, with ``vectors`` in place of the batch's own."""
        links = Slots.of(batch)
        energies = self.scale * self.transformer(batch.species, batch.conditions, links, vectors)
        return energies if self.repulsion is None else energies + self.repulsion.energies(batch.species, links, vectors)

    def forward(self, batch: Batch, *, create_graph: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Per-atom energies less reference ``(atoms,)`` eV, forces ``(atoms, 3)`` eV/Å, virials ``(graphs, 3, 3)`` eV.

        The energy depends on positions and strain only through the edge vectors d_ij, so with g_ij = dE/dd_ij
        F_i = sum_j (g_ij - g_ji) and dE/dstrain = sum_ij g_ij ⊗ d_ij, both exact.

        Args:
            create_graph: keep what a loss on forces needs.
        """
        chosen = backend_of(batch)
        links = EdgeList.of(batch) if chosen == "edges" else Slots.of(batch)
        vectors = links.take(batch.vectors)
        if chosen == "compiled":
            with torch.set_grad_enabled(create_graph):
                energies, gradient = energies_and_gradient(
                    self.transformer, batch.species, batch.conditions, batch.senders, batch.counts, vectors)
                energies, gradient = self.scale * energies, self.scale * gradient
        else:
            moved = vectors.detach().requires_grad_()
            with torch.enable_grad():
                energies = self.scale * self.transformer(batch.species, batch.conditions, links, moved)
                (gradient,) = torch.autograd.grad(energies.sum(), moved, create_graph=create_graph)
        if self.repulsion is not None:
            more = self.repulsion.energies_and_gradient(batch.species, links, vectors)
            energies, gradient = energies + more[0], gradient + more[1]
        return energies, *forces_and_virials(batch, links, gradient, vectors)

    def sample(self, system: System) -> Sample:
        """``system`` ready for a batch, its energy less the reference energies of its atoms.

        Raises:
            ModelError: an element, charge, multiplicity or level of theory that the model does not know.
            DataError: coinciding atoms.
        """
        sample = self._prepare(system)
        return replace(sample, energy=sample.energy - float(self._references(system, sample).sum()))

    def _prepare(self, system: System) -> Sample:
        return prepare(system, elements=self.elements, cutoff=self.cutoff, conditions=self.conditions)

    def _references(self, system: System, sample: Sample) -> np.ndarray:
        found: np.ndarray = self.reference_energies[sample.conditions[2], sample.species]
        if np.isnan(found).any():
            level = (*self.conditions.levels, "not given")[sample.conditions[2]]
            missing = sorted({chemical_symbols[z] for z, energy in zip(system.numbers, found, strict=True) if np.isnan(energy)})
            raise ModelError(
                expected=f"elements that the model knows at the level {level}", received=", ".join(missing),
                where=system.where, todo="use another level, or train on data of it with them")
        return found

    def predict(self, systems: Sequence[System], *, max_slots: int = 60_000) -> list[Prediction]:
        """Predictions in order; systems are batched up to ``max_slots`` neighbour slots.

        Raises:
            ModelError: an element, charge, multiplicity or level of theory that the model does not know.
            DataError: coinciding atoms.
        """
        return [prediction for part in self.batches(systems, max_slots=max_slots)
                for prediction in self.predictions(part, *(value.detach() for value in self(part.batch)))]

    def batches(self, systems: Sequence[System], *, max_slots: int = 60_000) -> Iterator[Part]:
        """``systems`` in batches of up to ``max_slots`` neighbour slots, in order, on the device of the weights.

        Raises:
            ModelError: an element, charge, multiplicity or level of theory that the model does not know.
            DataError: coinciding atoms.
        """
        waiting, atoms, slots = list[tuple[System, Sample]](), 0, 0
        for system in systems:  # as they are needed: they may be a store
            sample = self._prepare(system)
            atoms, slots = atoms + len(sample.species), max(slots, sample.neighbors.n_slots)
            if waiting and atoms * slots > max_slots:
                yield self._together(waiting)
                waiting, atoms, slots = [], len(sample.species), sample.neighbors.n_slots
            waiting.append((system, sample))
        if waiting:
            yield self._together(waiting)

    def _together(self, waiting: Sequence[tuple[System, Sample]]) -> Part:
        systems, samples = zip(*waiting, strict=True)
        batch = collate(samples, cutoff=self.cutoff, dtype=self.dtype)
        return Part(systems, samples, batch.to(next(self.parameters()).device))

    def predictions(self, part: Part, energies: torch.Tensor, forces: torch.Tensor, virials: torch.Tensor) -> list[Prediction]:
        """What `forward` says of a batch, system by system, with reference energies."""
        found, start = [], 0
        numbers = [value.double().cpu().numpy() for value in (energies, forces, virials)]
        for system, sample, virial in zip(part.systems, part.samples, numbers[2], strict=True):
            rows = slice(start, start + len(system))
            per_atom = numbers[0][rows] + self._references(system, sample)
            stress = None if system.volume is None else virial / system.volume
            found.append(Prediction(energy=float(per_atom.sum()), energies=per_atom, forces=numbers[1][rows], stress=stress))
            start = rows.stop
        return found
