"""Train and measure potentials side by side: ``python -m benchmarks.peers --data 3bpa --cpu-seconds 900``.

Runs what is missing (one process at a time; the same command goes on after a stop), prints the table, and writes the record and
the figure. Work is under ``runs/peers``; rows that cannot or shall not run here stay as the record has them.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console

from benchmarks.peers.datasets import CUTOFF, DATA, FILES, make_dataset, to_frame, unlabelled
from benchmarks.peers.figure import draw
from benchmarks.peers.jobs import ROOT, Entry, chosen, done, identity_of, read_entries
from benchmarks.peers.protocol import Problem, write_problem
from benchmarks.peers.table import inference_table, passed, training_table
from sapis.core.errors import SapisError
from sapis.core.files import hash_json
from sapis.core.records import Record, provenance, read_record, write_record
from sapis.data.formats import read_systems
from sapis.data.system import System

WORK = ROOT / "runs" / "peers"
RECORDS = ROOT / "benchmarks" / "records"
FIGURES = ROOT / "benchmarks" / "figures"
TIMED = {"molecule-27": ("3bpa/test_300K.extxyz.gz", 1), "water-192": ("water_pbe0ts/water_pbe0ts.extxyz.gz", 1),
         "water-1536": ("water_pbe0ts/water_pbe0ts.extxyz.gz", 2)}
MEAN_NEIGHBORS = 20.0  # only a scale


def train(entries: list[Entry], only: set[str], data: str, cpu_seconds: float, seeds: list[int]) -> None:
    """Every entry of ``only`` with every seed; table, record and figure of all entries that are done."""
    name = f"peers-{data}-{cpu_seconds:g}s"
    dataset = make_dataset(data, WORK / data)
    inputs = {"data": dataset.hashes, "cpu_seconds": cpu_seconds}
    job = {"problem": dataset.problem, "files": dataset.files, "cpu_seconds": cpu_seconds}
    rows, before = [], _rows_before(name)
    for seed in seeds:
        for entry in (entry for entry in entries if not entry.is_inference_only):
            module, own = "ours" if entry.is_ours else "train", inputs | {"seed": seed}
            record = done(f"{name}: {entry.name}, seed {seed}", entry, module, job | {"seed": seed},
                          WORK / name / f"{entry.name}-seed{seed}", own, may_run=entry.name in only)
            known = {"seed": seed, "recipe": entry.recipe, "options": entry.options}
            rows += _row(entry, known, record, before.get(identity_of(entry, module, own)))
    _keep(name, rows, inputs | {"seeds": seeds, "threads": 1}, passed_by_sapis=passed(rows))
    if rows:
        Console(width=200).print(training_table(rows, f"{data}: {cpu_seconds:g} CPU seconds of training on one core"))
        draw(rows, FIGURES / f"{name}.png", f"{data}: {cpu_seconds:g} CPU seconds on one core, one protocol for all")


def infer(entries: list[Entry], only: set[str]) -> None:
    """Time and memory of every entry of ``only`` on every structure; table and record of all that are done."""
    rows, before = [], _rows_before("peers-inference")
    timed = [entry for entry in entries if "-" not in entry.name]  # NAME-RECIPE is the same network
    for case, (source, repeats) in TIMED.items():
        frames = read_systems(DATA / source)[:1]
        atoms = frames[0].without_labels().to_atoms().repeat(repeats)
        system = unlabelled(System.from_atoms(atoms))
        elements = tuple(sorted(set(system.numbers.tolist())))
        frame = to_frame(system, dict.fromkeys(elements, 0.0))
        problem = WORK / "inference" / f"{case}.npz"
        write_problem(problem, Problem(elements, 1.0, MEAN_NEIGHBORS, CUTOFF, {"train": [frame]}))
        job = {"problem": problem, "structure": DATA / source, "repeats": repeats, "is_checked": repeats == 1}
        for entry in timed:
            own = replace(entry, options={}) if entry.is_ours else entry
            module, inputs = "infer_ours" if entry.is_ours else "infer", {"structure": system.structure_hash()}
            record = done(f"{case}: {entry.name}", own, module, job, WORK / "inference" / f"{case}-{entry.name}", inputs,
                          may_run=entry.name in only)
            rows += _row(entry, {"case": case}, record, before.get(identity_of(own, module, inputs)))
    _keep("peers-inference", rows, {"cases": list(TIMED), "threads": 1, "seed": 0})
    if rows:
        Console(width=160).print(inference_table(rows))


def _rows_before(name: str) -> dict[str, dict[str, Any]]:
    """What the record has of earlier calls, in other clones too, by what it depends on."""
    path = RECORDS / f"{name}.json"
    return {row["identity"]: row for row in read_record(path).result["rows"] if "identity" in row} if path.exists() else {}


def _row(entry: Entry, known: dict[str, Any], record: Record | None, before: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The row of a job, from its record or as it was before; none if there is neither."""
    if record is None:
        return [before] if before else []
    return [{"peer": entry.name, **known, **record.result, "cost": record.cost, "made_by": record.provenance,
             "identity": record.input_hash}]


def _keep(name: str, rows: list[dict[str, Any]], inputs: dict[str, Any], **found: Any) -> None:
    cost = {key: sum(row["cost"][key] for row in rows) for key in ("cpu_seconds", "wall_seconds")}
    write_record(RECORDS / f"{name}.json", Record(name, hash_json(inputs), {**inputs, "rows": rows, **found}, cost, provenance()))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", choices=list(FILES), default="3bpa")
    parser.add_argument("--cpu-seconds", type=float, default=900, help="budget of each training")
    parser.add_argument("--only", default="", help="names of peers.yaml, separated by commas")
    parser.add_argument("--seeds", default="0", help="separated by commas")
    parser.add_argument("--inference", action="store_true", help="measure time and memory instead of training")
    options = parser.parse_args()
    try:
        entries = read_entries()
        only = chosen(entries, options.only)
        if options.inference:
            infer(entries, only)
        else:
            train(entries, only, options.data, options.cpu_seconds, [int(seed) for seed in options.seeds.split(",")])
    except SapisError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
