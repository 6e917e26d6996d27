"""Does `sapis active` end on the same model when it is killed again and again? ``python -m benchmarks.kill_active [KILLS]``.

A cluster of copper at effective-medium theory, by a labeler of which every fifth structure fails, hangs or gives NaN. One run
goes undisturbed; others are killed (SIGKILL) at random moments, the same command each time. The hashes of the models, how many
labels were computed again, and whether the report tells of every failure go to ``benchmarks/records/kill-active.json``. Exit code
1 if anything differs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ase.io
import numpy as np
import yaml
from ase import Atoms
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT
from ase.cluster import Icosahedron

from benchmarks.kills import course, is_killed
from benchmarks.run import HERE
from sapis.core.files import hash_file, hash_json, read_json
from sapis.core.records import Record, Stopwatch, provenance, write_record
from sapis.data.store import Store

CALLS = "SAPIS_CALLS"  # names the file in which the labeler notes what it begins to compute, good or bad
HANG_S, N_POOL = 600.0, 150
SETTINGS: dict[str, Any] = {
    "pool": "pool.extxyz", "output": "run", "n_start": 30, "rounds": 3, "n_per_round": 15, "workers": 2,
    "labeler": {"name": "ase", "calculator": "benchmarks.kill_active.Troubled", "timeout_s": 3.0},
    "model": {"preset": "nano", "n_layers": 1, "cutoff": 4.0}, "training": {"epochs": 20, "validations": 2, "warmup_steps": 5},
}


class Troubled(EMT):
    """EMT of which every fifth structure, always the same ones, raises, hangs or gives NaN."""

    def calculate(self, atoms: Atoms | None = None, properties: list[str] | None = None,
                  system_changes: list[str] = all_changes) -> None:
        assert atoms is not None
        draw = trouble(atoms)
        if len(atoms) > 1 and (path := os.environ.get(CALLS)):
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(f"{hash_json(atoms.positions.round(6).tolist())}\n")
        if draw == 0:
            raise RuntimeError("this one never works")
        if draw == 1:
            time.sleep(HANG_S)
        super().calculate(atoms, properties, system_changes)
        if draw == 2:
            self.results["energy"] = self.results["free_energy"] = float("nan")


def trouble(atoms: Atoms) -> int:
    """0 to 14, of which 0, 1 and 2 are trouble; an atom alone has none."""
    return 3 if len(atoms) == 1 else int(1e5 * abs(float(atoms.positions[0, 0])) + 0.5) % 15


def begin(folder: Path) -> Path:
    """A folder with the recipe and the pool of a run."""
    folder.mkdir()
    rng, cluster, pool = np.random.default_rng(0), Icosahedron("Cu", 2), []
    for _ in range(N_POOL):
        pool.append(cluster.copy())
        pool[-1].positions += rng.normal(0, 0.1, cluster.positions.shape)
    ase.io.write(folder / "pool.extxyz", pool)
    (folder / "active.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    os.environ[CALLS] = str(folder / "calls.txt")
    return folder


def command(folder: Path) -> list[str]:
    """Of a run in ``folder``."""
    return [sys.executable, "-c", "from sapis.cli import main; main()", "active", str(folder / "active.yaml")]


def finish(folder: Path) -> tuple[dict[str, Any], float]:
    """Run to the end: what came of it, and wall seconds."""
    start = time.monotonic()
    subprocess.run(command(folder), stdout=subprocess.DEVNULL, check=True)
    run, seconds = folder / "run", time.monotonic() - start
    records = [read_json(path)["result"] for path in sorted((run / "records").glob("round-*-labels.json"))]
    failures = [each for record in records for each in record["failures"]]
    page = (run / "report.html").read_text(encoding="utf-8")
    calls = Counter((folder / "calls.txt").read_text(encoding="utf-8").split())
    return {"model": hash_file(run / "model.sapis"), "n_labels": len(Store(run / "labels.store")), "n_failures": len(failures),
            "kinds": dict(Counter(each["kind"] for each in failures)), "n_told": page.count(", structure "),
            "n_computed_again": sum(n - 1 for n in calls.values())}, seconds


def kill(folder: Path, life: float) -> float | None:
    """Start the run and kill it after ``life`` seconds, which it tells; None if it was over before."""
    return round(life, 2) if is_killed(command(folder), life) else None


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("kills", nargs="?", type=int, default=20)
    options = parser.parse_args()
    made_by, watch = provenance(), Stopwatch()
    with tempfile.TemporaryDirectory(prefix="sapis-kill-active-") as place:
        found = course(Path(place), begin, finish, kill, options.kills, 0, "kills")
    whole, ends = found.whole, found.ends
    # What a store holds is never computed again: only labels under way when their process was killed are, one of each worker.
    is_same = all(end[key] == whole[key] for end in ends for key in ("model", "n_labels", "n_failures", "kinds", "n_told"))
    n_again = sum(end["n_computed_again"] for end in ends)
    is_told = whole["n_told"] == whole["n_failures"] > 0
    print(f"{len(found.kills)} kills of {len(ends) - 1} runs: {'the same' if is_same else 'ANOTHER END'}; "
          f"{whole['n_labels']} labels, {whole['n_failures']} failures {whole['kinds']}, all told: {is_told}; "
          f"computed again after a kill: {n_again}")
    result = {"cases": {"undisturbed": whole, "killed": ends[1:]}, "kills": found.kills, "is_same": is_same,
              "are_failures_told": is_told, "n_computed_again": n_again, "seconds": found.seconds, "seed": 0, "threads": 1}
    inputs = hash_json({**SETTINGS, "kills": options.kills})
    write_record(HERE / "records" / "kill-active.json", Record("kill-active", inputs, result, watch.cost(), made_by))
    sys.exit(0 if is_same and is_told and n_again <= SETTINGS["workers"] * len(found.kills) else 1)


if __name__ == "__main__":
    main()
