"""Batches of an epoch: shuffled, of a size or within a budget of atoms; the same whatever makes them, and from any one on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from sapis.core.errors import SapisError, TrainingError
from sapis.core.seeds import generator
from sapis.data.batch import Batch, Sample, collate
from sapis.data.system import System

# Atoms whose neighbours are kept, a kilobyte each; beyond that they are searched for anew whenever a system is needed.
MAX_KEPT_ATOMS = 500_000
PREFETCHED = 8  # batches of each process


class Loader:
    """Systems as batches.

    Args:
        systems: a list, or a store of any number.
        prepare: makes a sample of a system.
        cutoff, dtype: see `sapis.data.batch.collate`.
        batch_size: systems of a batch, if there is no ``max_atoms``.
        max_atoms: of a batch, which then holds as many systems of about one size as fit (one at least).
        weights: how often systems of each level of theory come, in units of once an epoch; 1 for those not named.
        seed: of the order.
        n_workers: processes that search for neighbours beside this one; the batches are the same.
        rank, n_ranks: of processes that train together, each takes its share of every epoch; the last batches come twice where
            they do not divide.
    """

    def __init__(self, systems: Sequence[System], prepare: Callable[[System], Sample], *, cutoff: float, dtype: torch.dtype,
                 batch_size: int = 1, max_atoms: int | None = None, weights: Mapping[str, float] | None = None, seed: int = 0,
                 n_workers: int = 0, rank: int = 0, n_ranks: int = 1) -> None:
        self.systems, self.prepare, self.cutoff, self.dtype = systems, prepare, cutoff, dtype
        self.seed, self.n_workers, self.rank, self.n_ranks = seed, n_workers, rank, n_ranks
        sizes = _sizes(systems)
        capacities = np.full(len(sizes), batch_size) if max_atoms is None else np.maximum(1, max_atoms // sizes)
        self.classes = _classes(capacities, _weights(systems, weights or {}))
        self.n_batches = -(-sum(-(-one.n_drawn // one.capacity) for one in self.classes) // n_ranks)
        self._samples: dict[int, Sample] | None = {} if int(sizes.sum()) <= MAX_KEPT_ATOMS else None
        if self._samples is not None:
            self._samples = {number: prepare(system) for number, system in enumerate(systems)}

    def plan(self, epoch: int) -> list[np.ndarray]:
        """The numbers of the systems of each batch of an epoch; they depend on seed and epoch alone."""
        random = generator(self.seed, "epoch", epoch)
        batches = []
        for one in self.classes:
            order = one.drawn(epoch, self.seed, random)
            batches += [order[start : start + one.capacity] for start in range(0, len(order), one.capacity)]
        if len(self.classes) > 1:
            batches = [batches[k] for k in random.permutation(len(batches))]
        batches += batches[: self.n_batches * self.n_ranks - len(batches)]
        return batches[self.rank :: self.n_ranks]

    def batches(self, first: int) -> Iterator[Batch]:
        """Batches without end, from number ``first`` of all epochs on."""
        while True:
            epoch, position = divmod(first, self.n_batches)
            plan = self.plan(epoch)[position:]
            yield from _parallel(self, plan) if self.n_workers else map(self.batch, plan)
            first += len(plan)

    def batch(self, numbers: np.ndarray) -> Batch:
        """The batch of some systems."""
        return collate([self.sample(int(number)) for number in numbers], cutoff=self.cutoff, dtype=self.dtype)

    def sample(self, number: int) -> Sample:
        """A system ready for a batch."""
        return self._samples[number] if self._samples is not None else self.prepare(self.systems[number])

    def __len__(self) -> int:
        return len(self.systems)


@dataclass(frozen=True, eq=False)
class _Class:
    """Systems of which equally many fit into a batch and which come equally often: so the number of batches is the same in every
    epoch.

    Attributes:
        capacity: systems of a batch.
        members: their numbers.
        n_drawn: systems of an epoch.
    """

    capacity: int
    members: np.ndarray
    n_drawn: int

    def drawn(self, epoch: int, seed: int, random: np.random.Generator) -> np.ndarray:
        """The systems of an epoch in their order. Where they do not come once each, epochs take turns in going through all."""
        n = len(self.members)
        if self.n_drawn == n:
            return self.members[random.permutation(n)]
        first = epoch * self.n_drawn
        rounds = range(first // n, (first + self.n_drawn - 1) // n + 1)
        orders = [generator(seed, "round", int(self.members[0]), number).permutation(n) for number in rounds]
        start = first - rounds.start * n
        return self.members[np.concatenate(orders)[start : start + self.n_drawn]]


def _classes(capacities: np.ndarray, weights: np.ndarray) -> list[_Class]:
    found = []
    for capacity, weight in sorted(set(zip(capacities.tolist(), weights.tolist(), strict=True))):
        members = np.flatnonzero((capacities == capacity) & (weights == weight))
        if weight:
            found.append(_Class(capacity, members, max(1, round(weight * len(members)))))
    if not found:
        raise TrainingError(expected="frames to train on", received="a weight of zero for each", where="level_weights",
                            todo="give a level of the data a weight")
    return found


def _weights(systems: Sequence[System], weights: Mapping[str, float]) -> np.ndarray:
    if not weights:
        return np.ones(len(systems))
    levels = [system.level for system in systems]
    if unknown := sorted(set(weights) - set(levels)):
        known = ", ".join(sorted(set(levels)))
        raise TrainingError(expected=f"levels of theory of the data: {known}", received=", ".join(unknown), where="level_weights",
                            todo="mend the names")
    return np.array([weights.get(level, 1.0) for level in levels])


class _Planned(Dataset[Any]):
    """Torch's view of a plan: one item a batch, as arrays, which go through a pipe four times as fast as tensors, each of which
    torch would send as a file.
    """

    def __init__(self, loader: Loader, plan: Sequence[np.ndarray]) -> None:
        self.loader, self.plan = loader, plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, place: int) -> dict[str, np.ndarray] | SapisError:
        try:
            return {name: tensor.numpy() for name, tensor in vars(self.loader.batch(self.plan[place])).items()}
        except SapisError as error:  # torch would make another one of it
            return error


def _parallel(loader: Loader, plan: Sequence[np.ndarray]) -> Iterator[Batch]:
    options: dict[str, Any] = {"num_workers": loader.n_workers, "prefetch_factor": PREFETCHED, "multiprocessing_context": "fork",
                               "collate_fn": _as_it_is}  # torch would make tensors of them at once
    for arrays in DataLoader(_Planned(loader, plan), batch_size=None, shuffle=False, **options):
        if isinstance(arrays, SapisError):
            raise arrays
        yield Batch(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def _as_it_is(found: Any) -> Any:
    return found


def _sizes(systems: Sequence[System]) -> np.ndarray:
    """Atoms of each system, ``(systems,)``; a store knows them without being read."""
    known = getattr(systems, "n_atoms", None)
    return np.array([len(system) for system in systems]) if known is None else np.asarray(known, dtype=np.int64)
