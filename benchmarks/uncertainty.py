"""All uncertainties on one backbone: ``python -m benchmarks.uncertainty PROBLEM``.

``acac`` and ``3bpa``: trained at 300 K; ``qm7x``: many molecules. Tested on 400 frames where the model is at home, and on as many
elsewhere: at 600 K (acac), of formulas that it has not seen (qm7x); of 3BPA the shared data have 300 K only. Every method has the
same FLOPs of training: dropout a training of its own, an ensemble four of a quarter each, all others one between them. Beside
these stands an ensemble of the seeds' own models, at as many times the cost; it is calibrated on half of the frames at home, so
its coverage there is not to be compared.

What is judged was settled beforehand: forces; coverage at home by the conformal bound of 90 %, mean over the seeds; ranks
elsewhere of the method with the largest Spearman correlation there. Deviations of ``distance`` and ``evidential`` are alike in
all directions.

Writes ``benchmarks/records/uncertainty-PROBLEM.json`` after each seed; the same command goes on after a stop, and does no seed
again that the record has.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.run import DATA, HERE, WORK, known_runs
from sapis.api import load, save
from sapis.core.files import hash_json
from sapis.core.records import Record, Stopwatch, provenance, write_record
from sapis.core.seeds import derive_seed, generator
from sapis.data.formats import read_systems
from sapis.data.reference import Energies, isolated_by_level
from sapis.data.splits import random_split
from sapis.data.system import System, hash_systems
from sapis.model.config import ModelConfig
from sapis.model.potential import TransformerPotential
from sapis.training.config import TrainingConfig
from sapis.training.fit import new_potential
from sapis.training.loop import Training
from sapis.uncertainty.assess import assess, calibrate
from sapis.uncertainty.config import UncertaintyConfig
from sapis.uncertainty.ensemble import Ensemble
from sapis.uncertainty.make import uncertain
from sapis.uncertainty.uncertain import Uncertain

METHODS = ("distance", "laplace", "shallow", "evidential", "dropout", "ensemble")
TRAINED = ("distance", "dropout", "ensemble")  # the first shares its training with the rest
OF_SEEDS = "ensemble of the seeds"
FLOPS, MEMBERS, PRESET = 6e12, 4, "small"
N_HELD, N_ELSEWHERE, N_TRAIN = 100, 300, 1500
N_HELD_OF_MANY = 250  # of many molecules
N_TEST = 400  # frames of each test, evenly chosen
N_TO_TIME, N_TIMES = 20, 10
DRAWN = ("shallow", "dropout")  # methods whose members cost no training
N_DRAWN = 16
PROBLEMS: dict[str, dict[str, str]] = {
    "acac": {"train": "acac/train_300K.extxyz.gz", "home": "acac/test_MD_300K.extxyz.gz",
             "elsewhere": "acac/test_MD_600K.extxyz.gz", "isolated": "acac/isolated_atoms.extxyz.gz"},
    "3bpa": {"train": "3bpa/train_300K.extxyz.gz", "home": "3bpa/test_300K.extxyz.gz", "isolated": "3bpa/iso_atoms.extxyz.gz"},
    "qm7x": {"train": "qm7x_2500/qm7x_2500.extxyz.gz"},
}
SHOWN = ("rmse", "std", "nll", "crps", "miscalibration_area", "ence", "spearman", "spearman_ceiling", "auroc_worst_decile",
         "auroc_ceiling", "auroc_shifted", "coverage_50", "coverage_90", "coverage_95", "conformal_90", "risk_coverage_area")


def parts_of(problem: str, seed: int) -> tuple[dict[str, list[System]], Energies]:
    """Frames to train, to hold out, and to test on; energies of isolated atoms."""
    files = PROBLEMS[problem]
    systems = read_systems(DATA / files["train"])
    if problem == "qm7x":
        elsewhere, known = _new_formulas(systems, seed)
        split = random_split(known, N_TRAIN, N_HELD_OF_MANY, seed)
        return {"train": list(split.train), "held": list(split.validation), "home": _some(split.test),
                "elsewhere": _some(elsewhere)}, {}
    split = random_split(systems, len(systems) - N_HELD, N_HELD, seed)
    parts = {"train": list(split.train), "held": list(split.validation)}
    for name in ("home", "elsewhere"):
        if name in files:
            parts[name] = _some(read_systems(DATA / files[name]))
    return parts, isolated_by_level(read_systems(DATA / files["isolated"]))


def _some(systems: Sequence[System]) -> list[System]:
    """`N_TEST` of them, evenly, or all."""
    return [systems[k] for k in np.linspace(0, len(systems) - 1, min(len(systems), N_TEST)).round().astype(int)]


def _new_formulas(systems: Sequence[System], seed: int) -> tuple[list[System], list[System]]:
    """Frames of formulas drawn at random, and all others, which still have every element."""
    elements = {int(z) for system in systems for z in system.numbers}
    formulas = sorted({system.formula for system in systems})
    new: set[str] = set()
    for formula in generator(seed, "formulas").permutation(formulas):
        rest = [system for system in systems if system.formula not in new | {formula}]
        if {int(z) for system in rest for z in system.numbers} == elements:
            new.add(str(formula))
        if sum(system.formula in new for system in systems) >= N_ELSEWHERE:
            break
    return [system for system in systems if system.formula in new], [system for system in systems if system.formula not in new]


def one_seed(problem: str, seed: int) -> dict[str, Any]:
    """By method, scores on each test and costs."""
    parts, isolated = parts_of(problem, seed)
    folder = WORK / "uncertainty" / problem / str(seed)

    def trained(name: str, own_seed: int, **changes: Any) -> tuple[TransformerPotential, dict[str, float]]:
        config = TrainingConfig(**{"flops": FLOPS, "seed": own_seed, **changes})
        potential, _ = new_potential(parts["train"], isolated, ModelConfig(preset=PRESET), precision="float32", seed=own_seed)
        run = Training(potential, parts["train"], parts["held"], config, folder / name)
        spent = run.run()
        return run.potential, {"cpu_seconds": spent.cpu_seconds, "flops": spent.flops, "n_steps": spent.step}

    plain, cost = trained("plain", seed)
    save(folder / "plain.sapis", plain, {})
    found: dict[str, Any] = {}
    for method in METHODS:
        costs, model = [cost], plain
        if method == "dropout":
            rate = _config(method).dropout
            model, own = trained(method, seed, dropout=rate)
            costs = [own]
        elif method == "ensemble":
            costs = []

        def member(number: int, costs: list[dict[str, float]] = costs) -> TransformerPotential:
            potential, own = trained(f"member-{number}", derive_seed(seed, "member", number), flops=FLOPS / MEMBERS)
            costs.append(own)
            return potential

        if method == "ensemble":
            model = member(0)
        watch, config = Stopwatch(), _config(method)
        doubtful = uncertain(model, config, parts["train"], parts["held"], seed=seed,
                             others=lambda: [member(number) for number in range(1, MEMBERS)])
        fitting = watch.cost()["cpu_seconds"] - sum(each["cpu_seconds"] for each in costs[1:])
        found[method] = judged(doubtful, plain, parts) | {
            "training": {key: sum(each[key] for each in costs) for key in costs[0]},
            "fitting_cpu_seconds": fitting if method != "ensemble" else 0.0}
    return {"methods": found, "data": {name: {"n": len(part), "hash": hash_systems(part)} for name, part in parts.items()}}


def _config(method: Any) -> UncertaintyConfig:
    return UncertaintyConfig(method=method, members=N_DRAWN if method in DRAWN else MEMBERS)


def judged(potential: Uncertain, plain: TransformerPotential, parts: dict[str, list[System]]) -> dict[str, Any]:
    """Scores on the tests, and what an uncertainty costs beside an evaluation of one model, frame by frame."""
    tests = {name: parts[name] for name in ("home", "elsewhere") if name in parts}
    posteriors = {name: potential.posterior(systems) for name, systems in tests.items()}
    scored: dict[str, Any] = {}
    for name, systems in tests.items():
        scored[name] = assess(posteriors[name], systems, own=posteriors["home"] if name != "home" else (),
                              calibrations=potential.calibrations)
    return {"scores": scored, "overhead": _overhead(potential.posterior, plain.predict, tests["home"][:N_TO_TIME])}


def _overhead(one: Callable[[list[System]], Any], other: Callable[[list[System]], Any], frames: Sequence[System]) -> float:
    """CPU seconds of ``one`` over those of ``other``, in turn on each frame: the median of the least times."""
    ratios = []
    for frame in frames:
        least = [float("inf"), float("inf")]
        for _ in range(N_TIMES):
            for place, call in enumerate((one, other)):
                start = time.process_time()
                call([frame])
                least[place] = min(least[place], time.process_time() - start)
        ratios.append(least[0] / least[1])
    return float(np.median(ratios))


def of_seeds(problem: str, seeds: Sequence[int]) -> dict[str, Any] | None:
    """The ensemble of the seeds' own models, where these are at hand and were trained on one problem."""
    files = [WORK / "uncertainty" / problem / str(seed) / "plain.sapis" for seed in seeds]
    if problem == "qm7x" or len(files) < 2 or not all(file.exists() for file in files):
        return None  # the seeds of qm7x differ in what is elsewhere
    members = [load(file).single for file in files]
    parts, _ = parts_of(problem, seeds[0])
    # Each has seen the frames that another held out: the frames at home calibrate, one half of them, and the other tests.
    calibrating, parts["home"] = parts["home"][::2], parts["home"][1::2]
    ensemble = Ensemble(members)
    ensemble.calibrations = calibrate(ensemble.posterior(calibrating), calibrating)
    return judged(ensemble, members[0], parts)


def table(seeds: dict[str, Any]) -> dict[str, Any]:
    """Means and spreads over the seeds, by method, test and target."""
    found: dict[str, Any] = {}
    for method in METHODS:
        rows = [each["methods"][method] for each in seeds.values()]
        found[method] = {"overhead": float(np.mean([row["overhead"] for row in rows]))}
        for test in rows[0]["scores"]:
            for target in rows[0]["scores"][test]:
                # As numbers: what is not one is null in a record.
                values = {key: np.array([row["scores"][test][target][key] for row in rows], dtype=float) for key in SHOWN
                          if key in rows[0]["scores"][test][target]}
                found[method][f"{test} {target}"] = {
                    key: [float(each.mean()), float(each.std(ddof=min(1, len(each) - 1)))] for key, each in values.items()}
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("problem", choices=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    problem, made_by, watch = options.problem, provenance(), Stopwatch()
    settings = {"problem": PROBLEMS[problem], "flops": FLOPS, "model": ModelConfig(preset=PRESET).model_dump(mode="json"),
                "n_held": N_HELD_OF_MANY if problem == "qm7x" else N_HELD, "n_elsewhere": N_ELSEWHERE, "n_train": N_TRAIN,
                "n_test": N_TEST, "training": TrainingConfig(flops=FLOPS).model_dump(mode="json"),
                "methods": {method: _config(method).model_dump(mode="json") for method in METHODS}}
    path = HERE / "records" / f"uncertainty-{problem}.json"
    seeds = known_runs(path, hash_json(settings))
    for seed in options.seeds:
        if str(seed) in seeds:
            continue
        seeds[str(seed)] = one_seed(problem, seed) | {"made_by": made_by}
        costs = [each["methods"][method]["training"] for each in seeds.values() for method in TRAINED]
        result: dict[str, Any] = {"table": table(seeds), "seeds": seeds, "settings": settings, "threads": 1}
        if (together := of_seeds(problem, [int(each) for each in seeds])) is not None:
            result[OF_SEEDS] = together
        cost = watch.cost_with(costs)
        write_record(path, Record(path.stem, hash_json(settings), result, cost, made_by))
    for method, rows in table(seeds).items():
        print(f"{method}: {rows['overhead']:.2f} times an evaluation")
        for name, scores in rows.items():
            if name != "overhead":
                print(f"  {name}: " + ", ".join(f"{key} {mean:.3g}" for key, (mean, _) in scores.items()))


if __name__ == "__main__":
    main()
