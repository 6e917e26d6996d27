"""Labels that a model asks for, against as many at random: ``python -m benchmarks.active POOL``.

``aspirin``: frames of the revised MD17; ``qm7x``: many molecules, displaced. `sapis active` chooses from the pool and is told the
labels it asks for; every model of every round is tested on frames that were in no pool, of qm7x of molecules that were in none.
All arms have the same numbers of labels, rounds and passes over them; a fifth of the labels is at random and validates in each.

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

from benchmarks.run import DATA, HERE, WORK, known_runs
from sapis.api import load
from sapis.core.config import parse_config
from sapis.core.files import hash_json
from sapis.core.records import Record, Stopwatch, provenance, write_record
from sapis.core.seeds import generator
from sapis.data.formats import read_systems, write_systems
from sapis.data.splits import random_split
from sapis.data.system import System, each_once
from sapis.evaluate.errors import evaluate
from sapis.model.config import ModelConfig
from sapis.pipeline.active import active
from sapis.pipeline.active_config import ActiveRecipe
from sapis.training.config import TrainingConfig
from sapis.uncertainty.learning_curve import labels_needed

RANDOM, ASKED = "random", "largest and diverse"
STRATEGIES = (RANDOM, ASKED, "largest", "diverse", "information")
FILES = {"aspirin": [f"rmd17/rmd17_aspirin_split0{k}.npz" for k in (1, 2, 3)], "qm7x": ["qm7x_2500/qm7x_2500.extxyz.gz"]}
N_POOL, N_TEST = 2000, 500
SETTINGS: dict[str, Any] = {
    "n_start": 20, "rounds": 8, "n_per_round": 20, "random_fraction": 0.2, "model": {"preset": "small"}, "workers": 1,
    "uncertainty": {"method": "distance"}, "training": {"epochs": 40, "validations": 10},
}
N_RESAMPLES = 2000
INTERVAL = (0.05, 0.95)  # of draws of the seeds: with five of them narrower than it should be


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
    everything = each_once(system for file in FILES[pool] for system in read_systems(DATA / file))
    if pool == "qm7x":
        rest, test = _molecules_apart(everything)
        chosen = random_split(rest, min(N_POOL, len(rest)), 0, 0).train
    else:
        split = random_split(everything, N_POOL, N_TEST, 0)
        chosen, test = split.train, list(split.validation)
    path = folder / "pool.extxyz"
    write_systems(path, list(chosen))
    return path, test


def _molecules_apart(systems: list[System]) -> tuple[list[System], list[System]]:
    """Frames of most molecules, and `N_TEST` or a few more of all others. Those of a molecule follow one another."""
    starts = [k for k, system in enumerate(systems) if k == 0 or not np.array_equal(system.numbers, systems[k - 1].numbers)]
    molecules = [systems[start:stop] for start, stop in zip(starts, [*starts[1:], len(systems)], strict=True)]
    rest, test = list[System](), list[System]()
    for number in generator(0, "molecules").permutation(len(molecules)):
        part = test if len(test) < N_TEST else rest
        part += molecules[number]
    return rest, test


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
    """Labels that ``strategy`` needs for the last error of the random arm, over those of that arm: by the means over the seeds
    that both have, with an interval of 90 % by drawing seeds anew.
    """
    seeds = [seed for seed in runs[RANDOM] if seed in runs[strategy]]
    curves = {name: np.log([runs[name][seed]["force_rmse_meV_A"] for seed in seeds]) for name in (RANDOM, strategy)}
    n_labels = np.array(next(iter(runs[RANDOM].values()))["n_labels"], dtype=float)
    rng = generator(0, "active")

    def of(means: dict[str, np.ndarray]) -> float:
        target = float(np.exp(means[RANDOM][-1]))
        return labels_needed(n_labels, np.exp(means[strategy]), target) / labels_needed(n_labels, np.exp(means[RANDOM]), target)

    # Draws are of both arms alike: a seed begins both with the same labels.
    draws = rng.integers(len(seeds), size=(N_RESAMPLES, len(seeds)))
    drawn = [of({name: curve[chosen].mean(0) for name, curve in curves.items()}) for chosen in draws]
    low, high = np.quantile(drawn, INTERVAL, method="nearest")
    return {"ratio": of({name: curve.mean(0) for name, curve in curves.items()}), "low": float(low), "high": float(high)}


def _figure(pool: str, runs: dict[str, Any]) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator

    figure, ax = plt.subplots(figsize=(6, 4))
    for name, seeds in runs.items():
        n_labels = next(iter(seeds.values()))["n_labels"]
        errors = np.array([run["force_rmse_meV_A"] for run in seeds.values()])
        (line,) = ax.loglog(n_labels, np.exp(np.log(errors).mean(0)), "o-", label=name)
        ax.fill_between(n_labels, errors.min(0), errors.max(0), alpha=0.15, color=line.get_color())
    decades = [k * 10**power for power in range(4) for k in (1, 1.5, 2, 3, 4, 5, 7)]
    for axis, ticks in ((ax.xaxis, n_labels[::2]), (ax.yaxis, decades)):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    ax.set(xlabel="labels", ylabel="test force RMSE (meV/Å)", title=f"{pool}: geometric means and ranges of the seeds")
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
    defaults = {"training": TrainingConfig(**SETTINGS["training"]), "model": ModelConfig(**SETTINGS["model"])}
    settings = {**SETTINGS, **{name: each.model_dump(mode="json") for name, each in defaults.items()}, "n_pool": N_POOL,
                "n_test": N_TEST, "files": FILES[pool]}
    path = HERE / "records" / f"active-{pool}.json"
    runs = known_runs(path, hash_json(settings), "runs")
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
