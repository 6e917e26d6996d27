"""Does a run that is killed again and again end at the same model? ``python -m benchmarks.kill_resume RECIPE…``.

Each recipe runs undisturbed (twice: the first fills the caches of compilers), then elsewhere with SIGKILL at random moments, the
same command each time; should it be done before its last kill, once more in a new folder. The hashes of all models go to
``benchmarks/records/kill-resume.json``. Exit code 1 if they differ.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.kills import course, is_killed
from sapis.core.errors import ConfigError, SapisError
from sapis.core.files import hash_file, hash_json
from sapis.core.progress import console
from sapis.core.records import Record, Stopwatch, provenance, write_record
from sapis.pipeline.recipe import Recipe, read_recipe

RECORD = Path(__file__).parent / "records" / "kill-resume.json"
PROGRAM = [sys.executable, "-c", "from sapis.cli import main; main()", "run"]
NO_LIMIT = 1e9  # CPU seconds: a budget that a clock ends would end at another step each time


def killed_and_resumed(path: Path, n_kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run the recipe at ``path`` undisturbed and killed ``n_kills`` times, in ``folder``; what came of both.

    Raises:
        ConfigError: the recipe's training does not end by epochs.
    """
    recipe = read_recipe(path)
    if recipe.training.epochs is None:
        raise ConfigError(expected="a recipe whose training ends by epochs", received="one that only CPU seconds end",
                          where=f"{path}: training.epochs", todo="give a number of epochs")
    found = course(folder, partial(_copied, recipe), _run, _killed, n_kills, seed, "kills", path.name)
    console.print(f"{path.name}: {len(found.kills)} kills, {'the same model' if found.is_same else '[bold red]ANOTHER MODEL[/]'}")
    return {"recipe": path.name, "undisturbed_seconds": found.seconds, "startup_seconds": found.startup, "kills": found.kills,
            "undisturbed": found.whole, "killed": found.ends[1:], "is_same": found.is_same}


def _copied(recipe: Recipe, folder: Path) -> Path:
    values = recipe.model_dump(mode="json", exclude_none=True) | {"output": "out"}
    if recipe.system.file is not None:
        values["system"]["file"] = str(recipe.system.file.resolve())
    values["budget"]["cpu_seconds"] = NO_LIMIT
    if recipe.hot_temperature_K is None:
        values["hot_temperature_K"] = None  # null is not the default
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder / "recipe.yaml"


def _run(recipe: Path) -> tuple[dict[str, str], float]:
    """The hashes of the model and wall seconds of a run to its end."""
    start = time.monotonic()
    done = subprocess.run([*PROGRAM, str(recipe)], stdout=subprocess.PIPE, text=True, check=True)
    found = re.search(r"^hash: +(\w+)$", done.stdout, re.MULTILINE)
    assert found, done.stdout
    return {"model_hash": found[1], "file_hash": hash_file(recipe.parent / "out" / "model.sapis")}, time.monotonic() - start


def _killed(recipe: Path, life: float) -> dict[str, Any] | None:
    """Start the run and kill it after ``life`` seconds: when and in which step; None if it was over before."""
    log = recipe.with_suffix(".log")
    with log.open("w") as file:
        if not is_killed([*PROGRAM, str(recipe)], life, file):
            return None
    steps = re.findall(r"▶ \d+\. (\w+)", log.read_text(encoding="utf-8", errors="replace"))
    return {"after_seconds": round(life, 3), "in_step": steps[-1] if steps else "start"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipes", type=Path, nargs="+", help="recipes whose trainings end by epochs")
    parser.add_argument("--kills", type=int, default=10, help="how many times each is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--record", type=Path, default=RECORD, help="where the figures go")
    options = parser.parse_args()
    watch = Stopwatch()
    try:
        with tempfile.TemporaryDirectory(prefix="sapis-kill-resume-") as folder:
            runs = []
            for number, path in enumerate(options.recipes):
                (own := Path(folder) / str(number)).mkdir()
                runs.append(killed_and_resumed(path, options.kills, options.seed, own))
    except SapisError as error:
        sys.exit(str(error))
    inputs = {"recipes": [hash_file(path) for path in options.recipes], "kills": options.kills, "seed": options.seed}
    write_record(options.record, Record("kill-resume", hash_json(inputs), {"runs": runs, "seed": options.seed},
                                        watch.cost(), provenance()))
    console.print(f"wrote {options.record}")
    sys.exit(0 if all(run["is_same"] for run in runs) else 1)


if __name__ == "__main__":
    main()
