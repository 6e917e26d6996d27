"""What each choice of the default model and recipe is worth: ``python -m benchmarks.ablation``.

Arms differ from the default in one thing each. All train for the same CPU seconds, as many at a time as there are processes, on
450 frames of 3BPA and of acetylacetone, with three seeds; the error is that on 50 validation frames, others for each seed. Test
sets are not looked at. Writes ``benchmarks/records/ablation.json`` after each training; the same command goes on after a stop,
and does nothing again that the record has. Other budgets and other machines belong in another record (``--name``).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.run import DATA, HERE, WORK, known_runs
from sapis.core.config import parse_config
from sapis.core.files import hash_json
from sapis.core.memory import keep_freed_memory
from sapis.core.records import Record, Stopwatch, provenance, write_record
from sapis.data.formats import read_systems
from sapis.data.reference import isolated_by_level
from sapis.data.splits import random_split
from sapis.executors.executor import LocalExecutor
from sapis.executors.outcome import Failure, Limits
from sapis.model.config import ModelConfig
from sapis.training.config import TrainingConfig
from sapis.training.fit import new_potential
from sapis.training.loop import Training

N_HELD = 50
SETS = {"3bpa": ("3bpa/train_300K.extxyz.gz", "3bpa/iso_atoms.extxyz.gz"),
        "acac": ("acac/train_300K.extxyz.gz", "acac/isolated_atoms.extxyz.gz")}
DEFAULT = "default"
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    DEFAULT: {},
    "AMSGrad, rate 0.002": {"training": {"optimizer": "amsgrad", "learning_rate": 0.002}},
    "AMSGrad": {"training": {"optimizer": "amsgrad"}},
    "rate 0.0025": {"training": {"learning_rate": 0.0025}},
    "rate 0.01": {"training": {"learning_rate": 0.01}},
    "1 frame a step": {"training": {"batch_size": 1}},
    "4 frames a step": {"training": {"batch_size": 4}},
    "running mean 0.95": {"training": {"ema_decay": 0.95}},
    "running mean 0.998": {"training": {"ema_decay": 0.998}},
    "no decay of weights": {"training": {"weight_decay": 0.0}},
    "energies ten times the weight": {"training": {"energy_weight": 1.0}},
    "1 layer": {"model": {"n_layers": 1}},
    "3 layers": {"model": {"n_layers": 3}},
    "order 1": {"model": {"order": 1}},
    "order 2": {"model": {"order": 2}},
    "edges to degree 2": {"model": {"l_max": 2}},
    "edges to degree 4": {"model": {"l_max": 4}},
    "features to degree 1": {"model": {"l_max_carried": 1, "l_max_product": 2}},
    "features to degree 3": {"model": {"l_max_carried": 3, "l_max_product": 3}},
    "8 radial functions": {"model": {"n_radial": 8}},
    "3 radial functions": {"model": {"n_radial": 3}},
    "32 channels": {"model": {"n_channels": 32}},
    "64 channels": {"model": {"n_channels": 64}},
    "half the heads": {"model": {"n_heads": 3}},
    "twice the heads": {"model": {"n_heads": 12}},
    "cutoff 4 Å": {"model": {"cutoff": 4.0}},
    "cutoff 6 Å": {"model": {"cutoff": 6.0}},
}
Task = tuple[str, str, int]


def _worker(folder: Path, cpu_seconds: float) -> Callable[[Task], dict[str, Any]]:
    """What each process runs."""
    keep_freed_memory()
    with TemporaryDirectory() as scratch:  # compiled loops are loaded by the first training, which none of those compared may be
        _trained(Path(scratch), 1.0, (next(iter(SETS)), DEFAULT, 0))
    return partial(_trained, folder, cpu_seconds)


def _trained(folder: Path, cpu_seconds: float, task: Task) -> dict[str, Any]:
    name, arm, seed = task
    file, isolated = SETS[name]
    systems = read_systems(DATA / file)
    split = random_split(systems, len(systems) - N_HELD, N_HELD, seed)
    training = {"cpu_seconds": cpu_seconds, "seed": seed, "validations": 10, **ARMS[arm].get("training", {})}
    config = parse_config(TrainingConfig, training, where=arm)
    model = parse_config(ModelConfig, ARMS[arm].get("model", {}), where=arm)
    potential, _ = new_potential(split.train, isolated_by_level(read_systems(DATA / isolated)), model, precision=config.precision,
                                 seed=seed)
    run = Training(potential, split.train, split.validation, config, folder / f"{name}-{hash_json(arm)[:12]}-{seed}")
    spent = run.run(is_quiet=True)
    best = min(spent.history, key=lambda row: row["validation_loss"])
    return {**{name: best[f"validation_{name}"] for name in ("force_rmse_meV_A", "energy_rmse_meV_atom", "loss")},
            "n_steps": spent.step, "cpu_seconds": spent.cpu_seconds, "flops": spent.flops, "n_parameters": potential.n_parameters}


def table(runs: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, dict[str, float]]]:
    """By set and arm: the mean force error in meV/Å, and over seeds that both have the mean ratio to the default and, of several,
    its relative standard error.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, arms in runs.items():
        found[name] = {}
        for arm, seeds in arms.items():
            both = sorted(set(seeds) & set(arms.get(DEFAULT, {})))
            if both:
                errors, others = (np.array([arms[which][seed]["force_rmse_meV_A"] for seed in both]) for which in (arm, DEFAULT))
                logs = np.log(errors / others)
                row = {"force_rmse_meV_A": float(errors.mean()), "ratio": float(np.exp(logs.mean())), "n_seeds": float(len(both))}
                found[name][arm] = row | ({"spread": float(logs.std(ddof=1) / np.sqrt(len(both)))} if len(both) > 1 else {})
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--cpu-seconds", type=float, default=60.0, help="of each training")
    parser.add_argument("--name", default="ablation", help="of the record")
    options = parser.parse_args()
    made_by, watch, path = provenance(), Stopwatch(), HERE / "records" / f"{options.name}.json"
    settings = {"cpu_seconds": options.cpu_seconds, "n_held": N_HELD, "model": ModelConfig().model_dump(mode="json"),
                "training": TrainingConfig().model_dump(mode="json")}
    runs = known_runs(path, hash_json(settings), "runs")
    tasks: list[Task] = [(name, arm, seed) for seed in options.seeds for arm in options.arms for name in options.sets
                         if str(seed) not in runs.get(name, {}).get(arm, {})]
    worker = partial(_worker, WORK / options.name, options.cpu_seconds)
    for number, outcome in LocalExecutor(options.workers).outcomes(worker, tasks, limits=Limits()):
        name, arm, seed = tasks[number]
        if isinstance(outcome, Failure):
            print(f"{name}, {arm}, seed {seed}: {outcome.reason}", flush=True)
            continue
        runs.setdefault(name, {}).setdefault(arm, {})[str(seed)] = outcome | {"made_by": made_by["commit"]}
        done = [run for arms in runs.values() for seeds in arms.values() for run in seeds.values()]
        cost = watch.cost_with(done)
        result = {"runs": runs, "table": table(runs), "arms": ARMS, "settings": settings, "threads": 1}
        write_record(path, Record(path.stem, hash_json(settings), result, cost, made_by))
        print(f"{name}, {arm}, seed {seed}: {outcome['force_rmse_meV_A']:.2f} meV/Å, {outcome['n_steps']} steps", flush=True)
    for name, arms in table(runs).items():
        for arm, row in sorted(arms.items(), key=lambda each: each[1]["ratio"]):
            print(f"{name}: {arm}: {row['force_rmse_meV_A']:.2f} meV/Å, {row['ratio']:.3f} ± {row.get('spread', 0.0):.3f} of the "
                  f"default, {row['n_seeds']:.0f} seeds")


if __name__ == "__main__":
    from benchmarks import ablation  # workers import what they run, which `__main__` is not

    ablation.main()
