"""Does `sapis scale auto` decide the same when it is killed again and again? ``python -m benchmarks.kill_auto [KILLS]``.

One run on acetylacetone goes undisturbed; another is killed (SIGKILL) at random moments, the same command each time. Decisions,
errors and the hashes of the models go to ``benchmarks/records/kill-auto.json``. Exit code 1 if they differ.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import yaml

from benchmarks.run import DATA, HERE
from sapis.core.files import hash_json, read_json
from sapis.core.records import Record, Stopwatch, provenance, write_record
from sapis.core.seeds import generator
from sapis.pipeline.auto import EVENTS, RECORD

SETTINGS: dict[str, Any] = {
    "flops": 4e10, "label_flops": 2e7, "widths": [16, 32], "axes": {"n_layers": [1, 2]}, "n_start": 30, "n_validation": 50,
    "n_test": 50, "training": {"validations": 1, "checkpoint_seconds": 0.5}, "controller": {"looks": 25},
}


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
    process = subprocess.Popen(command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        process.wait(timeout=life)
        return None
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    events = folder / "run" / EVENTS
    return len(read_json(events)) if events.exists() else 0


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("kills", nargs="?", type=int, default=10)
    options = parser.parse_args()
    made_by, watch = provenance(), Stopwatch()
    with tempfile.TemporaryDirectory(prefix="sapis-kill-auto-") as place:
        folders = [Path(place) / name for name in ("undisturbed", "killed")]
        for folder in folders:
            folder.mkdir()
            (folder / "auto.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
        whole, seconds = finish(folders[0])
        startup = finish(folders[0])[1]  # all is done: what is left is the start of the program
        moments = np.sort(generator(0, "kills").uniform(0, max(1.0, seconds - startup), options.kills))
        kills = [kill(folders[1], startup + life) for life in np.diff(moments, prepend=0)]
        killed, _ = finish(folders[1])
    n_kills = sum(number is not None for number in kills)
    is_same = killed == whole
    grown = [decision["action"] for decision in whole["decisions"] if decision["action"] != "train"]
    print(f"{n_kills} kills after {kills} decisions, of which {grown} changed something: "
          f"{'the same' if is_same else 'ANOTHER COURSE'}")
    result = {"cases": {"undisturbed": whole, "killed": killed}, "kills": kills, "is_same": is_same, "seconds": seconds,
              "seed": 0, "threads": 1}
    inputs = hash_json({**SETTINGS, "kills": options.kills})
    write_record(HERE / "records" / "kill-auto.json", Record("kill-auto", inputs, result, watch.cost(), made_by))
    sys.exit(0 if is_same and n_kills == options.kills else 1)


if __name__ == "__main__":
    main()
