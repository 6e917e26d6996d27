"""What a study of scaling needs to train the Transformer that knows nothing of rotations: `benchmarks.study`, arm ``plain``.

Data, parts, loss and levels of compute are those of the other arms, and so are the records. Which optimiser and learning rate it
trains with was measured: ``python -m benchmarks.plain_study``, two widths, validation errors after 3,000 frames of the molecules
of the study, in ``benchmarks/records/plain-rates.json``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.peers.datasets import to_frame
from benchmarks.peers.plain_transformer import Driver
from benchmarks.peers.protocol import Frame, Problem, Recipe
from benchmarks.peers.train import Training, errors
from benchmarks.run import HERE
from sapis.core.files import hash_json
from sapis.core.memory import keep_freed_memory
from sapis.core.records import Record, Stopwatch, provenance, write_record
from sapis.data.system import System
from sapis.model.config import ModelConfig
from sapis.pipeline.pool import N_TO_TIME, Pool
from sapis.pipeline.scale import (
    N_TRAINING_ERRORS,
    WORK,
    Study,
    known_pool,
    read_study,
    record_trial,
    trial_folder,
)
from sapis.scaling.plan import Size, StudyConfig, Trial
from sapis.training.config import TrainingConfig
from sapis.training.muon import Muon

CUTOFF = 5.0  # Å
RATES = {"muon": (0.0025, 0.005, 0.01, 0.02), "amsgrad": (0.0005, 0.001, 0.002)}
N_SEEN, WIDTHS = 3000, (16, 64)
CHANNELS_PER_HEAD = 16
BEYOND_ELEMENTS = 200  # more than there are
SHARED = ("learning_rate", "batch_size", "ema_decay", "clip", "warmup_steps", "energy_weight", "force_weight")


class PlainTraining(Training):
    """The bench's loop with the optimiser of `sapis`, if that is asked for."""

    n_flop_batches: ClassVar[int] = 32
    is_muon: ClassVar[bool] = True

    def _optimizer(self) -> torch.optim.Optimizer:
        if not self.is_muon:
            return super()._optimizer()
        tables = {id(self.parameters["species.weight"])}
        groups = [{"params": [weight for weight in self.weights if (id(weight) in tables) == is_table],
                   "has_matrices": not is_table} for is_table in (False, True)]
        return Muon(groups, lr=self.recipe.learning_rate, weight_decay=self.recipe.weight_decay)

    def _step(self) -> None:
        super()._step()
        if isinstance(self.optimizer, Muon):
            self.progress.flops += self.optimizer.flops


class AdamTraining(PlainTraining):
    """The bench's loop with Adam."""

    is_muon = False


def begin(pool: Pool, frames: Sequence[System], width: int, settings: TrainingConfig, folder: Path) -> PlainTraining:
    """A training of ``width`` on ``frames``, with the reference energies and scales that `sapis` would take."""
    torch.set_num_threads(1)
    known = pool.potential(frames, ModelConfig(cutoff=CUTOFF), settings, settings.seed)
    values = dict(zip(known.elements, known.reference_energies[0].tolist(), strict=True))
    conditions = [(charge, spin) for charge in known.conditions.charges for spin in known.conditions.spins]

    def framed(system: System) -> Frame:
        # An atom's embedding is that of its element in a system of this charge and multiplicity: the others know these, too.
        kind = conditions.index((system.charge, system.spin))
        frame = to_frame(system, values)
        return replace(frame, numbers=frame.numbers + BEYOND_ELEMENTS * kind)

    parts = {name: [framed(system) for system in part]
             for name, part in (("train", frames), ("validation", pool.validation), ("test", pool.test))}
    kinds = tuple(z + BEYOND_ELEMENTS * kind for kind in range(len(conditions)) for z in known.elements)
    problem = Problem(kinds, known.scale, known.average_neighbors, CUTOFF, parts)
    torch.manual_seed(settings.seed)
    peer = Driver(problem, n_channels=width, n_heads=width // CHANNELS_PER_HEAD)
    folder.mkdir(parents=True, exist_ok=True)
    is_muon = settings.optimizer == "muon"
    recipe = Recipe(**{name: getattr(settings, name) for name in SHARED}, weight_decay=settings.weight_decay if is_muon else 0.0)
    kind = PlainTraining if is_muon else AdamTraining
    return kind(peer, problem, recipe, seed=settings.seed, folder=folder, flops=settings.flops or np.inf)


def n_parameters(training: Training) -> int:
    """Weights, without the embedding of elements."""
    return sum(value.numel() for name, value in training.parameters.items() if not name.startswith("species."))


def measured(pool: Pool, config: StudyConfig, width: int, folder: Path) -> Size:
    """What a frame costs in training."""
    frames = pool.frames(min(N_TO_TIME, len(pool.train)), 0)
    training = begin(pool, frames, width, config.training, folder)
    try:
        training._warm_up()
        watch = Stopwatch()
        for _ in range(training.n_batches):
            training._step()
        n_seen = training.n_batches * config.training.batch_size
        return Size(width, n_parameters(training), training.progress.flops / n_seen, watch.cost()["cpu_seconds"] / n_seen)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def trainer(folder: Path) -> Callable[[Trial], str]:
    """What a worker does with each trial."""
    keep_freed_memory()
    study = read_study(folder)
    return partial(train, folder, study, known_pool(study))


def train(folder: Path, study: Study, pool: Pool, trial: Trial) -> str:
    """Train, test, write the record."""
    made_by, watch = provenance(), Stopwatch()
    settings = study.config.training.model_copy(update={"flops": trial.flops, "seed": trial.seed})
    frames = pool.frames(trial.n_frames, trial.seed)
    training = begin(pool, frames, trial.width, settings, trial_folder(folder, trial) / WORK)
    state = training.run()
    found = {"train": _errors(training, training.frames[:N_TRAINING_ERRORS]), **state.errors}
    return record_trial(
        folder, study, trial, n_parameters=n_parameters(training), n_steps=state.step, epochs=state.step / training.n_batches,
        errors=found, history=state.history, made_by=made_by,
        cost={**watch.cost(), "cpu_seconds": state.cpu_seconds, "flops": state.flops})


def _errors(training: Training, frames: Sequence[Frame]) -> dict[str, Any]:
    """Of the weights at hand."""
    predicted = []
    for frame in frames:
        values = training.peer.predict(training.peer.collate([training.peer.prepare(frame)]), create_graph=False)
        predicted.append(tuple(value.detach().double().numpy() for value in values))
    return errors(predicted, frames)  # type: ignore[arg-type]


def error_at(pool: Pool, width: int, optimizer: str, rate: float) -> dict[str, Any]:
    """Of a short training, on the validation frames, meV/Å, None if it diverges; and its cost."""
    settings = TrainingConfig(batch_size=2, optimizer=optimizer, learning_rate=rate, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        size = measured(pool, StudyConfig(cpu_seconds=1.0, training=settings), width, Path(folder) / "size")
        training = begin(pool, pool.frames(N_SEEN, 0), width, settings.model_copy(update={"flops": N_SEEN * size.flops}),
                         Path(folder) / "training")
        try:
            error = training.run().errors["validation"]["force_rmse_meV_A"]
        except FloatingPointError:
            error = None
    return {"force_rmse_meV_A": error, "cpu_seconds": training.progress.cpu_seconds, "flops": training.progress.flops}


def main() -> None:
    """Command line."""
    from benchmarks.study import PROBLEMS, data_of

    made_by, watch, problem = provenance(), Stopwatch(), PROBLEMS["gfn2"]
    pool = Pool.read(data_of("gfn2", None), n_validation=problem["n_validation"], n_test=problem["n_test"],
                     group_by=problem["group_by"])
    found: dict[str, dict[str, Any]] = {}
    for width in WIDTHS:
        for optimizer, rates in RATES.items():
            for rate in rates:
                name = f"{width} channels, {optimizer}, {rate:g}"
                found[name] = error_at(pool, width, optimizer, rate)
                print(f"{name}: {found[name]['force_rmse_meV_A'] or np.inf:.0f} meV/Å, {found[name]['cpu_seconds']:.0f} CPU-s",
                      flush=True)
    result = {"cases": found, "n_seen": N_SEEN, "data_hash": pool.data_hash, "seed": 0, "threads": 1}
    write_record(HERE / "records" / "plain-rates.json", Record("plain-rates", hash_json([N_SEEN, WIDTHS, RATES]), result,
                                                                watch.cost_with(found.values()), made_by))


if __name__ == "__main__":
    main()
