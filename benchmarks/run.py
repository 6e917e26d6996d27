"""Measure one of the benchmarks of definitions.yaml and keep it: ``python -m benchmarks.run NAME``.

Writes ``benchmarks/records/NAME.json`` and, where a model was trained, ``benchmarks/models/NAME.sapis``.
A benchmark is resumable: the same command goes on after a stop (its work is under ``runs/benchmarks/NAME``).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")


from benchmarks import growth as growing
from benchmarks import width
from benchmarks.peak import yardstick
from sapis.api import load
from sapis.core.config import load_yaml, parse_config
from sapis.core.errors import ConfigError
from sapis.core.files import hash_file, hash_json
from sapis.core.records import Record, Stopwatch, provenance, read_record, write_record
from sapis.data.formats import read_systems, write_systems
from sapis.data.splits import random_split
from sapis.data.system import System
from sapis.pipeline.recipe import read_recipe
from sapis.pipeline.run import run as run_recipe
from sapis.pipeline.train import TrainRequest, train_files
from sapis.simulate.md import order_test, run_nve

HERE = Path(__file__).parent
DATA = Path(os.environ.get("SAPIS_SHARED_DATA", HERE.parent.parent / "shared" / "data"))
WORK = HERE.parent / "runs" / "benchmarks"
TRAINING_KEYS = ("n_parameters", "n_steps", "n_epochs", "flops", "backend", "config", "model")


def known_runs(path: Path, input_hash: str, key: str = "seeds") -> dict[str, Any]:
    """What the record at ``path`` has under ``key``, if it is of the same problem and settings; else nothing."""
    if not path.exists() or (record := read_record(path)).input_hash != input_hash:
        return {}
    return dict(record.result[key])


def train(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Train on a published set with a budget of CPU seconds and test."""
    folder = WORK / name
    data, tests = DATA / spec["data"], [DATA / test for test in spec.get("tests", [])]
    validation = None
    if data.suffix == ".npz":
        data, validation, tests = _published_split(data, folder, spec)
    elif spec.get("test_rest"):
        data, validation, tests = _split_once(data, folder, spec)
    values = {key: spec[key] for key in ("model", "training", "level_of_theory") if key in spec}
    request = parse_config(TrainRequest, values, where=f"definitions.yaml: {name}")
    outcome = train_files(
        data, folder, request, validation=validation, n_validation=spec["n_validation"], tests=tests,
        isolated=DATA / spec["isolated"] if "isolated" in spec else None, waived=spec.get("waive", ()),
    )
    _keep_model(outcome.model, name)
    training = outcome.training
    return {
        "errors": outcome.errors, "data": outcome.data, "model_hash": outcome.model_hash, "all_checks_passed": outcome.all_passed,
        "seed": request.training.seed, "threads": request.training.threads,
        "training": {key: training[key] for key in (*TRAINING_KEYS, "history")},
        "cost": outcome.cost,
    }


def _published_split(data: Path, folder: Path, spec: dict[str, Any]) -> tuple[Path, Path, list[Path]]:
    """The first training frames of a split of rMD17, the next ones for validation, and its test frames, written as files."""
    systems = read_systems(data)
    train, test = ([system for system in systems if system.tags["part"] == part] for part in ("train", "test"))
    n_train, n_validation = spec["n_train"], spec["n_validation"]
    return _written(folder, train[:n_train], train[n_train : n_train + n_validation], test=test)


def _split_once(data: Path, folder: Path, spec: dict[str, Any]) -> tuple[Path, Path, list[Path]]:
    """Random training, validation and test frames of one file, written as files."""
    split = random_split(read_systems(data), spec["n_train"], spec["n_validation"], 0)
    return _written(folder, split.train, split.validation, rest=split.test)


def _written(folder: Path, train: Sequence[System], validation: Sequence[System], **tests: Sequence[System],
             ) -> tuple[Path, Path, list[Path]]:
    """Files of the frames to train, to validate and, by name, to test on."""
    parts = {"train": train, "held": validation, **tests}
    paths = {part: folder / f"{part}.extxyz" for part in parts}
    for part, path in paths.items():
        write_systems(path, list(parts[part]))
    return paths["train"], paths["held"], [paths[name] for name in tests]


def demo(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A recipe from end to end, in a folder of its own."""
    recipe = read_recipe(HERE.parent / spec["recipe"]).model_copy(update={"output": WORK / name})
    watch = Stopwatch()
    outcome = run_recipe(recipe)
    records = {step: read_record(WORK / name / "records" / f"{step}.json") for step in
               ("candidates", "labels", "data", "train", "test", "md", "checks")}
    _keep_model(outcome.model, name)
    errors = {part: {key: value for key, value in found.items() if key != "parity"}
              for part, found in records["test"].result["sets"].items()}
    return {
        "errors": errors, "model_hash": outcome.model_hash, "all_checks_passed": outcome.all_passed, "seed": recipe.seed,
        "threads": recipe.training.threads, "data": records["labels"].result["files"],
        "counts": {key: records["data"].result[key] for key in ("n_train", "n_validation", "n_test", "n_ood")},
        "step_costs": {step: record.cost for step, record in records.items()},
        "training": {key: records["train"].result[key] for key in TRAINING_KEYS},
        "cost": {"cpu_seconds": sum(record.cost["cpu_seconds"] for record in records.values()),
                 "wall_seconds": sum(record.cost["wall_seconds"] for record in records.values()),
                 "last_call_wall_seconds": watch.cost()["wall_seconds"]},
    }


def nve(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """NVE dynamics of a committed model in float64: drift, fluctuation, order of the integrator."""
    model = HERE / "models" / f"{spec['model']}.sapis"
    source = WORK / "demo" / "test.extxyz" if spec["structure"] == "demo" else DATA / spec["structure"]
    start = read_systems(source)[0]
    watch = Stopwatch()
    calculator = load(model).calculator("float64")

    def atoms() -> Any:
        fresh = start.without_labels().to_atoms()
        fresh.calc = calculator
        return fresh

    settings = {"temperature_K": spec["temperature_K"], "seed": 0}
    order = order_test(atoms(), time_ps=spec["order_ps"], **settings).to_record()
    trace = run_nve(atoms(), timestep_fs=spec["timestep_fs"], time_ps=spec["time_ps"], **settings).to_record()
    figures = {**trace, "slope": order["slope"], "order": order, "precision": "float64"}
    return {"errors": figures, "data": {"structure": start.structure_hash()}, "model_file_hash": hash_file(model), "seed": 0,
            "threads": 1, "cost": watch.cost()}


def _measured_apart(module: str, *arguments: Any) -> dict[str, Any]:
    """What a module of this package prints as JSON, from a process of its own."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE.parent).stdout)
    return found


def inference(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Energy and forces of structures of growing size, each in a process of its own."""
    watch, found = Stopwatch(), {}
    for case in spec["cases"]:
        answer = _measured_apart("inference", DATA / case["structure"], case["repeats"], case["backend"])
        found[case["name"]] = {**answer, "backend": case["backend"]}
        print(f"{name}: {case['name']}: {answer['cpu_ms']:.1f} ms, {answer['cpu_ms_per_atom']:.3f} ms per atom, "
              f"{answer['peak_memory_MB']:.0f} MB", flush=True)
    return {"errors": found, "seed": 0, "threads": 1, "cost": watch.cost()}


def peak(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Share of the machine's peak that each preset reaches, each in a process of its own."""
    watch, found = Stopwatch(), {}
    for case in spec["cases"]:
        for size in spec["presets"]:
            answer = _measured_apart("peak", size, DATA / case["structure"], case["frames"], spec["seconds"])
            found[f"{size}-{case['name']}"] = answer
            print(f"{name}: {size}, {case['name']}: training {answer['training_gflops']:.1f} GFLOP/s, "
                  f"{answer['training_share_of_peak']:.0%} of peak; energies and forces {answer['inference_gflops']:.1f}, "
                  f"{answer['inference_share_of_peak']:.0%}", flush=True)
    return {"errors": found, "seed": 0, "threads": 1, "cost": watch.cost()}


def growth(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A model that grows half-way against a large one from the start."""
    watch = Stopwatch()
    found = growing.compare(spec, DATA, WORK / name)
    _keep_model(WORK / name / "model.sapis", name)
    trainings = [each for both in found["seeds"].values() for each in both.values()]
    cost = watch.cost_with(trainings)
    return {"errors": found, "model_hash": found.pop("model_hash"), "seed": spec["seeds"][0], "threads": 1, "cost": cost}


def coordinates(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Sizes of activations and of their changes in models of several widths."""
    watch = Stopwatch()
    found = width.coordinates(spec, DATA, WORK / name)
    shutil.copyfile(WORK / name / "coordinates.png", HERE / "figures" / f"{name}.png")
    return {"errors": found, "seed": spec["seeds"][0], "threads": 1, "cost": watch.cost()}


def rates(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Learning rates against widths."""
    watch = Stopwatch()
    return {"errors": width.rates(spec, DATA, WORK / name), "seed": 0, "threads": 1, "cost": watch.cost()}


def _keep_model(model: Path, name: str) -> None:
    (HERE / "models").mkdir(exist_ok=True)
    shutil.copyfile(model, HERE / "models" / f"{name}.sapis")


def figures(spec: dict[str, Any], result: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures asked for, with their limits and whether they hold."""
    found = []
    for wanted in spec["figures"]:
        values = result["errors"][wanted["set"]] if "set" in wanted else result["errors"]
        value = values[wanted["figure"]]
        lowest = wanted.get("at_least", -math.inf)
        holds = None if "limit" not in wanted else bool(value is not None and lowest <= value and abs(value) <= wanted["limit"])
        found.append({**wanted, "value": value, "holds": holds})
    return found


def _modules() -> list[str]:
    """The first lines of the other benchmarks, which name their commands."""
    lines = (path.read_text(encoding="utf-8").partition("\n")[0].strip('"') for path in sorted(HERE.glob("*.py")))
    return [line for line in lines if "python -m" in line and "benchmarks.run" not in line]


def main() -> None:
    """Command line."""
    definitions = load_yaml(HERE / "definitions.yaml")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", help=f"one of {', '.join(definitions)}")
    name = parser.parse_args().name
    if not name:
        print("\n".join(definitions), "\nand as modules of their own:", *_modules(), sep="\n")
        return
    if name not in definitions:
        raise ConfigError(expected=f"one of {', '.join(definitions)}", received=name, where="benchmark name",
                          todo="mend the name")
    spec = definitions[name]
    made_by = provenance()  # of the code that runs now, whatever is committed meanwhile
    before = yardstick()
    kinds = {"train": train, "demo": demo, "nve": nve, "inference": inference, "peak": peak, "growth": growth,
             "coordinates": coordinates, "rates": rates}
    result = kinds[spec["kind"]](name, spec)
    cost = result.pop("cost")
    result |= {"figures": figures(spec, result), "definition": spec, "yardstick": {"before": before, "after": yardstick()}}
    write_record(HERE / "records" / f"{name}.json", Record(name, hash_json(spec), result, cost, made_by))
    for row in result["figures"]:
        verdict = {None: "", True: "holds", False: "DOES NOT HOLD"}[row["holds"]]
        print(f"{name}: {row.get('set', '')} {row['figure']} = {row['value']:.4g} (limit {row.get('limit', '-')}) {verdict}")


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(str(error))
