"""What keeps trained models free of spikes: ``python -m benchmarks.spikes [--cpu-seconds S]``.

Small models of acetylacetone are trained with and without the decay of the weights and the softness of the norms, at twice the
default learning rate: what otherwise takes a long training shows in minutes. Of each: errors on validation frames, and the share
of straight lines through them on which the force has a spike (`sapis.testing.laws.roughness`).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.growth import read_parts
from benchmarks.run import DATA, WORK
from sapis.core.files import hash_json
from sapis.core.memory import keep_freed_memory
from sapis.core.records import Record, Stopwatch, provenance, write_record
from sapis.core.seeds import generator
from sapis.data.system import hash_systems
from sapis.model.config import ModelConfig
from sapis.testing import tolerances
from sapis.testing.laws import roughness
from sapis.training.config import TrainingConfig
from sapis.training.fit import new_potential
from sapis.training.loop import Training

HERE = Path(__file__).parent
# Under the root of the norms, and of the weights at every step in units of the learning rate.
ARMS = {"former": (1e-6, 0.0), "softer norm": (1.0, 0.0), "decay": (1e-6, 0.03), "both": (1.0, 0.03)}
SPEC = {"data": "acac/train_300K.extxyz.gz", "isolated": "acac/isolated_atoms.extxyz.gz", "n_validation": 50}
RATE = 0.01
FIGURES = ("validation_force_rmse_meV_A", "validation_energy_rmse_meV_atom", "cpu_seconds", "flops")
ROUGH = tolerances.SPIKES.at("float64")


def arm(epsilon: float, decay: float, cpu_seconds: float, folder: Path) -> dict[str, Any]:
    """Train, and follow the force along a line through each validation frame."""
    parts, isolated = read_parts(SPEC, DATA)
    config = TrainingConfig(cpu_seconds=cpu_seconds, learning_rate=RATE, weight_decay=decay)
    model = ModelConfig(**{"preset": "small", "norm_epsilon": epsilon})
    potential, _ = new_potential(parts[0], isolated, model, precision=config.precision, seed=config.seed)
    progress = Training(potential, *parts, config, folder).run()
    exact, rng = potential.with_precision("float64"), generator(0, "lines")
    rough = np.array([roughness(exact, system, rng) for system in parts[1] for _ in range(2)])
    last = progress.history[-1]
    return {
        "norm_epsilon": epsilon, "weight_decay": decay, "n_steps": progress.step, "rough_lines": float((rough > ROUGH).mean()),
        "median_roughness": float(np.median(rough)), "largest_roughness": float(rough.max()),
        **{name: last[name] for name in FIGURES},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cpu-seconds", type=float, default=300.0)
    options = parser.parse_args()
    keep_freed_memory()
    made_by, watch, found = provenance(), Stopwatch(), {}
    for name, (epsilon, decay) in ARMS.items():
        found[name] = arm(epsilon, decay, options.cpu_seconds, WORK / "spikes" / name)
        print(f"{name}: {found[name]['rough_lines']:.2f} of the lines rough, the worst {found[name]['largest_roughness']:.1e}; "
              f"F {found[name]['validation_force_rmse_meV_A']:.2f} meV/Å in {found[name]['n_steps']:,} steps", flush=True)
    result = {"cases": found, "limit": ROUGH, "learning_rate": RATE, "seed": 0, "threads": 1,
              "data_hash": hash_systems([system for part in read_parts(SPEC, DATA)[0] for system in part])}
    cost = {**watch.cost(), "cpu_seconds": sum(case["cpu_seconds"] for case in found.values())}
    write_record(HERE / "records" / "spikes.json", Record("spikes", hash_json({**SPEC, **vars(options)}), result, cost, made_by))


if __name__ == "__main__":
    main()
