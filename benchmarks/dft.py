"""Density functional theory from end to end: ``python -m benchmarks.dft`` runs `recipes/glycine-dft.yaml` and judges its model.

The test frames are from dynamics of their own at 600 K, driven by GFN2-xTB and labelled by the functional. Beside it stand new
models that learn from as many labels of the functional at random, of frames of the same temperatures, without cheap labels, for
as many FLOPs of training. The time is that of all steps of the run, if none was stopped: of one that was, its last call counts.
Writes ``benchmarks/records/dft-glycine.json``; the same command goes on after a stop.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.run import HERE, WORK
from sapis.api import load
from sapis.core.errors import DataError
from sapis.core.files import hash_json
from sapis.core.records import Record, Stopwatch, provenance, read_record, write_record
from sapis.core.seeds import derive_seed
from sapis.data.system import System, hash_systems
from sapis.evaluate.errors import evaluate
from sapis.executors.executor import LocalExecutor
from sapis.labelers.labeler import LabelerConfig
from sapis.labelers.labelling import isolated_atom_energies, label_at
from sapis.pipeline.active import active
from sapis.pipeline.active_config import ActiveRecipe, read_active_recipe
from sapis.simulate.candidates import make_candidates
from sapis.simulate.structures import load_structure
from sapis.training.fit import new_potential
from sapis.training.loop import Training

RECIPE = HERE.parent / "recipes" / "glycine-dft.yaml"
TEST_K, N_TEST, SEED = 600.0, 100, 20261126
COST = ("cpu_seconds", "wall_seconds", "flops")


def sampled(recipe: ActiveRecipe, temperatures_K: list[float], n: int, seed: int, folder: Path) -> list[System]:
    """Frames of dynamics driven by GFN2-xTB."""
    assert recipe.system is not None
    starts = load_structure(recipe.system.smiles, n_conformers=recipe.candidates.n_conformers, seed=seed)
    how = recipe.candidates.without_doubt().model_copy(update={"decorrelation_fs": 50.0})
    return make_candidates(starts, LabelerConfig(), temperatures_K, n, how, seed, folder, recipe.workers)[0]


def labelled(recipe: ActiveRecipe, systems: list[System], folder: Path) -> tuple[list[System], float]:
    """Those whose label did not fail, and the CPU seconds of the labels."""
    done, outcomes = label_at(folder / "labels.store", systems, recipe.labeler, LocalExecutor(recipe.workers))
    found = [replace(each, level="") for each in outcomes if isinstance(each, System)]
    if len(found) < 0.9 * len(systems):
        raise DataError(expected="labels of nine tenths of the frames", received=f"{len(found)} of {len(systems)}",
                        where=str(folder), todo="look at the journal of the store")
    return found, done.total_cpu_seconds


def labels_at_random(recipe: ActiveRecipe, folder: Path) -> tuple[list[System], float]:
    """As many as the recipe may ask for, in random order, and their CPU seconds."""
    n, seed = recipe.n_start + recipe.rounds * recipe.n_per_round, derive_seed(SEED, "random")
    frames, cpu_seconds = labelled(recipe, sampled(recipe, recipe.temperatures_K, n, seed, folder), folder)
    return [frames[k] for k in np.random.default_rng(seed).permutation(len(frames))], cpu_seconds


def at_random(recipe: ActiveRecipe, n_labels: int, flops: float, seeds: Sequence[int], folder: Path,
              ) -> tuple[list[Any], dict[str, float]]:
    """Models of random labels alone, one for each seed, and what labels and trainings took."""
    frames, label_seconds = labels_at_random(recipe, folder)
    frames = frames[:n_labels]
    held = frames[:: round(1 / recipe.random_fraction)]
    train = [frame for k, frame in enumerate(frames) if k % round(1 / recipe.random_fraction)]
    elements = {int(z) for frame in frames for z in frame.numbers}
    isolated = isolated_atom_energies(recipe.labeler, elements, LocalExecutor(recipe.workers))
    models, spent = list[Any](), {"label_cpu_seconds": label_seconds, "n_labels": float(len(frames)), "cpu_seconds": 0.0,
                                  "flops": 0.0}
    for seed in seeds:
        settings = recipe.training.model_copy(update={"epochs": None, "flops": flops, "seed": seed})
        potential, _ = new_potential(train, {"": isolated}, recipe.model, precision=settings.precision, seed=seed)
        run = Training(potential, train, held, settings, folder / f"training-{seed}")
        progress = run.run()
        models.append(run.potential)
        spent["cpu_seconds"] += progress.cpu_seconds
        spent["flops"] += progress.flops
    return models, spent


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the models of labels at random")
    seeds = parser.parse_args().seeds
    made_by, watch, folder = provenance(), Stopwatch(), WORK / "dft-glycine"
    recipe = read_active_recipe(RECIPE).model_copy(update={"output": folder / "active"})
    test, _ = labelled(recipe, sampled(recipe, [TEST_K], N_TEST, derive_seed(SEED, "test"), folder / "test"), folder / "test")
    outcome = active(recipe)
    n_labels = sum(record.result["n_train"] + record.result["n_held"] for record in outcome.rounds[-1:])
    costs = _costs(outcome.model.parent)
    took = sum(each["wall_seconds"] for each in costs.values())
    flops = sum(each["flops"] for each in costs.values())  # of all trainings, those of cheap labels and differences too
    random, spent = at_random(recipe, n_labels, flops, seeds, folder / "random")
    figures = {}
    for name, potential in (("active", load(outcome.model).potential), *(
            (f"random, seed {seed}", model) for seed, model in zip(seeds, random, strict=True))):
        level = next(iter(potential.conditions.levels), "")
        errors = evaluate(potential, [frame.at_level(level) for frame in test])
        figures[name] = {key: errors[key] for key in ("n", "force_rmse_meV_A", "energy_rmse_meV_atom")}
        print(f"{name}: {errors['force_rmse_meV_A']:.1f} meV/Å, {errors['energy_rmse_meV_atom']:.2f} meV per atom")
    errors_at_random = [figures[f"random, seed {seed}"]["force_rmse_meV_A"] for seed in seeds]
    ratio = figures["active"]["force_rmse_meV_A"] / float(np.exp(np.log(errors_at_random).mean()))
    print(f"active over random (geometric mean): {ratio:.2f}; {n_labels} labels; {took / 60:.0f} min of wall time")
    result = {"figures": figures, "ratio": ratio, "n_labels": n_labels, "active_costs": costs, "random_costs": spent,
              "wall_seconds": took, "test": hash_systems(test), "rounds": [record.result for record in outcome.rounds],
              "reason": outcome.reason, "recipe": recipe.model_dump(mode="json", exclude={"output"})}
    cost = {**watch.cost(), "cpu_seconds": sum(each["cpu_seconds"] for each in costs.values())}
    write_record(HERE / "records" / "dft-glycine.json",
                 Record("dft-glycine", hash_json({"recipe": result["recipe"], "seed": SEED}), result, cost, made_by))


def _costs(folder: Path) -> dict[str, dict[str, float]]:
    """Of each kind of step of a finished run."""
    found: dict[str, dict[str, float]] = {}
    for kind, records in (("", folder / "records"), ("breadth ", folder / "breadth" / "records")):
        for path in sorted(records.glob("*.json")):
            record, name = read_record(path), kind + path.stem.rpartition("-")[2]
            so_far = found.setdefault(name, dict.fromkeys(COST, 0.0))
            for key in COST:
                so_far[key] += record.cost.get(key, 0.0)
    return found


if __name__ == "__main__":
    main()
