"""Is a model that grows half-way as good as a large one from the start, at the same arithmetic?

Both trainings have the same data, budget of FLOPs and schedule. One spends a fraction of the budget on the small model, grows it
and goes on; the other trains a model of the large size throughout. `benchmarks.run` calls this.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sapis.core.config import parse_config
from sapis.data.formats import read_systems
from sapis.data.reference import ReferenceEnergies, reference_energies_from_isolated
from sapis.data.splits import random_split
from sapis.data.system import System
from sapis.model.config import ModelConfig
from sapis.model.growth import Growth, larger_config
from sapis.model.potential import TransformerPotential
from sapis.pipeline.steps import keep_trained
from sapis.training.config import TrainingConfig
from sapis.training.fit import new_potential
from sapis.training.growth import grow_checkpoint
from sapis.training.loop import Progress, Training

Parts = tuple[Sequence[System], Sequence[System]]


def read_parts(spec: dict[str, Any], data: Path) -> tuple[Parts, dict[int, float]]:
    """Training and validation frames, and energies of isolated atoms in eV."""
    systems = read_systems(data / spec["data"])
    isolated = reference_energies_from_isolated(read_systems(data / spec["isolated"])) if "isolated" in spec else {}
    split = random_split(systems, len(systems) - spec["n_validation"], spec["n_validation"], 0)
    return (split.train, split.validation), isolated


def compare(spec: dict[str, Any], data: Path, folder: Path) -> dict[str, Any]:
    """Validation losses of both trainings for each seed, and their ratio (of geometric means).

    The grown model of the first seed is left as ``model.sapis`` in ``folder``.
    """
    parts, isolated = read_parts(spec, data)
    small = parse_config(ModelConfig, spec["small"], where="small")
    large = larger_config(small, spec["large"])
    found: dict[str, Any] = {"seeds": {}}
    for seed in spec["seeds"]:
        config = parse_config(TrainingConfig, {**spec["training"], "seed": seed}, where="training")

        def new(model: ModelConfig, config: TrainingConfig = config) -> tuple[TransformerPotential, dict[str, ReferenceEnergies]]:
            return new_potential(parts[0], isolated, model, precision=config.precision, seed=config.seed)

        start, references = new(small)
        grown = _grown(start, large, parts, config, spec["grow_at"], folder / f"{seed}")
        throughout = Training(new(large)[0], *parts, config, folder / f"{seed}" / "throughout").run()
        found["seeds"][str(seed)] = {"grown": _figures(grown.progress), "throughout": _figures(throughout)}
        if seed == spec["seeds"][0]:
            kept = keep_trained(dict(zip(("train", "validation"), parts, strict=True)), grown, references, folder / "model.sapis",
                                {"level_of_theory": spec["level_of_theory"]})
            found["model_hash"] = kept["model_hash"]
    rows = found["seeds"].values()
    for figure, name in (("validation_loss", "loss_ratio"), ("validation_force_rmse_meV_A", "force_ratio"),
                         ("cpu_seconds", "cpu_ratio"), ("flops", "flops_ratio")):
        found[name] = float(np.exp(np.mean([np.log(row["grown"][figure] / row["throughout"][figure]) for row in rows])))
    return found


def _grown(small: TransformerPotential, config: ModelConfig, parts: Parts, settings: TrainingConfig, grow_at: float, folder: Path,
           ) -> Training:
    # Growth and its target are made from the untrained model, so that they are the same after a stop.
    growth = Growth(small, config, seed=settings.seed)
    second = Training(growth.potential(), *parts, settings, folder / "second")
    first = Training(small, *parts, settings, folder / "first")
    first.run(until=grow_at)
    grow_checkpoint(folder / "first", growth, second)
    second.run()
    return second


def _figures(progress: Progress) -> dict[str, Any]:
    """Of the best validation and of the whole training."""
    best = min(progress.history, key=lambda row: row["validation_loss"])
    return {**best, "cpu_seconds": progress.cpu_seconds, "flops": progress.flops, "n_steps": progress.step,
            "history": progress.history}
