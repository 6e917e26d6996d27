"""`Batch`: several systems as tensors, atoms concatenated, neighbours padded to a common number of slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from sapis.core.errors import ModelError
from sapis.data.conditions import Conditions
from sapis.data.neighbors import PADDING_DISTANCE, Neighbors, neighbors
from sapis.data.system import System, chemical_symbols


@dataclass(frozen=True, eq=False)
class Batch:
    """Systems ready for a model. Float tensors have the model's dtype unless said otherwise.

    Attributes:
        species: index into the model's elements, ``(atoms,)`` int64.
        conditions: indices of the system's total charge, multiplicity and level of theory, ``(atoms, 3)`` int64.
        graph: which system each atom belongs to, ``(atoms,)`` int64.
        senders: ``(atoms, slots)`` int64.
        vectors: receiver to sender, Å, ``(atoms, slots, 3)``.
        reverse: flat index of the reverse edge, ``(atoms, slots)`` int64.
        counts: used slots of each atom, which come first, ``(atoms,)`` int64.
        n_atoms: atoms of each system, ``(graphs,)``.
        volumes: Å^3, ``(graphs,)``; NaN where not periodic in three directions.
        energies: eV, those of a model's samples less reference energies, float64, ``(graphs,)``; NaN where absent.
        forces: eV/Å, ``(atoms, 3)``; NaN where absent.
        stresses: eV/Å^3, ``(graphs, 3, 3)``; NaN where absent.
    """

    species: torch.Tensor
    conditions: torch.Tensor
    graph: torch.Tensor
    senders: torch.Tensor
    vectors: torch.Tensor
    reverse: torch.Tensor
    counts: torch.Tensor
    n_atoms: torch.Tensor
    volumes: torch.Tensor
    energies: torch.Tensor
    forces: torch.Tensor
    stresses: torch.Tensor

    @property
    def n_graphs(self) -> int:
        """Number of systems."""
        return len(self.n_atoms)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``."""
        return replace(self, **{item.name: getattr(self, item.name).to(device) for item in fields(self)})


@dataclass(frozen=True, eq=False)
class Sample:
    """One system prepared for batching: its neighbours are computed once and kept."""

    species: np.ndarray
    conditions: np.ndarray
    neighbors: Neighbors
    energy: float
    forces: np.ndarray
    stress: np.ndarray
    volume: float


def species_indices(system: System, elements: Sequence[int]) -> np.ndarray:
    """Position of each atom's element in ``elements`` (ascending), ``(atoms,)``.

    Raises:
        ModelError: an element is not among ``elements``; the message names it.
    """
    unknown = sorted(set(system.numbers.tolist()) - set(elements))
    if unknown:
        names = ", ".join(chemical_symbols[number] for number in unknown)
        known = ", ".join(chemical_symbols[number] for number in elements)
        raise ModelError(
            expected=f"elements that the model knows ({known})", received=f"unknown element(s): {names}",
            where=system.where,
            todo=f"use a model trained with {names}, or remove these structures",
        )
    return np.searchsorted(np.asarray(elements), system.numbers)


def prepare(system: System, *, elements: Sequence[int], cutoff: float, conditions: Conditions | None = None) -> Sample:
    """A `Sample` of ``system`` with its total energy.

    Raises:
        ModelError: an element, charge, multiplicity or level of theory that the model does not know.
        DataError: coinciding atoms.
    """
    atoms = len(system)
    absent = np.full((atoms, 3), np.nan)
    return Sample(
        species=species_indices(system, elements), conditions=(conditions or Conditions()).indices(system),
        neighbors=neighbors(system, cutoff),
        energy=np.nan if system.energy is None else system.energy,
        forces=absent if system.forces is None else system.forces,
        stress=absent[:1].repeat(3, 0) if system.stress is None else system.stress,
        volume=np.nan if system.volume is None else system.volume,
    )


def collate(samples: Sequence[Sample], *, cutoff: float, dtype: torch.dtype, slot_multiple: int = 1) -> Batch:
    """Join samples into a `Batch`; slots are rounded up to a multiple of ``slot_multiple``."""
    counts = np.array([len(sample.species) for sample in samples])
    slots = max(sample.neighbors.n_slots for sample in samples)
    slots = -(-slots // slot_multiple) * slot_multiple
    atoms, starts = int(counts.sum()), np.cumsum(counts) - counts
    senders = np.repeat(np.arange(atoms)[:, None], slots, axis=1)
    reverse = np.arange(atoms * slots).reshape(atoms, slots)
    vectors = np.zeros((atoms, slots, 3))
    vectors[..., 0] = PADDING_DISTANCE * cutoff
    for sample, start in zip(samples, starts, strict=True):
        own = sample.neighbors
        rows, columns = slice(start, start + len(sample.species)), slice(0, own.n_slots)
        senders[rows, columns] = own.senders + start
        vectors[rows, columns] = own.vectors
        reverse[rows, columns] = (own.reverse // own.n_slots + start) * slots + own.reverse % own.n_slots

    def real(values: object) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values), dtype=dtype)

    return Batch(
        species=torch.from_numpy(np.concatenate([sample.species for sample in samples])),
        conditions=torch.from_numpy(np.repeat(np.stack([sample.conditions for sample in samples]), counts, axis=0)),
        graph=torch.from_numpy(np.repeat(np.arange(len(samples)), counts)),
        senders=torch.from_numpy(senders), vectors=real(vectors), reverse=torch.from_numpy(reverse),
        counts=torch.from_numpy(np.concatenate([sample.neighbors.counts for sample in samples])),
        n_atoms=torch.from_numpy(counts), volumes=real([sample.volume for sample in samples]),
        energies=torch.tensor([sample.energy for sample in samples], dtype=torch.float64),
        forces=real(np.concatenate([sample.forces for sample in samples])),
        stresses=real(np.stack([sample.stress for sample in samples])),
    )
