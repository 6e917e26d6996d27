"""Floors that are known, and what scaling laws find: ``python -m benchmarks.teacher`` trains students of a teacher.

The teacher is a model of acetylacetone, whose students can become as good as they like. It labels frames of molecular dynamics
and rattled copies of these, once exactly and once with noise on each force component: then no test error falls below that noise.
Writes ``benchmarks/records/teacher.json``; the same command goes on after a stop.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.run import DATA, HERE, WORK
from sapis.api import load
from sapis.core.files import hash_json
from sapis.core.records import Record, Stopwatch, provenance, write_record
from sapis.core.seeds import generator
from sapis.data.formats import read_systems, write_systems
from sapis.data.system import System
from sapis.executors.executor import LocalExecutor
from sapis.pipeline.scale import finished, fit_study, plan_study, read_study, run_study
from sapis.scaling.plan import StudyConfig

TEACHER = HERE / "models" / "acac-900s.sapis"
FILES = ("acac/train_300K.extxyz.gz", "acac/test_MD_300K.extxyz.gz", "acac/test_MD_600K.extxyz.gz")
N_COPIES, RATTLE = 2, 0.03  # rattled copies of each frame; Å
NOISE = 0.025  # eV/Å
COST = ("cpu_seconds", "flops")
SETTINGS: dict[str, Any] = {
    "widths": (16, 32, 48), "levels": 4, "spacing": 3.0, "fractions": (1.0, 0.25), "seeds": 2, "cpu_seconds": 1500.0,
    "n_validation": 100, "n_test": 500, "training": {"batch_size": 2, "validations": 2},
}


def taught() -> list[System]:
    """Frames with the labels of the teacher."""
    random, found = generator(0, "rattle"), []
    for system in (system for file in FILES for system in read_systems(DATA / file)):
        copies = [system.positions + RATTLE * random.standard_normal(system.positions.shape) for _ in range(N_COPIES)]
        found += [replace(system, positions=positions, energy=None, forces=None) for positions in (system.positions, *copies)]
    labels = load(TEACHER).predict(found)
    return [replace(system, energy=label.energy, forces=label.forces) for system, label in zip(found, labels, strict=True)]


def study(name: str, systems: list[System], settings: dict[str, Any], workers: int) -> dict[str, Any]:
    """The floor by the law that students ask for, ``(value, low, high)``, and what was spent."""
    folder = WORK / "teacher" / name
    data = folder.with_suffix(".extxyz")
    if not data.exists():
        write_systems(data, systems)
    plan_study(data, folder, StudyConfig(**settings))
    records, failures = run_study(folder, LocalExecutor(workers))
    if failures:
        raise SystemExit(f"{name}: {next(iter(failures.values())).reason}")
    laws, _ = fit_study(folder)
    law = next(law for law in laws.joint if law.form.has_floor)
    done = finished(folder, read_study(folder)).values()
    return {
        "form": law.form.name, "floor": law.intervals["floor"], "parameters": law.intervals, "n_trainings": len(records),
        "lowest": float(laws.points.loss.min()), **{key: sum(record.cost[key] for record in done) for key in COST},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    made_by, watch = provenance(), Stopwatch()
    exact = taught()
    random = generator(0, "noise")
    noisy = [replace(system, forces=system.forces + NOISE * random.standard_normal(system.positions.shape)) for system in exact
             if system.forces is not None]
    cases = {}
    for name, systems, truth in (("exact", exact, 0.0), ("noisy", noisy, 1e3 * NOISE)):
        found = cases[name] = study(name, systems, SETTINGS, options.workers)
        value, low, high = found["floor"]
        # No interval ends at zero, for the floor's logarithm is fitted: a hundredth of the least error is as good as none.
        found["truth"], found["holds"] = truth, low <= max(truth, 0.01 * found["lowest"]) and truth <= high
        print(f"{name}: floor {value:.3g} ({low:.3g} to {high:.3g}) meV/Å, planted {truth:g}, least error {found['lowest']:.3g}: "
              f"{'holds' if found['holds'] else 'FAILS'}", flush=True)
    cost = watch.cost_with(cases.values())
    result = {"cases": cases, "settings": SETTINGS, "noise_meV_A": 1e3 * NOISE, "seed": 0, "threads": 1}
    inputs = hash_json({**SETTINGS, "noise": NOISE})
    write_record(HERE / "records" / "teacher.json", Record("teacher", inputs, result, cost, made_by))


if __name__ == "__main__":
    main()
