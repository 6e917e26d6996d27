"""Frames that trainings of several sizes draw from, and what a size costs on them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sapis.core.errors import DataError
from sapis.core.seeds import derive_seed
from sapis.data.formats import read_systems
from sapis.data.reference import isolated_by_level
from sapis.data.splits import chosen, group_split, nested_order, random_split
from sapis.data.store import Store, is_store
from sapis.data.system import System, hash_systems
from sapis.model.config import ModelConfig
from sapis.model.potential import TransformerPotential
from sapis.scaling.plan import Size
from sapis.training.config import TrainingConfig
from sapis.training.fit import new_potential
from sapis.training.loop import Training

N_TO_TIME = 128  # frames whose training says what a frame costs
EMBEDDINGS = ("transformer.embedding", "transformer.conditions.")


class Pool:
    """Labelled frames in three parts, of which trainings take the first so many of a random order.

    Args:
        path: a store, or any format.
        n_validation, n_test: frames of these parts.
        group_by: a tag whose values are each in one part, or empty.
        isolated: file of isolated atoms; a store has them itself.
        seed: of the parts and of the order.

    Attributes:
        train, validation, test: the parts.
        data_hash: of all frames.

    Raises:
        DataError: too few frames.
    """

    def __init__(self, path: Path, *, n_validation: int, n_test: int, group_by: str = "", isolated: Path | None = None,
                 seed: int = 0) -> None:
        self.seed = seed
        systems: Sequence[System] = Store(path) if is_store(path) else read_systems(path, require=("energy", "forces"))
        n_held = n_validation + n_test
        if len(systems) <= n_held:
            raise DataError(expected=f"more than {n_held} frames, of which {n_validation} validate and {n_test} test",
                            received=str(len(systems)), where=str(path), todo="give more frames, or hold out fewer")
        self.data_hash = hash_systems(systems)
        if group_by:
            split = group_split(systems, group_by, n_validation, n_test, seed)
        else:
            split = random_split(systems, len(systems) - n_held, n_validation, seed)
        self.train, self.validation, self.test = split.train, split.validation, split.test
        self._isolated: Mapping[str, Mapping[int, float]] = {}
        if isolated is not None:
            self._isolated = isolated_by_level(read_systems(isolated))
        elif isinstance(systems, Store):
            self._isolated = {level: energies for level, energies in systems.isolated.items() if energies}
        self._orders: dict[int, np.ndarray] = {}

    def frames(self, n: int, seed: int) -> Sequence[System]:
        """The first ``n`` of an order of their own for each seed: smaller sets are parts of larger ones."""
        if seed not in self._orders:
            self._orders[seed] = nested_order(self.train, derive_seed(self.seed, "frames", seed))
        return chosen(self.train, self._orders[seed][:n])

    def potential(self, frames: Sequence[System], config: ModelConfig, training: TrainingConfig, seed: int,
                  ) -> TransformerPotential:
        """An untrained potential for ``frames``."""
        return new_potential(frames, self._isolated, config, precision=training.precision, seed=seed)[0]

    def measured(self, config: ModelConfig, training: TrainingConfig, folder: Path) -> Size:
        """What a frame costs in training, from a short one in ``folder``, which is removed."""
        frames = self.frames(min(N_TO_TIME, len(self.train)), 0)
        potential, once = self.potential(frames, config, training, 0), training.model_copy(update={"epochs": 1, "workers": 0})
        try:
            spent = Training(potential, frames, [], once, folder).run(is_quiet=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return Size(config.n_channels, n_parameters(potential), spent.flops / len(frames), spent.cpu_seconds / len(frames))


def n_parameters(potential: TransformerPotential) -> int:
    """Weights without the embedding of elements and conditions."""
    return sum(weight.numel() for name, weight in potential.named_parameters() if not name.startswith(EMBEDDINGS))
