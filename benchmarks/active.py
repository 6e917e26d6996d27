"""Labels that a model asks for, against as many at random: ``python -m benchmarks.active POOL``.

``aspirin``: frames of the revised MD17; ``qm7x``: many molecules, displaced. `sapis active` chooses from the pool and is told the
labels it asks for; every model of every round is tested on frames that were in no pool. All arms have the same numbers of labels,
rounds and passes over them.

Writes ``benchmarks/records/active-POOL.json`` after each run; the same command goes on after a stop, and does no run again that
the record has.
"""

from __future__ import annotations

import argparse
import os
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from benchmarks.run import DATA, HERE, WORK
from sapis.api import load
from sapis.core.config import parse_config
from sapis.core.files import hash_json
from sapis.core.records import Record, Stopwatch, provenance, read_record, write_record
from sapis.core.seeds import generator
from sapis.data.formats import read_systems, write_systems
from sapis.data.splits import random_split
from sapis.data.system import System
from sapis.evaluate.errors import evaluate
from sapis.pipeline.active import active
from sapis.pipeline.active_config import ActiveRecipe
from sapis.uncertainty.learning_curve import labels_needed

RANDOM, ASKED = "random", "largest and diverse"
STRATEGIES = (RANDOM, ASKED, "largest", "diverse", "information")
FILES = {"aspirin": [f"rmd17/rmd17_aspirin_split0{k}.npz" for k in (1, 2, 3)], "qm7x": ["qm7x_2500/qm7x_2500.extxyz.gz"]}
N_POOL, N_TEST = 2000, 500
SETTINGS: dict[str, Any] = {
    "n_start": 40, "rounds": 6, "n_per_round": 20, "random_fraction": 0.2, "model": {"preset": "small"}, "workers": 1,
    "uncertainty": {"method": "distance"}, "training": {"epochs": 60, "validations": 10},
}
N_RESAMPLES = 2000


class Revealed(Calculator):
    """The labels of a file, told structure by structure."""

    implemented_properties = ("energy", "forces")

    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path

    def calculate(self, atoms: Atoms | None = None, properties: list[str] | None = None,
                  system_changes: list[str] = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        known = _labels(self.path)
        # An atom alone is asked for its energy, which these sets do not have: least squares on composition, as for any such set.
        if len(self.atoms) == 1:
            raise RuntimeError("no isolated atoms")
        system = known[_key(self.atoms.numbers, self.atoms.positions)]
        self.results = {"energy": system.energy, "forces": system.forces}


@cache
def _labels(path: str) -> dict[bytes, System]:
    return {_key(system.numbers, system.positions): system for system in read_systems(Path(path))}


def _key(numbers: np.ndarray, positions: np.ndarray) -> bytes:
    """Files keep at least six decimals."""
    return numbers.astype(np.int64).tobytes() + np.round(positions * 1e5).astype(np.int64).tobytes()


def frames(pool: str, folder: Path) -> tuple[Path, list[System]]:
    """The file of the pool, and the frames to test on."""
    everything = {system.structure_hash(): system for file in FILES[pool] for system in read_systems(DATA / file)}
    split = random_split(list(everything.values()), N_POOL, N_TEST, 0)
    path = folder / "pool.extxyz"
    if not path.exists():
        write_systems(path, list(split.train))
    return path, list(split.validation)


def one(pool: str, strategy: str, seed: int) -> dict[str, Any]:
    """Test errors after each round."""
    folder = WORK / "active" / pool
    path, test = frames(pool, folder)
    recipe = parse_config(ActiveRecipe, {
        **SETTINGS, "pool": str(path), "output": str(folder / f"{strategy.replace(' ', '-')}-{seed}"), "strategy": strategy,
        "seed": seed, "labeler": {"name": "ase", "calculator": "benchmarks.active.Revealed", "arguments": {"path": str(path)}},
    }, where="benchmarks.active")
    outcome = active(recipe)
    models = [recipe.output / f"round-{number:02d}" / "model.sapis" for number in range(len(outcome.rounds))]
    errors = [evaluate(load(model).potential, test) for model in models]
    return {
        "n_labels": [record.result["n_train"] + record.result["n_held"] for record in outcome.rounds],
        "force_rmse_meV_A": [found["force_rmse_meV_A"] for found in errors],
        "energy_rmse_meV_atom": [found["energy_rmse_meV_atom"] for found in errors],
        **{key: sum(record.cost[key] for record in outcome.rounds) for key in ("cpu_seconds", "flops")},
    }


def ratio(runs: dict[str, Any], strategy: str) -> dict[str, float]:
    """Labels that ``strategy`` needs for the last error of the random arm, over those of that arm: by the means over seeds, with
    an interval of 90 % by drawing seeds anew.
    """
    curves = {name: np.log([run["force_rmse_meV_A"] for run in runs[name].values()]) for name in (RANDOM, strategy)}
    n_labels = np.array(next(iter(runs[RANDOM].values()))["n_labels"], dtype=float)
    rng = generator(0, "active")

    def of(means: dict[str, np.ndarray]) -> float:
        target = float(np.exp(means[RANDOM][-1]))
        return labels_needed(n_labels, np.exp(means[strategy]), target) / labels_needed(n_labels, np.exp(means[RANDOM]), target)

    drawn = [of({name: curve[rng.integers(len(curve), size=len(curve))].mean(0) for name, curve in curves.items()})
             for _ in range(N_RESAMPLES)]
    low, high = np.quantile(drawn, [0.05, 0.95], method="nearest")
    return {"ratio": of({name: curve.mean(0) for name, curve in curves.items()}), "low": float(low), "high": float(high)}


def _figure(pool: str, runs: dict[str, Any]) -> None:
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(6, 4))
    for name, seeds in runs.items():
        n_labels = next(iter(seeds.values()))["n_labels"]
        errors = np.array([run["force_rmse_meV_A"] for run in seeds.values()])
        (line,) = ax.loglog(n_labels, errors.mean(0), "o-", label=name)
        ax.fill_between(n_labels, errors.min(0), errors.max(0), alpha=0.15, color=line.get_color())
    ax.set(xlabel="labels", ylabel="force error on unseen frames (meV/Å)", title=pool)
    ax.legend()
    figure.savefig(HERE / "figures" / f"active-{pool}.png", dpi=120, bbox_inches="tight")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("pool", choices=list(FILES))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=[RANDOM, ASKED])
    options = parser.parse_args()
    pool, made_by, watch = options.pool, provenance(), Stopwatch()
    settings = {**SETTINGS, "n_pool": N_POOL, "n_test": N_TEST, "files": FILES[pool]}
    path = HERE / "records" / f"active-{pool}.json"
    runs: dict[str, Any] = {}
    if path.exists() and (known := read_record(path)).input_hash == hash_json(settings):
        runs = known.result["runs"]
    for seed in options.seeds:
        for strategy in options.strategies:
            done = runs.setdefault(strategy, {})
            if str(seed) not in done:
                done[str(seed)] = one(pool, strategy, seed) | {"made_by": made_by}
                ratios = {name: ratio(runs, name) for name in runs if name != RANDOM and runs.get(RANDOM)}
                costs = [run for seeds in runs.values() for run in seeds.values()]
                cost = watch.cost_with(costs)
                write_record(path, Record(path.stem, hash_json(settings), {"runs": runs, "labels_over_random": ratios,
                                                                           "settings": settings, "threads": 1}, cost, made_by))
            errors = done[str(seed)]["force_rmse_meV_A"]
            print(f"{pool}, {strategy}, seed {seed}: " + " ".join(f"{error:.1f}" for error in errors) + " meV/Å", flush=True)
    for name in runs:
        if name != RANDOM and RANDOM in runs:
            print(f"{name}: labels over those at random for the same error: "
                  + "{ratio:.2f} ({low:.2f} to {high:.2f})".format(**ratio(runs, name)))
    _figure(pool, runs)


if __name__ == "__main__":
    main()
