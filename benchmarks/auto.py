"""The controller and fixed policies on a real problem, at equal total cost: ``python -m benchmarks.auto PROBLEM``.

``acac``: acetylacetone (PBE-D3), 400 frames as a pool, of which each label is paid for when it is used. ``gfn2``: molecules of
`sapis data generate organic`, whose store is given by ``--data``. Writes ``benchmarks/records/auto-PROBLEM.json``; the same
command goes on after a stop.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.run import DATA, WORK
from sapis.core.files import hash_json
from sapis.core.records import Record, Stopwatch, provenance, write_record
from sapis.pipeline.auto import auto
from sapis.pipeline.auto_config import AutoConfig
from sapis.scaling.policies import POLICIES

HERE = Path(__file__).parent
# What a label costs is a choice. Of acetylacetone all labels together cost a sixth of the budget; one of GFN2-xTB takes 14 ms, in
# which a core does about 1.4e8 FLOPs of training.
PROBLEMS: dict[str, dict[str, Any]] = {
    "acac": {"flops": 1e12, "label_flops": 4e8, "widths": (16, 32, 48), "n_start": 30, "n_validation": 50, "n_test": 50},
    "gfn2": {"flops": 4e12, "label_flops": 1.4e8, "widths": (16, 32, 48, 64), "n_start": 200, "n_validation": 200, "n_test": 1000,
             "group_by": "smiles"},
}


def one(problem: str, policy: str, seed: int, data: Path, isolated: Path | None) -> dict[str, Any]:
    """The end of one run, and its course."""
    config = AutoConfig(**PROBLEMS[problem], policy=policy, seed=seed)
    record = auto(data, WORK / "auto" / problem / f"{policy.replace(' ', '-')}-{seed}", config, isolated=isolated)
    result, events = record.result, record.result["events"]
    return {
        "test_force_rmse_meV_A": result["errors"]["test"]["force_rmse_meV_A"], "n_frames": result["n_frames"],
        "size": result["size"], "n_parameters": result["n_parameters"], **record.cost,
        "growths": [{**event["look"], "action": event["decision"]["action"], "reason": event["decision"]["reason"]}
                    for event in events if event["decision"]["action"] != "train"],
        "course": [[event["look"]["spent"], event["look"]["loss"]] for event in events],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("problem", choices=list(PROBLEMS))
    parser.add_argument("--data", type=Path, default=DATA / "acac" / "train_300K.extxyz.gz", help="labelled frames")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    isolated = DATA / "acac" / "isolated_atoms.extxyz.gz" if options.problem == "acac" else None
    made_by, watch = provenance(), Stopwatch()
    cases: dict[str, Any] = {name: {"seeds": {}} for name in POLICIES}
    for seed in options.seeds:
        for policy in POLICIES:
            found = one(options.problem, policy, seed, options.data, isolated)
            cases[policy]["seeds"][str(seed)] = found
            print(f"{policy}, seed {seed}: {found['test_force_rmse_meV_A']:.2f} meV/Å with {found['n_frames']} frames, "
                  f"{found['size']}", flush=True)
    for name, case in cases.items():
        errors = np.array([run["test_force_rmse_meV_A"] for run in case["seeds"].values()])
        case["mean_test_force_rmse_meV_A"], case["spread"] = float(errors.mean()), float(errors.std(ddof=min(1, len(errors) - 1)))
        print(f"{name}: {errors.mean():.2f} ± {case['spread']:.2f} meV/Å")
    runs = [run for case in cases.values() for run in case["seeds"].values()]
    cost = {**watch.cost(), "cpu_seconds": sum(run["cpu_seconds"] for run in runs), "flops": sum(run["flops"] for run in runs)}
    result = {"cases": cases, "problem": {**PROBLEMS[options.problem]}, "seeds": options.seeds, "threads": 1}
    title = f"auto-{options.problem}"
    write_record(HERE / "records" / f"{title}.json",
                 Record(title, hash_json({**PROBLEMS[options.problem], "seeds": options.seeds}), result, cost, made_by))


if __name__ == "__main__":
    main()
