"""The controller and fixed policies on a real problem, at equal total cost: ``python -m benchmarks.auto PROBLEM``.

``acac``: acetylacetone (PBE-D3), 400 frames as a pool, of which each label is paid for when it is used. ``gfn2``: molecules of
`sapis data generate organic`, whose store is given by ``--data``. Writes ``benchmarks/records/auto-PROBLEM.json`` after each run
and a figure; the same command goes on after a stop, and does no run again that the record has.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.run import DATA, WORK, known_runs
from sapis.core.files import hash_json
from sapis.core.records import Record, Stopwatch, provenance, write_record
from sapis.pipeline.auto import auto
from sapis.pipeline.auto_config import AutoConfig
from sapis.scaling.policies import POLICIES, Policy

HERE = Path(__file__).parent
# What a label costs is a choice. Of acetylacetone all labels together cost a sixth of the budget; one of GFN2-xTB takes 14 ms, in
# which a core does about 1.4e8 FLOPs of training.
PROBLEMS: dict[str, dict[str, Any]] = {
    "acac": {"flops": 1e12, "label_flops": 4e8, "widths": (16, 32, 48), "n_start": 30, "n_validation": 50, "n_test": 50},
    "gfn2": {"flops": 4e12, "label_flops": 1.4e8, "widths": (16, 32, 48, 64), "n_start": 200, "n_validation": 200, "n_test": 1000,
             "group_by": "smiles"},
}
# With less of the budget: if it ends below a fixed policy with all of it, its cost of that error is no more than this part.
LESS = "controller, 0.7 of the budget"
CASES: dict[str, tuple[Policy, float]] = {**{policy: (policy, 1.0) for policy in POLICIES}, LESS: ("controller", 0.7)}


def one(problem: str, case: str, seed: int, data: Path, isolated: Path | None) -> dict[str, Any]:
    """The end of one run, and its course."""
    (policy, share), settings = CASES[case], PROBLEMS[problem]
    config = AutoConfig(**{**settings, "flops": share * settings["flops"]}, policy=policy, seed=seed)
    folder = WORK / "auto" / problem / f"{case.replace(',', '').replace(' ', '-')}-{seed}"
    record = auto(data, folder, config, isolated=isolated)
    result, events = record.result, record.result["events"]
    return {
        "test_force_rmse_meV_A": result["errors"]["test"]["force_rmse_meV_A"], "n_frames": result["n_frames"],
        "size": result["size"], "n_parameters": result["n_parameters"], **record.cost,
        "growths": [{**event["look"], "action": event["decision"]["action"], "reason": event["decision"]["reason"],
                     "law": event["decision"]["law"], "after": event["after"]}
                    for event in events if event["decision"]["action"] != "train"],
        # Of the model that has grown, before its first step, over that of the one before.
        "loss_after_growth": [event["after"] / event["look"]["loss"] for event in events if event["after"] is not None],
        "course": [[event["look"]["spent"], event["look"]["loss"]] for event in events],
    }


def summary(cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """By policy, the geometric mean of the test errors over the seeds and the spread of their logarithms."""
    found = {}
    for policy, runs in cases.items():
        errors = np.log([run["test_force_rmse_meV_A"] for run in runs.values()])
        found[policy] = {"mean_test_force_rmse_meV_A": float(np.exp(errors.mean())),
                         "relative_spread": float(errors.std(ddof=min(1, len(errors) - 1))), "n": len(errors)}
    return found


def _figure(problem: str, cases: dict[str, dict[str, Any]]) -> None:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", width_ratios=(5, 4))
    for place, (policy, runs) in enumerate(cases.items()):
        for number, run in enumerate(runs.values()):
            spent, loss = np.array(run["course"]).T
            left.plot(spent, loss, color=f"C{place}", alpha=0.8, linewidth=1.0, label=policy if number == 0 else None)
            right.plot(run["test_force_rmse_meV_A"], place, "o", color=f"C{place}")
    left.set(xlabel="spent, labels included (FLOPs)", ylabel="validation force RMSE (meV/Å)", yscale="log")
    left.legend()
    right.set(xlabel="test force RMSE at the end (meV/Å)", xscale="log", yticks=range(len(cases)), yticklabels=list(cases))
    right.invert_yaxis()
    right.xaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    figure.savefig(HERE / "figures" / f"auto-{problem}.png", dpi=120)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("problem", choices=list(PROBLEMS))
    parser.add_argument("--data", type=Path, help="labelled frames; default: those of acac")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    if options.problem == "gfn2" and options.data is None:
        parser.error("--data STORE, of `sapis data generate organic`")
    data = options.data or DATA / "acac" / "train_300K.extxyz.gz"
    isolated = DATA / "acac" / "isolated_atoms.extxyz.gz" if options.problem == "acac" else None
    made_by, watch = provenance(), Stopwatch()
    problem, path = PROBLEMS[options.problem], HERE / "records" / f"auto-{options.problem}.json"
    cases: dict[str, dict[str, Any]] = {case: {} for case in CASES} | known_runs(path, hash_json(problem), "cases")
    for seed in options.seeds:
        for case in CASES:
            if str(seed) not in cases[case]:
                cases[case][str(seed)] = one(options.problem, case, seed, data, isolated) | {"made_by": made_by}
                runs = [run for each in cases.values() for run in each.values()]
                growths = [abs(ratio - 1) for run in runs for ratio in run["loss_after_growth"]]
                cost = watch.cost_with(runs)
                result = {"cases": cases, "summary": summary({name: each for name, each in cases.items() if each}),
                          "largest_change_by_growth": max(growths, default=None), "problem": problem, "threads": 1}
                write_record(path, Record(path.stem, hash_json(problem), result, cost, made_by))
            found = cases[case][str(seed)]
            print(f"{case}, seed {seed}: {found['test_force_rmse_meV_A']:.2f} meV/Å with {found['n_frames']} frames, "
                  f"{found['size']}", flush=True)
    for case, row in summary(cases).items():
        print(f"{case}: {row['mean_test_force_rmse_meV_A']:.2f} meV/Å ± {100 * row['relative_spread']:.0f} %")
    _figure(options.problem, cases)


if __name__ == "__main__":
    main()
