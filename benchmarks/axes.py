"""What a step of each axis is worth, in weights: ``python -m benchmarks.axes DATA`` trains a small model and its neighbours.

All see the same frames once, in the same order: molecules of `sapis data generate organic`, whose store is given. Models of
several widths say what error goes with how many weights; the error of a model that is larger along another axis then says how
many weights of width that step is worth, over the weights that it adds. Writes ``benchmarks/records/axes.json``; the same command
goes on after a stop.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.run import HERE, WORK
from sapis.core.files import hash_json, read_json, write_json
from sapis.core.memory import keep_freed_memory
from sapis.core.records import Record, Stopwatch, provenance, write_record
from sapis.evaluate.errors import evaluate
from sapis.model.config import dial
from sapis.pipeline.pool import Pool, n_parameters
from sapis.training.config import TrainingConfig
from sapis.training.loop import Training

BASE: dict[str, Any] = {"l_max": 2, "l_max_product": 2, "l_max_carried": 1, "order": 2, "n_layers": 2}
STEPS: dict[str, dict[str, Any]] = {
    "l_max": {"l_max": 3}, "l_max_carried": {"l_max_carried": 2}, "order": {"order": 3}, "n_layers": {"n_layers": 3}}
WIDTHS, N_FRAMES, BATCH, N_HELD = (16, 32, 64), 24_000, 4, 1000


def trained(pool: Pool, name: str, width: int, settings: dict[str, Any], seed: int) -> dict[str, float]:
    """Weights, error and cost of one training; kept once it is done."""
    folder = WORK / "axes" / f"{name}-w{width}-s{seed}"
    if (folder / "done.json").exists():
        known: dict[str, float] = read_json(folder / "done.json")
        return known
    config = TrainingConfig(epochs=1, batch_size=BATCH, validations=1, seed=seed)
    frames = pool.frames(N_FRAMES, seed)
    potential = pool.potential(frames, dial(width, {**BASE, **settings}), config, seed)
    spent = Training(potential, frames, [], config, folder / "training").run()
    found = {"n_parameters": float(n_parameters(potential)), "flops": spent.flops, "cpu_seconds": spent.cpu_seconds,
             "force_rmse_meV_A": float(evaluate(potential, pool.test)["force_rmse_meV_A"])}
    write_json(folder / "done.json", found)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="store of molecules")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    made_by, watch = provenance(), Stopwatch()
    pool = Pool.read(options.data, n_validation=N_HELD, n_test=N_HELD, group_by="smiles")
    jobs = [("width", width, {}) for width in WIDTHS]
    jobs += [(axis, width, step) for width in WIDTHS[:2] for axis, step in STEPS.items()]
    runs: dict[tuple[str, int], list[dict[str, float]]] = {}
    for axis, width, step in jobs:
        runs[axis, width] = [trained(pool, axis, width, step, seed) for seed in options.seeds]
    mean = {key: {name: float(np.exp(np.mean([np.log(run[name]) for run in found]))) for name in found[0]}
            for key, found in runs.items()}
    by_width = sorted((mean["width", width]["force_rmse_meV_A"], mean["width", width]["n_parameters"]) for width in WIDTHS)
    errors, weights = np.log(np.array(by_width)).T
    slope = float(np.polyfit(errors, weights, 1)[0])  # a straight line through the logarithms, and beyond its ends
    cases = {}
    for (axis, width), found in mean.items():
        base = mean["width", width]
        gained = slope * (np.log(found["force_rmse_meV_A"]) - np.log(base["force_rmse_meV_A"]))
        case = {**found, "worth_in_weights": float(np.exp(gained)), "cost": found["flops"] / base["flops"],
                "weights_added": found["n_parameters"] / base["n_parameters"]}
        case["worth"] = case["worth_in_weights"] / case["weights_added"]
        cases[f"{axis} at {width}"] = case
        print(f"{axis} at {width} channels: {found['force_rmse_meV_A']:.1f} meV/Å, weights x {case['weights_added']:.2f}, "
              f"FLOPs x {case['cost']:.2f}, as good as weights x {case['worth_in_weights']:.2f}", flush=True)
    everything = [run for found in runs.values() for run in found]
    cost = watch.cost_with(everything)
    inputs = hash_json({"base": BASE, "steps": STEPS, "widths": WIDTHS, "frames": N_FRAMES, "seeds": options.seeds})
    result = {"cases": cases, "exponent": -1 / slope, "data_hash": pool.data_hash, "seeds": options.seeds, "threads": 1}
    write_record(HERE / "records" / "axes.json", Record("axes", inputs, result, cost, made_by))


if __name__ == "__main__":
    main()
