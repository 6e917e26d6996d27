"""How fast batches are made from a store, beside how fast a training uses them. ``python -m benchmarks.loader``.

QM7-X frames, rattled to 20,000 different ones, in a store; neighbours are searched for anew for every frame, within 5 Å. Wall
seconds with two processes; a training step of the preset ``base`` on the same batches for comparison.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.peak import yardstick
from benchmarks.run import DATA
from sapis.core.files import hash_json
from sapis.core.records import Record, Stopwatch, provenance, write_record
from sapis.data import loader as loading
from sapis.data.formats import read_systems
from sapis.data.loader import Loader
from sapis.data.store import Store
from sapis.model.config import ModelConfig
from sapis.training.config import TrainingConfig
from sapis.training.fit import new_potential
from sapis.training.loss import loss

HERE = Path(__file__).parent
N_FRAMES, MAX_ATOMS, N_BATCHES, N_STEPS = 20_000, 128, 600, 40


def main() -> None:
    """Command line."""
    made_by, watch, before = provenance(), Stopwatch(), yardstick()
    torch.set_num_threads(1)
    rng, frames = np.random.default_rng(0), read_systems(DATA / "qm7x_2500" / "qm7x_2500.extxyz.gz")
    potential, _ = new_potential(frames, {}, ModelConfig(), precision="float32", seed=0)
    loading.MAX_KEPT_ATOMS = 0
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, Store.create(Path(folder) / "store") as store:
        for start in range(0, N_FRAMES, len(frames)):
            noise = [rng.normal(scale=0.02, size=frame.positions.shape) for frame in frames]
            store.append([replace(frame, positions=frame.positions + moved)
                          for frame, moved in zip(frames, noise, strict=True)][: N_FRAMES - start])
        for n_workers in (0, 2):
            loader = Loader(store, potential.sample, cutoff=potential.cutoff, dtype=torch.float32, max_atoms=MAX_ATOMS,
                            n_workers=n_workers)
            batches = loader.batches(0)
            next(batches)  # the processes are there
            start = time.perf_counter()
            n_atoms = sum(int(batch.n_atoms.sum()) for batch in islice(batches, N_BATCHES))
            found[f"atoms_per_s_{n_workers}_workers"] = n_atoms / (time.perf_counter() - start)
        found |= _training(potential, list(islice(loader.batches(0), N_STEPS)))
    found["ratio"] = found["atoms_per_s_2_workers"] / found["training_atoms_per_s"]
    for name, value in found.items():
        print(f"{name}: {value:.4g}")
    result = {**found, "max_atoms": MAX_ATOMS, "n_frames": N_FRAMES, "seed": 0, "threads": 1,
              "yardstick": {"before": before, "after": yardstick()}}
    write_record(HERE / "records" / "loader.json", Record("loader", hash_json({"n": N_FRAMES}), result, watch.cost(), made_by))


def _training(potential: Any, batches: list[Any]) -> dict[str, float]:
    """Atoms a second that energies, forces and the gradient of a loss take, without optimiser."""
    weights, config = list(potential.parameters()), TrainingConfig(epochs=1)
    n_atoms, start = 0, 0.0
    for number, batch in enumerate(batches):
        if number == 2:
            n_atoms, start = 0, time.perf_counter()
        value = loss(batch, *potential(batch, create_graph=True), config, potential.scale)
        torch.autograd.grad(value, weights, allow_unused=True)
        n_atoms += int(batch.n_atoms.sum())
    return {"training_atoms_per_s": n_atoms / (time.perf_counter() - start)}


if __name__ == "__main__":
    main()
