"""The studies of scaling of the lab notes: ``python -m benchmarks.study PROBLEM ARM...``.

``gfn2``: molecules of `sapis data generate organic`, made here first; ``aspirin``: the frames of three splits of the revised MD17
(PBE). Arms are our model to degree 0, 1, 2 and 3, and ``plain``, the Transformer that knows nothing of rotations. All studies of
a problem have the same frames and test set, and each the same CPU seconds, as planned (``plain`` on ``aspirin`` has more).

What is finished is kept in ``benchmarks/records/study-PROBLEM-ARM.json``, from which the same command goes on, in a new clone
too; ``--keep`` only writes that, of what runs elsewhere. ``--foretell`` notes the error of a training with four times the largest
compute, to be committed before the same command makes it.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks import plain_study
from benchmarks.run import DATA, HERE, WORK
from sapis.core.config import parse_config
from sapis.core.files import hash_json, read_json, write_json
from sapis.core.records import Record, Stopwatch, provenance, read_record, write_record
from sapis.data.formats import read_systems, write_systems
from sapis.executors.executor import LocalExecutor
from sapis.generate.organic import LABELS, OrganicConfig, generate
from sapis.pipeline.compare import compare_studies
from sapis.pipeline.floor import known_floor
from sapis.pipeline.scale import (
    LAWS,
    PLAN,
    PREDICTIONS,
    RECORD,
    finished,
    fit_study,
    foretell,
    plan_study,
    read_study,
    run_study,
    trial_folder,
)
from sapis.scaling.plan import StudyConfig, Trial

COMMON: dict[str, Any] = {"widths": [16, 32, 64], "levels": 4, "spacing": 2.7, "fractions": [1.0, 0.25], "seeds": 2}
PROBLEMS: dict[str, dict[str, Any]] = {
    "gfn2": {"cpu_seconds": 2400, "n_validation": 200, "n_test": 1000, "group_by": "smiles",
             "training": {"batch_size": 2, "validations": 2}},
    "aspirin": {"cpu_seconds": 1500, "n_validation": 200, "n_test": 1000, "training": {"batch_size": 2, "validations": 2}},
}
ARMS: dict[str, dict[str, Any]] = {
    "l0": {"model": {"l_max": 0, "l_max_product": 0, "l_max_carried": 0}},
    "l1": {"model": {"l_max": 1, "l_max_product": 1, "l_max_carried": 1}},
    "l2": {"model": {"l_max": 2, "l_max_product": 2, "l_max_carried": 2}},
    "l3": {"model": {"l_max": 3, "l_max_product": 2, "l_max_carried": 2}},
    "plain": {"model": {"architecture": "plain Transformer"}, "training": {"optimizer": "muon", "learning_rate": 0.005}},
}
# Of one arm on one problem: 1,500 CPU seconds do not pay for 400 steps of its largest size at four levels of compute.
OWN: dict[tuple[str, str], dict[str, Any]] = {("aspirin", "plain"): {"cpu_seconds": 2500}}
ORGANIC = {"n_molecules": 2500, "n_clusters": 120}


def data_of(problem: str, workers: int | None) -> Path:
    """The frames of ``problem``, made if they are not there."""
    folder = WORK / "studies" / f"{problem}-data"
    if problem == "gfn2":
        generate(folder, OrganicConfig(**ORGANIC), LocalExecutor(workers))
        return folder / LABELS
    path = folder / "aspirin.extxyz"
    if not path.exists():
        files = [DATA / "rmd17" / f"rmd17_aspirin_split0{k}.npz" for k in (1, 2, 3)]
        frames = {system.structure_hash(): system for file in files for system in read_systems(file)}
        write_systems(path, list(frames.values()))
    return path


def settings_of(problem: str, arm: str) -> StudyConfig:
    """What is planned."""
    common, own = PROBLEMS[problem], ARMS[arm] | OWN.get((problem, arm), {})
    training = {**common["training"], **own.get("training", {})}
    return parse_config(StudyConfig, {**COMMON, **common, **own, "training": training}, where=f"{problem}, {arm}")


def restore(record: Path, folder: Path, data: Path, settings: StudyConfig) -> None:
    """Whatever ``record`` has of a study of these ``settings`` and is not in ``folder`` yet."""
    if not record.exists() or (known := read_record(record)).input_hash != _hash(settings):
        return
    for trial in (Trial(**each) for each in known.result["plan"]["trials"]):
        path = trial_folder(folder, trial) / RECORD
        if trial.name in known.result["trials"] and not path.exists():
            write_json(path, known.result["trials"][trial.name])
    if not (folder / PREDICTIONS).exists():
        write_json(folder / PREDICTIONS, known.result["predictions"])
    if not (folder / PLAN).exists():  # the last: with it the folder is a study
        write_json(folder / PLAN, {**known.result["plan"], "data": str(data.resolve())})


def keep(record: Path, folder: Path, made_by: dict[str, Any], watch: Stopwatch) -> int:
    """Write what is finished, unless the record has more; how many trainings that is."""
    study = read_study(folder)
    done = finished(folder, study)
    before = read_record(record) if record.exists() else None
    if not done or (before is not None and before.input_hash == _hash(study.config) and len(before.result["trials"]) > len(done)):
        return 0
    result = {
        "plan": {key: value for key, value in read_json(folder / PLAN).items() if key != "data"},
        "predictions": read_json(folder / PREDICTIONS) if (folder / PREDICTIONS).exists() else [],
        "trials": {trial.name: read_json(trial_folder(folder, trial) / RECORD) for trial in study.trials if trial.name in done},
        "laws": {key: value for key, value in read_json(folder / LAWS).items() if key != "trials"}
        if (folder / LAWS).exists() else None, "threads": 1}
    cost = watch.cost_with(each.cost for each in done.values())
    write_record(record, Record(record.stem, _hash(study.config), result, cost, made_by))
    return len(done)


def _hash(settings: StudyConfig) -> str:
    return hash_json(settings.model_dump(mode="json"))


def one(problem: str, arm: str, options: argparse.Namespace) -> None:
    """Plan, run, fit and keep one study, as far as ``options`` ask for it."""
    made_by, watch, is_plain = provenance(), Stopwatch(), arm == "plain"
    folder, record = WORK / "studies" / f"{problem}-{arm}", HERE / "records" / f"study-{problem}-{arm}.json"
    if options.keep:
        print(f"{record.name}: {keep(record, folder, made_by, watch)} trainings")
        return
    data, settings = data_of(problem, options.workers), settings_of(problem, arm)
    restore(record, folder, data, settings)
    measure = plain_study.measured if is_plain else None
    study = plan_study(data, folder, settings, measure=measure)
    if options.foretell:
        fit_study(folder, floor=known_floor(folder))
        trial, entry = foretell(folder, floor=known_floor(folder), measure=measure)
        print(f"{arm}: foretold {entry['foretold']:.1f} ({entry['low']:.1f} to {entry['high']:.1f}) meV/Å of {asdict(trial)}")
    else:
        print(f"{arm}: {len(study.trials)} trainings, {sum(trial.cpu_seconds for trial in study.trials):,.0f} CPU-s", flush=True)
        trainer = plain_study.trainer if is_plain else None
        _, failures = run_study(folder.resolve(), LocalExecutor(options.workers), trainer=trainer)
        for name, failure in failures.items():
            print(f"{arm}, {name}: {failure.kind}: {failure.reason}")
        _, found = fit_study(folder, floor=known_floor(folder))
        for each in found["held_out"]:
            print(f"{arm}: foretold {each['foretold']:.1f} ({each['low']:.1f} to {each['high']:.1f}), measured "
                  f"{each['measured']:.1f} meV/Å: {each['relative_error']:+.1%}")
    keep(record, folder, made_by, watch)


def figure(name: str, first: str, result: dict[str, Any]) -> None:
    """The trainings and laws of all arms, and how many times the compute of ``first`` the others need, as a picture."""
    import matplotlib.pyplot as plt
    import numpy as np

    drawing, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for place, (arm, found) in enumerate(result["studies"].items()):
        colour, curve = f"C{place}", found["curve"]
        left.plot(found["trainings"]["flops"], found["trainings"]["loss"], ".", color=colour, alpha=0.5)
        left.plot(curve["flops"], curve["loss"], color=colour, label=arm)
        left.fill_between(curve["flops"], curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)
        if arm in result["comparisons"]:
            each = {key: np.array(values, dtype=float) for key, values in result["comparisons"][arm].items()}
            value, low, high = np.where(np.isfinite(each["ratio"]), each["ratio"], np.nan)
            measured = each["is_measured"] > 0
            right.plot(each["losses"], value, ":", color=colour)
            right.plot(each["losses"][measured], value[measured], color=colour, label=arm)
            right.fill_between(each["losses"], low, high, color=colour, alpha=0.15, linewidth=0)
    left.set(xscale="log", yscale="log", xlabel="FLOPs of training", ylabel="force error on test frames (meV/Å)")
    right.set(xscale="log", yscale="log", xlabel="force error (meV/Å); dotted: extrapolated",
              ylabel=f"times the compute of {first}")
    right.axhline(1, color="grey", linewidth=0.8)
    right.invert_xaxis()
    left.legend()
    right.legend()
    drawing.savefig(HERE / "figures" / f"{name}.png", dpi=120)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("problem", choices=list(PROBLEMS))
    parser.add_argument("arms", nargs="+", choices=list(ARMS))
    parser.add_argument("--keep", action="store_true", help="only write the record")
    parser.add_argument("--foretell", action="store_true", help="note a prediction; the next call makes the training")
    parser.add_argument("--compare", action="store_true", help="also compare the arms, the first with each other one")
    parser.add_argument("--workers", type=int, default=None)
    options = parser.parse_args()
    for arm in options.arms:
        one(options.problem, arm, options)
    if options.compare:
        made_by, watch = provenance(), Stopwatch()
        folders = [WORK / "studies" / f"{options.problem}-{arm}" for arm in options.arms]
        name = f"study-{options.problem}"
        for arm, found in compare_studies(folders, WORK / "studies" / name):
            rows = zip(found.losses, *found.ratio, found.is_measured, strict=True)
            print(arm, *(f"{loss:.0f} meV/Å: {ratio:.1f} ({low:.1f} to {high:.1f}){'' if is_measured else ', extrapolated'}"
                         for loss, ratio, low, high, is_measured in rows), sep="\n  ")
        result = read_json(WORK / "studies" / f"{name}.json")
        figure(name, f"{options.problem}-{options.arms[0]}", result)
        write_record(HERE / "records" / f"{name}.json",
                     Record(name, hash_json(options.arms), {**result, "threads": 1}, watch.cost(), made_by))


if __name__ == "__main__":
    main()
