"""Our row of the table: ``python -m benchmarks.peers.ours JOB.json`` trains sapis as `sapis train` does.

Its own loop is the common protocol, except that looking at the validation frames counts as CPU time, and that it does so at equal
steps of the budget.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.peers.protocol import Recipe
from benchmarks.peers.train import write_result
from sapis.core.config import parse_config
from sapis.core.version import __version__
from sapis.pipeline.train import TrainRequest, train_files

ERRORS = ("n", "energy_rmse_meV", "energy_rmse_meV_atom", "energy_mae_meV_atom", "force_rmse_meV_A", "force_mae_meV_A")


def run_job(path: Path) -> dict[str, Any]:
    """Train as the job says; the same figures as `benchmarks.peers.train`."""
    job = json.loads(path.read_text(encoding="utf-8"))
    loss = {name: getattr(Recipe(), name) for name in ("energy_weight", "force_weight")}  # the same for all
    training = {"cpu_seconds": job["cpu_seconds"], "seed": job["seed"]} | loss | job["options"]
    files = {key: Path(value) for key, value in job["files"].items()}
    outcome = train_files(
        files.pop("train"), path.parent / "sapis", parse_config(TrainRequest, {"training": training}, where="job"),
        validation=files.pop("validation"), isolated=files.pop("isolated"), tests=list(files.values()),
    )
    found = outcome.training
    last = found["history"][-1]
    return {
        "package": "sapis-md", "version": __version__, "torch": torch.__version__, "n_parameters": found["n_parameters"],
        "n_steps": found["n_steps"], "cpu_seconds": last["cpu_seconds"], "flops": found["flops"],
        "flops_per_step": found["flops"] / found["n_steps"], "history": found["history"],
        "errors": {name: {key: errors[key] for key in ERRORS} for name, errors in outcome.errors.items()},
        "all_checks_passed": outcome.all_passed,
        "peak_memory_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    own_job = Path(sys.argv[1])
    write_result(own_job.parent / "result.json", run_job(own_job))
