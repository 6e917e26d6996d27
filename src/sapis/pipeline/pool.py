"""Frames that trainings of several sizes draw from, and what a size costs on them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sapis.core.errors import DataError
from sapis.core.files import hash_file, hash_json
from sapis.core.seeds import derive_seed
from sapis.data.formats import read_systems
from sapis.data.lint import lint, lint_splits, raise_on_errors
from sapis.data.lint.sample import sample_of
from sapis.data.reference import Energies, ReferenceEnergies, isolated_by_level
from sapis.data.splits import Split, chosen, group_split, nested_order, random_split, split_in_time
from sapis.data.store import Store, is_store
from sapis.data.system import System, hash_systems
from sapis.executors.executor import Executor
from sapis.labelers.labeler import LabelerConfig
from sapis.labelers.labelling import cpu_seconds_of_a_label, isolated_atom_energies, label_at
from sapis.model.config import ModelConfig
from sapis.model.potential import TransformerPotential
from sapis.scaling.plan import Size
from sapis.training.config import TrainingConfig
from sapis.training.fit import new_potential
from sapis.training.loop import Training

N_TO_TIME = 128  # frames whose training says what a frame costs
N_LABELS_TO_TIME = 3
EMBEDDINGS = ("transformer.embedding", "transformer.conditions.")


class Pool:
    """Labelled frames in three parts, of which trainings take the first so many of a random order.

    Args:
        split: the parts.
        isolated: energies of isolated atoms, by level of theory.
        data_hash: of all frames, and of the isolated atoms.
        seed: of the order.

    Attributes:
        train, validation, test: the parts.
    """

    def __init__(self, split: Split, isolated: Energies, *, data_hash: str, seed: int = 0) -> None:
        self.train, self.validation, self.test = split.train, split.validation, split.test
        self.data_hash, self.seed = data_hash, seed
        self._isolated = isolated
        self._orders: dict[int, np.ndarray] = {}

    @classmethod
    def read(cls, path: Path, *, n_validation: int, n_test: int, group_by: str = "", isolated: Path | None = None, seed: int = 0,
             ) -> Pool:
        """Of the labelled frames of a store, or of any format.

        Args:
            n_validation, n_test: frames of these parts.
            group_by: a tag whose values are each in one part, or empty.
            isolated: file of isolated atoms; a store has them itself.
            seed: of the parts and of the order.

        Raises:
            DataError: too few frames.
        """
        systems: Sequence[System] = Store(path) if is_store(path) else read_systems(path, require=("energy", "forces"))
        energies: Energies = {}
        if isolated is not None:
            energies = isolated_by_level(read_systems(isolated))
        elif isinstance(systems, Store):
            energies = {level: found for level, found in systems.isolated.items() if found}
        known = hash_systems(systems)
        return cls(in_parts(systems, path, n_validation, n_test, group_by, seed), energies, seed=seed,
                   data_hash=known if isolated is None else hash_json([known, hash_file(isolated)]))

    def require_sound(self) -> None:
        """Let no frames with errors train, nor any that are in two parts.

        Raises:
            DataError: there are such.
        """
        raise_on_errors(lint(sample_of(self.train)) + lint_splits(self.train, self.validation, self.test))

    def frames(self, n: int, seed: int) -> Sequence[System]:
        """The first ``n`` of an order of their own for each seed: smaller sets are parts of larger ones."""
        if seed not in self._orders:
            self._orders[seed] = nested_order(self.train, derive_seed(self.seed, "frames", seed))
        return chosen(self.train, self._orders[seed][:n])

    def begun(self, frames: Sequence[System], config: ModelConfig, training: TrainingConfig, seed: int,
              ) -> tuple[TransformerPotential, dict[str, ReferenceEnergies]]:
        """An untrained potential for ``frames``, and the reference energies that it holds, by level."""
        return new_potential(frames, self._isolated, config, precision=training.precision, seed=seed)

    def potential(self, frames: Sequence[System], config: ModelConfig, training: TrainingConfig, seed: int,
                  ) -> TransformerPotential:
        """An untrained potential for ``frames``."""
        return self.begun(frames, config, training, seed)[0]

    def measured(self, config: ModelConfig, training: TrainingConfig, folder: Path, frames: Sequence[System] | None = None,
                 ) -> Size:
        """What a frame costs in training, from a short one in ``folder``, which is removed.

        Args:
            frames: that are at hand; default: some of those to train on.
        """
        shutil.rmtree(folder, ignore_errors=True)  # of a measurement that was killed
        frames = self.frames(N_TO_TIME, 0) if frames is None else frames
        potential, once = self.potential(frames, config, training, 0), training.model_copy(update={"epochs": 1, "workers": 0})
        try:
            spent = Training(potential, frames, [], once, folder).run(is_quiet=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return Size(config.n_channels, n_parameters(potential), spent.flops / len(frames), spent.cpu_seconds / len(frames))


class PoolToLabel(Pool):
    """Structures whose labels are computed when they are used: those of validation and test at once, others as trainings ask.

    Args:
        split: the parts, without labels.
        labeler: the method.
        store: where the labels are kept, each once.
        executor: where they are computed.
        data_hash: of all structures.
        seed: of the order.

    Raises:
        DataError: no label of a part that is held out.
    """

    def __init__(self, split: Split, labeler: LabelerConfig, store: Path, executor: Executor, *, data_hash: str, seed: int = 0,
                 ) -> None:
        self.labeler, self.store, self.executor = labeler, store, executor
        elements = {int(z) for part in (split.train, split.validation, split.test) for system in part for z in system.numbers}
        held = [self._labelled(part, is_quiet=False) for part in (split.validation, split.test)]
        if not all(held):
            raise DataError(expected="labels of validation and test frames", received="none: all have failed", where=str(store),
                            todo="check charge, spin and structures, or choose another labeler")
        super().__init__(Split(split.train, *held), {"": isolated_atom_energies(labeler, elements, executor)},
                         data_hash=data_hash, seed=seed)

    def frames(self, n: int, seed: int) -> Sequence[System]:
        """The first ``n`` of an order, labelled; those whose label fails are left out."""
        return self._labelled(super().frames(n, seed))

    def cpu_seconds_of_a_label(self) -> float:
        """Measured on a few."""
        frames = [system.without_labels() for system in self.validation[:N_LABELS_TO_TIME]]
        return cpu_seconds_of_a_label(self.labeler, frames, self.executor)

    def _labelled(self, systems: Sequence[System], *, is_quiet: bool = True) -> list[System]:
        _, found = label_at(self.store, systems, self.labeler, self.executor, at_once=True, is_quiet=is_quiet)
        # One level of theory for all, whatever the structures come from.
        return [replace(system, level="") for system in found if isinstance(system, System)]


def in_parts(systems: Sequence[System], path: Path, n_validation: int, n_test: int, group_by: str, seed: int) -> Split:
    """``systems`` of ``path`` in random parts, or in parts of random groups that share the value of a tag. Those of trajectories
    (tag ``trajectory``) are in parts of blocks in time, and some between the blocks in none.

    Raises:
        DataError: too few.
    """
    n_held = n_validation + n_test
    if len(systems) <= n_held:
        raise DataError(expected=f"more than {n_held} frames, of which {n_validation} validate and {n_test} test",
                        received=str(len(systems)), where=str(path), todo="give more frames, or hold out fewer")
    if group_by:
        return group_split(systems, group_by, n_validation, n_test, seed)
    n = len(systems)
    if any("trajectory" in system.tags for system in systems):
        return split_in_time(systems, fractions=((n - n_held) / n, n_validation / n, n_test / n), seed=seed)
    return random_split(systems, n - n_held, n_validation, seed)


def n_parameters(potential: TransformerPotential) -> int:
    """Weights without the embedding of elements and conditions."""
    return sum(weight.numel() for name, weight in potential.named_parameters() if not name.startswith(EMBEDDINGS))
