"""Does `sapis scale auto` decide the same when it is killed again and again? ``python -m benchmarks.kill_auto [KILLS]``.

One run on acetylacetone goes undisturbed; another is killed (SIGKILL) at random moments, the same command each time. Decisions,
errors and the hashes of the models go to ``benchmarks/records/kill-auto.json``. Exit code 1 if they differ.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import yaml

from benchmarks.kills import course, is_killed
from benchmarks.run import DATA, HERE
from sapis.core.files import hash_json, read_json
from sapis.core.records import Record, Stopwatch, provenance, write_record
from sapis.pipeline.auto import EVENTS, RECORD

SETTINGS: dict[str, Any] = {
    "flops": 4e10, "label_flops": 2e7, "widths": [16, 32], "axes": {"n_layers": [1, 2]}, "n_start": 30, "n_validation": 50,
    "n_test": 50, "training": {"validations": 1, "checkpoint_seconds": 0.5}, "controller": {"looks": 25},
}


def begin(folder: Path) -> Path:
    """A folder with the settings of a run."""
    folder.mkdir()
    (folder / "auto.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    return folder


def command(folder: Path) -> list[str]:
    """Of a run in ``folder``, which has its settings."""
    data, isolated = (str(DATA / "acac" / name) for name in ("train_300K.extxyz.gz", "isolated_atoms.extxyz.gz"))
    return [sys.executable, "-c", "from sapis.cli import main; main()", "scale", "auto", data, str(folder / "run"),
            "--isolated", isolated, "--config", str(folder / "auto.yaml")]


def finish(folder: Path) -> tuple[dict[str, Any], float]:
    """Run to the end: decisions and hash, and wall seconds."""
    start = time.monotonic()
    subprocess.run(command(folder), stdout=subprocess.DEVNULL, check=True)
    events = read_json(folder / "run" / EVENTS)
    return {"decisions": [event["decision"] for event in events], "losses": [event["look"]["loss"] for event in events],
            "model_hash": read_json(folder / "run" / RECORD)["result"]["model_hash"]}, time.monotonic() - start


def kill(folder: Path, life: float) -> int | None:
    """Start the run and kill it after ``life`` seconds: how many decisions there were; None if it was over before."""
    if not is_killed(command(folder), life):
        return None
    events = folder / "run" / EVENTS
    return len(read_json(events)) if events.exists() else 0


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("kills", nargs="?", type=int, default=10)
    options = parser.parse_args()
    made_by, watch = provenance(), Stopwatch()
    with tempfile.TemporaryDirectory(prefix="sapis-kill-auto-") as place:
        found = course(Path(place), begin, finish, kill, options.kills, 0, "kills")
    grown = [decision["action"] for decision in found.whole["decisions"] if decision["action"] != "train"]
    print(f"{len(found.kills)} kills, after {found.kills} decisions, of {len(found.ends) - 1} runs, in which {grown} changed "
          f"something: {'the same' if found.is_same else 'ANOTHER COURSE'}")
    result = {"cases": {"undisturbed": found.whole, "killed": found.ends[-1]}, "kills": found.kills,
              "n_runs": len(found.ends) - 1, "is_same": found.is_same, "seconds": found.seconds, "seed": 0, "threads": 1}
    inputs = hash_json({**SETTINGS, "kills": options.kills})
    write_record(HERE / "records" / "kill-auto.json", Record("kill-auto", inputs, result, watch.cost(), made_by))
    sys.exit(0 if found.is_same else 1)


if __name__ == "__main__":
    main()
